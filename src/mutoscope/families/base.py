"""What a family of models declares, and what generating with it has in common.

A `Family` is one declaration: its configuration, network, sampler and `Call`; what its models can do; what a training
batch must hold; its published sizes. The rest of the code reads the declaration and asks nowhere which family it is.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from types import NoneType
from typing import Generic, TypeVar, cast, get_args, get_type_hints

import numpy as np
import torch
from jaxtyping import Int, UInt8
from PIL.Image import Image
from torch import Tensor

from mutoscope.data.clip_input import ClipLike, as_frames, is_one_array
from mutoscope.data.fit import Frames
from mutoscope.data.video.read import Video
from mutoscope.data.video.write import VideoClip
from mutoscope.errors import UserError
from mutoscope.families.transfer import Described, TransferReport, TransferRule, transferred
from mutoscope.json_config import dataclass_from_dict, nearest
from mutoscope.layers.draws import Draws
from mutoscope.layers.finite import require_finite
from mutoscope.layers.recorded import Steps
from mutoscope.model_index import ModelIndex
from mutoscope.models.base import AnyModel, ModelConfig
from mutoscope.sampling.base import SampleEvent
from mutoscope.text import TextEncoder
from mutoscope.text.base import TextFeatures
from mutoscope.text.letters import folded
from mutoscope.tokenizers.base import VideoTokenizer

MAX_SEED = 2**64 - 1  # of torch.Generator
MAX_NAMED_WORDS, MAX_NAMED_LETTERS = 12, 40  # unknown words that a warning lists, and letters of each

Labels = int | str | Sequence[int | str] | None
"""A class by index or name, or one for each sample."""
Prompts = str | Sequence[str] | None
"""A prompt, or one for each sample."""
Clips = ClipLike | Sequence[ClipLike] | None
"""One clip in any form that `data.clip_input` reads, or a list with a clip for each sample."""
OnStep = Callable[[SampleEvent], object]
Batch = Mapping[str, object]
PrepareBatch = Callable[[Batch, int], Batch]
"""(batch, step) -> the batch as the loss of the family reads it."""


@dataclass(frozen=True)
class Rollout:
    """Training clips whose first frames a model continues by itself, under the clips' own conditions."""

    batch: Batch
    """As the loss of the family reads it."""
    num_context: int
    """Frames of the recording at the start."""
    options: Mapping[str, object]
    """Of the family's sampler."""
    draws: Draws
    """On the CPU."""


# ---------------------------------------------------------------------------------------------------------------- calls


VIDEO_FILE = {"file": "video"}
"""Metadata of a field of a call: the command line names a video or image file."""
ACTIONS_FILE = {"file": "actions"}
"""Metadata of a field of a call: the command line names a file of actions."""
RECTANGLE = {"form": "region"}
"""Metadata of a field of a call: part of the frame, which a page lets its user draw."""
PYTHON_ONLY = {"python_only": "true"}
"""Metadata of a field of a call that the command line does not show."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """The options of one call that models of every family take. A family's call adds its own.

    A list of labels, prompts or clips stands for one sample each.
    """

    num_samples: int | None = None
    """How many clips; None: one, or as many as lists are long."""
    seed: int = 0
    """The same seed gives the same clips."""
    batch_size: int = 16
    """Samples decoded together; it bounds memory and takes part in what a seed gives."""
    num_frames: int | None = None
    """Frames of the clip; None: as in training."""


CallType = TypeVar("CallType", bound=Call)
ConfigType = TypeVar("ConfigType", bound=ModelConfig)
ModelType = TypeVar("ModelType", bound=AnyModel)
SamplerType = TypeVar("SamplerType")


# ------------------------------------------------------------------------------------------------------------- requests


class Steering(ABC):
    """Changes the conditions of a stream while it runs."""

    @abstractmethod
    def change(self, **conditions: object) -> None:
        """Take effect with the next frame. Raises UserError for conditions that do not fit."""


@dataclass(frozen=True, kw_only=True)
class Request(ABC):
    """A checked call in the model's own form: everything random about it follows from `seed`.

    More samples than `batch_size` are decoded in several batches.
    """

    task: str
    """What the call amounts to."""
    num_samples: int
    seed: int
    num_steps: int
    """Passes of the network planned for each batch."""
    num_frames: int | None
    """Pixel frames of the clips; None for a stream without an end."""
    sampling: Mapping[str, object]
    """The sampler's options, for reports."""
    labels: Int[Tensor, " b"] | None = None
    """Class of each sample."""
    batch_size: int = 16
    warnings: tuple[str, ...] = ()
    """Sentences about parts of the call that have no effect."""

    @property
    def num_batches(self) -> int:
        return -(-self.num_samples // self.batch_size)

    def batches(self) -> Iterator[slice]:
        """The samples of each batch."""
        for start in range(0, self.num_samples, self.batch_size):
            yield slice(start, min(start + self.batch_size, self.num_samples))

    @abstractmethod
    def events(self) -> Iterator[Iterator[SampleEvent]]:
        """The sampler's events of each batch."""

    def steered(self) -> tuple[Iterator[Iterator[SampleEvent]], Steering | None]:
        """The events of a stream of one sample, and its steering handle; None if the family cannot be steered."""
        return self.events(), None

    def opening(self) -> UInt8[Tensor, "n t h w 3"] | None:
        """Frames that the clips start with, if they do: for every sample or one for all."""
        return None

    def repeated_options(self) -> dict[str, object]:
        """Options under which a clip is continued segment by segment, for families that extend clips."""
        return dict(self.sampling)

    def finish(self, clips: UInt8[np.ndarray, "b t h w 3"], start: int) -> UInt8[np.ndarray, "b t h w 3"]:
        """Post-process decoded clips; `start` is the number of the first sample."""
        return clips


@dataclass(frozen=True)
class WebWorld:
    """A world that a browser runs without a server."""

    graphs: Mapping[str, bytes]
    """ONNX files by name."""
    manifest: Mapping[str, object]
    """What the loop in JavaScript reads: sizes, settings, tables and first frames as JSON values."""


@dataclass(frozen=True)
class Parts(Generic[ModelType]):
    """The loaded parts of a model folder."""

    tokenizer: VideoTokenizer
    model: ModelType
    index: ModelIndex
    device: torch.device
    load_text_encoder: Callable[[], TextEncoder] | None = None
    """Loads the text encoder, which may be larger than the model; called at the first prompt."""
    folder: Path | None = None
    """Of the first frames that the index names."""


class Generator(ABC, Generic[CallType, ModelType]):
    """A family's way from a call to a request, for one loaded model."""

    def __init__(self, parts: Parts[ModelType]) -> None:
        self.parts = parts
        self.tokenizer, self.model, self.index, self.device = parts.tokenizer, parts.model, parts.index, parts.device
        self.steps = Steps()
        self.check_parts_fit()

    @abstractmethod
    def prepare(self, call: CallType) -> Request:
        """Check a call and bring its parts into the model's form. Raises UserError for whatever does not fit."""

    def record_steps(self, steps: Steps) -> None:
        """From now on, record the network's steps at their first call and replay them."""
        self.steps = steps

    def web_world(self, name: str) -> WebWorld:
        """The model as a world for browsers. Raises UserError for a model that cannot be played so."""
        raise UserError(
            f"Models of the family {self.index.family!r} are no worlds for browsers: streams with actions are."
        )

    @cached_property
    def text_encoder(self) -> TextEncoder:
        """Text encoder, loaded on first use. Raises UserError if the model's folder names none."""
        if self.parts.load_text_encoder is None:
            raise UserError(
                "This model reads text, but its folder names no text encoder. Write one into model_index.json "
                '("text_encoder": "FOLDER"), or convert the model again with --text-encoder FOLDER.'
            )
        return self.parts.load_text_encoder()

    # ---------------------------------------------------------------------------------------------------- checks

    def check_parts_fit(self) -> None:
        """Raise UserError unless the tokenizer's tokens of a training clip are those that the model expects."""
        spec, config = self.tokenizer.spec, self.model.config
        frames, rows, columns = spec.latent_shape(self.index.num_frames, self.index.height, self.index.width)
        found = spec.latent_channels if config.is_continuous else spec.vocab_size
        expected = config.latent_channels if config.is_continuous else config.codebook_size
        if (rows, columns) != tuple(config.latent_shape[1:]) or found != expected or not self.fits_length(frames):
            kind = "channels" if config.is_continuous else "codes"
            raise UserError(
                f"Tokenizer and model do not fit: {self.index.num_frames} frames of {self.index.height}×"
                f"{self.index.width} are {(frames, rows, columns)} latents of {found} {kind}, the model expects "
                f"{tuple(config.latent_shape)} of {expected}."
            )

    def fits_length(self, latent_frames: int) -> bool:
        """Whether the model decodes clips of that many latent frames."""
        return latent_frames == self.model.config.latent_shape[0]

    def check_call(self, call: Call) -> None:
        """Checks of the options that all families share."""
        if call.num_samples is not None and call.num_samples < 1:
            raise UserError(f"num_samples must be at least 1, found {call.num_samples}.")
        if not 0 <= call.seed <= MAX_SEED:
            raise UserError(f"seed must be between 0 and 2^64 - 1, found {call.seed}.")

    def check_trained_length(self, call: Call) -> None:
        """For families whose clips have the length of training."""
        if call.num_frames not in (None, self.index.num_frames):
            raise UserError(
                f"This model generates clips of {self.index.num_frames} frames, found num_frames={call.num_frames}: "
                f"use {self.index.num_frames}."
            )

    def class_labels(self, requested: Labels, num_samples: int, seed: int) -> Int[Tensor, " b"] | None:
        """The requested labels, one per sample; without a request, classes drawn at random if the model has any.

        None too for a model of a single class, which is no condition: its name may be given, and changes nothing.
        """
        num_classes, names = self.model.config.num_classes or 0, self.index.class_names
        if requested is not None:
            each: Sequence[int | str] = [requested] if isinstance(requested, int | str) else requested
            is_sole = not num_classes and names is not None and len(names) == 1
            found = [find_class(label, names, 1 if is_sole else num_classes) for label in each]
            return None if is_sole else torch.tensor(found if len(found) > 1 else found * num_samples)
        if num_classes:
            generator = torch.Generator().manual_seed(seed)
            return torch.randint(num_classes, (num_samples,), generator=generator)
        return None

    # ------------------------------------------------------------------------------------------------------ text

    def encode_text(self, prompts: Sequence[str]) -> TextFeatures:
        """Text features of prompts. Raises UserError unless the encoder gives what the model reads."""
        shape = self.model.config.text
        if shape is None:
            raise UserError("This model takes no prompt. Say what it should show with a class label or a context.")
        text = self.text_encoder.encode(prompts, shape.length)
        if text.features.shape[2] != shape.size:
            raise UserError(
                f"The text encoder {str(self.text_encoder.folder)!r} gives {text.features.shape[2]} channels, this "
                f"model reads {shape.size}: name the encoder it was trained with."
            )
        require_finite(text.features, "The text encoder's features", option="text_encoder_dtype")
        return text

    def prompt_warnings(self, *prompts: str) -> tuple[str, ...]:
        """One sentence naming the words of the prompts that the text encoder does not know, if there are any."""
        words = list(dict.fromkeys(word for prompt in prompts for word in self.text_encoder.unknown(prompt)))
        if not words:
            return ()
        named = ", ".join(repr(word[:MAX_NAMED_LETTERS]) for word in words[:MAX_NAMED_WORDS])
        more = f" and {len(words) - MAX_NAMED_WORDS} more" if len(words) > MAX_NAMED_WORDS else ""
        return (f"The text encoder does not know {named}{more}: these words of the prompt mean nothing to the model.",)


def is_listed(value: object) -> bool:
    """Whether an option has one value per sample: a list, or an array of several clips."""
    single = value is None or isinstance(value, int | str | Path | Image | VideoClip | Video)
    return not single and not is_one_array(value)


def as_list(clips: Clips, name: str = "context", max_frames: int | None = None) -> list[Frames | None]:
    """One clip, or None, as a list of one; clips as their frames. `max_frames`: of a file, the first ones only.

    Raises UserError for anything that is no clip.
    """
    if clips is None:
        return [None]
    each = cast(Sequence[ClipLike], clips) if is_listed(clips) else [cast(ClipLike, clips)]
    return [as_frames(clip, name, max_frames) for clip in each]


def as_prompts(prompt: Prompts) -> list[str]:
    """One prompt, a list of them, or none, as a list."""
    return [prompt] if isinstance(prompt, str) else list(prompt or ())


def per_sample(prompts: str | Sequence[str], num_samples: int) -> list[str]:
    """The prompt of every sample."""
    return [prompts] * num_samples if isinstance(prompts, str) else list(prompts) * (num_samples // len(prompts))


def common_length(num_samples: int | None, **options: object) -> int:
    """Samples of a call: as stated, or the length of the options that list one value per sample."""
    lengths = {name: len(cast(Sequence[object], value)) for name, value in options.items() if is_listed(value)}
    requested = {*lengths.values(), *(() if num_samples is None else (num_samples,))}
    if lengths and (len(requested) > 1 or 0 in requested):
        listed = ", ".join(f"{length} for {name}" for name, length in lengths.items())
        raise UserError(f"Lists must have one entry per sample: found {listed}, num_samples {num_samples}.")
    return requested.pop() if requested else 1


def find_class(label: int | str, names: tuple[str, ...] | None, num_classes: int) -> int:
    """Index of a class given by index or by name."""
    if not num_classes:
        raise UserError("This model knows no classes. Omit the class label.")
    text = str(label).strip()
    if re.fullmatch(r"[+-]?\d+", text):
        if not 0 <= int(text) < num_classes:
            raise UserError(f"Class labels go from 0 to {num_classes - 1}, found {text}.")
        return int(text)
    known = [folded(name) for name in names or ()]
    if folded(text) in known:
        return known.index(folded(text))
    hint = nearest(text, names) if names else f"give an index from 0 to {num_classes - 1}."
    raise UserError(f"Unknown class label {text!r}: {hint}")


# ---------------------------------------------------------------------------------------------------------- declaration


@dataclass(frozen=True)
class Capabilities:
    """What models of a family can do beyond generating a clip of the trained length."""

    any_length: bool = False
    """Clips of any length that the tokenizer can decode."""
    endless: bool = False
    """Streams that go on until the caller stops."""
    steerable: bool = False
    """The conditions of a stream can change while it runs."""
    extends: bool = False
    """Longer and wider clips by repeated prediction and outpainting (`mutoscope.extension`)."""
    captures: bool = False
    """Decoding steps can be captured as CUDA graphs."""
    packs: bool = False
    """Many small steps: weights are pre-packed for the CPU, or rounded to 8 bits on request."""


@dataclass(frozen=True)
class PaperModel:
    """A published size: what `mutoscope models` lists without weights."""

    name: str
    config: ModelConfig
    clip: tuple[int, int, int]
    """Frames, height and width in pixels."""
    num_steps: int
    """Passes of the network per clip."""
    tasks: tuple[str, ...]


def _plain_batch(config: ModelConfig, task_weights: Mapping[str, float]) -> PrepareBatch:
    """Most losses read every field of the batch but the tokens of condition videos."""
    return lambda batch, step: {name: value for name, value in batch.items() if name != "conditions"}


def _accept(config: ModelConfig, sampler: object) -> None:
    """No option of the sampler depends on the model."""


def _named_task(index: ModelIndex, options: Mapping[str, object]) -> str | None:
    task = options.get("task")
    return None if task is None else str(task)


@dataclass(frozen=True, kw_only=True)
class AnyFamily(ABC):
    """A family as the rest of the code sees it; `Family` adds the types that belong together."""

    name: str
    """As in `model_index.json`."""
    title: str
    """As the paper calls it."""
    paper: str
    """arXiv number."""
    config: type[ModelConfig]
    network: type[AnyModel]
    call: type[Call]
    """Options of one call."""
    sampler: type[object]
    """Configuration class of the sampler; its fields are options of every call."""
    capabilities: Capabilities
    papers: Callable[[], Iterable[PaperModel]]
    """The published sizes."""
    clean_caption: Callable[[str], str] = str
    """Cleaning of captions before they are encoded."""
    resolve_task: Callable[[ModelIndex, Mapping[str, object]], str | None] = _named_task
    """The task that a call's options imply, on which defaults of the sampler may depend."""
    transfer_rules: tuple[TransferRule, ...] = ()
    """Tensors that may differ between a model and one that is fine-tuned from it; all others have to be alike."""
    lora_modules: tuple[str, ...] = ()
    """Linear layers that LoRA changes by default, by the ends of their names."""

    def build_call(self, index: ModelIndex, options: Mapping[str, object]) -> Call:
        """The typed call for keyword options, with the model's own defaults of the sampler filled in.

        An option that is None counts as omitted, unless None is a value of it. Raises UserError for names that are no
        options of this family.
        """
        own, sampling = option_names(self.call) - {"sampling"}, option_names(self.sampler)
        may_be_none = {name for name, hint in get_type_hints(self.sampler).items() if NoneType in get_args(hint)}
        options = {name: value for name, value in options.items() if value is not None or name in may_be_none}
        for name in options:
            if name not in own | sampling:
                raise UserError(f"Models of {self.title} take no {name}: {nearest(name, own | sampling)}")
        task = self.resolve_task(index, options)
        chosen = index.sampling_for(task) | {name: options[name] for name in options if name in sampling}
        sampler: object = dataclass_from_dict(self.sampler, chosen, "Sampler options")
        return replace(self.call(), sampling=sampler, **{name: options[name] for name in options if name in own})

    @abstractmethod
    def steps(self, config: ModelConfig, sampling: Mapping[str, object]) -> int:
        """Passes of the network per clip, from the configuration and the sampler's options."""

    @abstractmethod
    def check_sampling(
        self, config: ModelConfig, sampling: Mapping[str, object], by_task: Mapping[str, Mapping[str, object]]
    ) -> None:
        """Raises UserError for default options of the sampler, or those of a task, that a model cannot have."""

    @abstractmethod
    def batch_step(self, config: ModelConfig, task_weights: Mapping[str, float]) -> PrepareBatch:
        """How a training batch becomes the input of the loss."""

    @abstractmethod
    def rolling_out(self, model: AnyModel) -> Callable[[Rollout], Tensor] | None:
        """A function that continues training clips with `model`, and returns them as they are in a batch; None where
        a model of this family does not generate frame by frame."""

    @abstractmethod
    def transfer(self, old: AnyModel, model: AnyModel, before: Described, after: Described) -> TransferReport:
        """Start `model` from the weights of `old`, in place, under `transfer_rules`. See `transfer.transferred`.

        Raises UserError for models of other families, and for differences that weights do not survive.
        """

    @abstractmethod
    def bind(self, parts: Parts[AnyModel]) -> "BoundFamily":
        """The family with the loaded parts of one of its models. Raises UserError unless they fit each other."""


@dataclass(frozen=True, kw_only=True)
class Family(AnyFamily, Generic[CallType, ConfigType, ModelType, SamplerType]):
    """Everything that differs from one family to another: one declaration each, listed in `FAMILIES`."""

    config: type[ConfigType]
    network: type[ModelType]
    call: type[CallType]
    sampler: type[SamplerType]
    generator: Callable[[Parts[ModelType]], Generator[CallType, ModelType]]
    """Checks calls and runs the sampler."""
    planned_steps: Callable[[ConfigType, SamplerType], int]
    """See `steps`."""
    prepare_batch: Callable[[ConfigType, Mapping[str, float]], PrepareBatch] = _plain_batch
    """See `batch_step`."""
    roll_out: Callable[[ModelType, Rollout], Tensor] | None = None
    """See `rolling_out`."""
    check_sampler: Callable[[ConfigType, SamplerType], None] = _accept
    """Raises UserError for options of the sampler that do not fit the sizes of a model."""
    check_transfer: Callable[[ConfigType, ConfigType], None] = lambda old, new: None
    """Raises UserError for two configurations between which weights lose their meaning, whatever their shapes."""

    def rolling_out(self, model: AnyModel) -> Callable[[Rollout], Tensor] | None:
        if self.roll_out is None:
            return None
        roll_out, typed = self.roll_out, cast(ModelType, model)
        return lambda rollout: roll_out(typed, rollout)

    def steps(self, config: ModelConfig, sampling: Mapping[str, object]) -> int:
        options = dataclass_from_dict(self.sampler, sampling, "Sampler options")
        return self.planned_steps(cast(ConfigType, config), options)

    def check_sampling(
        self, config: ModelConfig, sampling: Mapping[str, object], by_task: Mapping[str, Mapping[str, object]]
    ) -> None:
        chosen = {"sampling": {**sampling}} | {
            f"task_sampling.{task}": {**sampling, **own} for task, own in by_task.items()
        }
        for where, options in chosen.items():
            sampler = dataclass_from_dict(self.sampler, options, where)
            try:
                self.check_sampler(cast(ConfigType, config), sampler)
            except UserError as error:
                raise UserError(f"{where}: {error}") from None

    def batch_step(self, config: ModelConfig, task_weights: Mapping[str, float]) -> PrepareBatch:
        return self.prepare_batch(cast(ConfigType, config), task_weights)

    def transfer(self, old: AnyModel, model: AnyModel, before: Described, after: Described) -> TransferReport:
        if type(old) is not type(model):
            found, wanted = type(old).__name__, type(model).__name__
            raise UserError(
                f"The weights are those of a {found}, the recipe trains a {wanted}: start from another model."
            )
        self.check_transfer(cast(ConfigType, before.config), cast(ConfigType, after.config))
        return transferred(old.state_dict(), model, self.transfer_rules, before, after)

    def bind(self, parts: Parts[AnyModel]) -> "BoundFamily":
        return BoundFamily(self, cast(Parts[ModelType], parts))


class BoundFamily:
    """A family and one loaded model: a typed call or its keyword options in, a checked request out."""

    prepare: Callable[[Call], Request]
    """See `Generator.prepare`. Raises UserError for the call of another family."""
    build_call: Callable[[Mapping[str, object]], Call]
    """See `Family.build_call`."""
    record_steps: Callable[[Steps], None]
    """See `Generator.record_steps`."""
    web_world: Callable[[str], WebWorld]
    """See `Generator.web_world`."""

    def __init__(self, family: Family[CallType, ConfigType, ModelType, SamplerType], parts: Parts[ModelType]) -> None:
        generator = family.generator(parts)
        self.title, self.capabilities = family.title, family.capabilities
        self.record_steps, self.web_world = generator.record_steps, generator.web_world

        def prepare(call: Call) -> Request:
            if not isinstance(call, family.call):
                found, expected = type(call).__name__, family.call.__name__
                raise UserError(f"This is a model of {family.title}: it takes a {expected}, found a {found}.")
            return generator.prepare(call)

        def build_call(options: Mapping[str, object]) -> Call:
            return family.build_call(parts.index, options)

        self.prepare, self.build_call = prepare, build_call


def option_names(options: type) -> set[str]:
    """Names of the fields of a call or of a sampler's configuration."""
    return {f.name for f in fields(options)}
