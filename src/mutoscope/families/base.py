"""What generating has in common across families: a checked request, and the interface a family implements."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from mutoscope import hub
from mutoscope.data.fit import Frames
from mutoscope.errors import UserError
from mutoscope.json_config import nearest
from mutoscope.layers.cuda_graph import CUDAGraphCall, Record
from mutoscope.sampling.base import SampleEvent
from mutoscope.text import TextEncoder
from mutoscope.tokenizers.base import VideoTokenizer

MAX_SEED = 2**64 - 1


@dataclass(frozen=True)
class Request:
    """One checked call: everything random about it follows from `seed`.

    `task` names what is done; `sampler` is the configuration of the family's sampler, and `num_steps` the passes of
    the network it plans per round. `batch_size` samples are decoded together; more are made in several rounds, which
    bounds memory. `num_frames`: length of the clips, if the model can choose. `warnings`: sentences about what was
    asked for and will not be honoured.
    """

    task: str
    num_samples: int
    seed: int
    sampler: Any
    num_steps: int
    labels: Int[Tensor, " b"] | None = None
    batch_size: int = 16
    num_frames: int | None = None
    warnings: tuple[str, ...] = ()

    @property
    def num_rounds(self) -> int:
        return -(-self.num_samples // self.batch_size)

    def rounds(self) -> Iterator[slice]:
        """The samples of each round."""
        for start in range(0, self.num_samples, self.batch_size):
            yield slice(start, min(start + self.batch_size, self.num_samples))


class Generator(ABC):
    """A family's way from a call to tokens: it checks what is asked for and runs the sampler."""

    def __init__(
        self,
        tokenizer: VideoTokenizer,
        model: Any,
        index: hub.ModelIndex,
        device: torch.device,
        text_encoder: Callable[[], TextEncoder] | None = None,
    ) -> None:
        """`text_encoder` loads the encoder of prompts, which may be larger than the model: only a prompt calls it."""
        self.tokenizer, self.model, self.index, self.device = tokenizer, model, index, device
        self._load_text_encoder = text_encoder
        self.network = model  # the model as the sampler sees it: perhaps with its steps captured

    @cached_property
    def text_encoder(self) -> TextEncoder:
        """Encoder of prompts, loaded on first use. Raises UserError where the model's folder names none."""
        if self._load_text_encoder is None:
            raise UserError(
                "This model reads text, but its folder names no text encoder. Write one into model_index.json "
                '("text_encoder": "FOLDER"), or convert the model again with --text-encoder FOLDER.'
            )
        return self._load_text_encoder()

    def prompt_warnings(self, *given: str | Sequence[str]) -> tuple[str, ...]:
        """One sentence naming the words of all prompts that the text encoder does not know, if there are any."""
        prompts = [prompt for some in given for prompt in ([some] if isinstance(some, str) else some)]
        words = dict.fromkeys(word for prompt in prompts for word in self.text_encoder.unknown(prompt))
        if not words:
            return ()
        named = ", ".join(map(repr, list(words)[:12])) + (f" and {len(words) - 12} more" if len(words) > 12 else "")
        return (f"The text encoder does not know {named}: these words of the prompt mean nothing to the model.",)

    @abstractmethod
    def prepare(self, **options: Any) -> Request:
        """Check a call and put its parts into the model's form; raises UserError for whatever does not fit."""

    @abstractmethod
    def sample(self, request: Request, on_step: Callable[[SampleEvent], None]) -> Iterator[Iterator[SampleEvent]]:
        """The events of each round, each of which also went to `on_step`."""

    def capture(self, record: Record = CUDAGraphCall) -> None:
        """From now on the network's steps are recorded at their first call and replayed. Raises UserError where the
        family's steps cannot be recorded."""
        raise UserError(f"Steps of the family {self.index.family!r} cannot be captured, only those of magvit and par.")

    def steered(self, request: Request) -> tuple[Iterator[Iterator[SampleEvent]], Any]:
        """The events of a stream of one sample, and what changes it on the way: None where nothing can."""
        return self.sample(request, lambda event: None), None

    def finish(
        self, clips: UInt8[np.ndarray, "b t h w 3"], request: Request, start: int
    ) -> UInt8[np.ndarray, "b t h w 3"]:
        """What is done to decoded clips; `start` is the number of the first sample."""
        return clips

    def check_parts_fit(self) -> None:
        """Raises UserError unless tokenizer and model speak of the same tokens."""
        shape = self.tokenizer.spec.latent_shape(self.index.num_frames, self.index.height, self.index.width)
        if shape != tuple(self.model.latent_shape):
            raise UserError(
                f"Tokenizer and model do not fit: {self.index.num_frames} frames of {self.index.height}×"
                f"{self.index.width} are {shape} tokens, the model expects {tuple(self.model.latent_shape)}."
            )
        if self.tokenizer.spec.vocab_size != self.model.config.codebook_size:
            raise UserError(
                f"Tokenizer and model do not fit: {self.tokenizer.spec.vocab_size} codes against "
                f"{self.model.config.codebook_size}."
            )

    def check_call(self, num_samples: int, seed: int, num_frames: int | None, prompt: Any, actions: Any) -> None:
        """What holds for every model that makes clips of one length; one that reads text passes prompt=None."""
        if prompt is not None:
            raise UserError("This model takes no prompt. Say what it should show with a class label or a context.")
        if actions is not None:
            raise UserError("This model takes no actions. Leave them out.")
        if num_frames not in (None, self.index.num_frames):
            raise UserError(
                f"This model makes clips of {self.index.num_frames} frames, found num_frames={num_frames}: "
                f"use {self.index.num_frames}."
            )
        if num_samples < 1:
            raise UserError(f"num_samples must be at least 1, found {num_samples}.")
        if not 0 <= seed <= MAX_SEED:
            raise UserError(f"seed must be between 0 and 2^64 - 1, found {seed}.")

    def class_labels(
        self, class_label: int | str | Sequence[int | str] | None, num_samples: int, seed: int
    ) -> Int[Tensor, " b"] | None:
        """The labels asked for, one per sample; without any, classes drawn at random, if the model has classes."""
        num_classes = self.model.config.num_classes
        if class_label is not None:
            asked = [class_label] if isinstance(class_label, int | str) else class_label
            found = [find_class(label, self.index.class_names, num_classes) for label in asked]
            return torch.tensor(found if len(found) > 1 else found * num_samples)
        if num_classes:
            generator = torch.Generator().manual_seed(seed)
            return torch.randint(num_classes, (num_samples,), generator=generator)
        return None


def is_listed(given: Any) -> bool:
    """Whether something is given for every sample by itself: a list, or an array of clips."""
    single = given is None or isinstance(given, int | str) or (isinstance(given, np.ndarray) and given.ndim == 4)
    return not single


def as_list(given: Frames | Sequence[Frames] | None) -> list[Any]:
    """One clip, or nothing, as a list of one."""
    return list(given) if given is not None and is_listed(given) else [given]


def common_length(num_samples: int | None, **given: Any) -> int:
    """How many samples a call asks for: said outright, or the length of what is listed for one sample each."""
    lengths = {name: len(value) for name, value in given.items() if is_listed(value)}
    asked = set(lengths.values()) | ({num_samples} if num_samples is not None else set())
    if lengths and (len(asked) > 1 or 0 in asked):
        listed = ", ".join(f"{length} for {name}" for name, length in lengths.items())
        raise UserError(f"Lists must have one entry per sample: found {listed}, num_samples {num_samples}.")
    return asked.pop() if asked else 1


def find_class(label: int | str, names: tuple[str, ...] | None, num_classes: int) -> int:
    """Index of a class given by index or by name."""
    if not num_classes:
        raise UserError("This model knows no classes. Leave the class label out.")
    text = str(label).strip()
    if text.lstrip("+-").isdecimal():
        if not 0 <= int(text) < num_classes:
            raise UserError(f"Class labels go from 0 to {num_classes - 1}, found {text}.")
        return int(text)
    lowered = [name.lower() for name in names or ()]
    if text.lower() in lowered:
        return lowered.index(text.lower())
    hint = nearest(text, names) if names else f"give an index from 0 to {num_classes - 1}."
    raise UserError(f"Unknown class label {text!r}: {hint}")
