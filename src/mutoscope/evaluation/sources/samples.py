"""A model as the generated side of a protocol: each clip is asked for by the class, frames or video of a real one."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from mutoscope.data.fit import fit_frames
from mutoscope.errors import UserError
from mutoscope.evaluation.protocols.published import UNCONDITIONAL, VideoProtocol
from mutoscope.evaluation.sources.clips import PREDICTION_TASKS, call_seed, is_model
from mutoscope.evaluation.sources.windows import Window
from mutoscope.hub import weights_hash
from mutoscope.json_config import nearest
from mutoscope.sampling.tasks import check_task, needs_video, pixel_mask

ANY_LENGTH = ("nova", "magi")  # families whose clips are as long as one asks
Clips = UInt8[Tensor, "n t h w 3"]


@dataclass(frozen=True)
class Samples:
    """Clips of a model under a protocol. options: of the sampler, beside the model's own. paste_given: as there.

    Clip i depends on the seed and on the batch it is made in, so the same batches give the same clips.
    """

    pipeline: Any
    protocol: VideoProtocol
    task: str
    seed: int
    options: Mapping[str, Any]
    paste_given: bool = False
    num_frames: int | None = None

    @classmethod
    def of(
        cls,
        pipeline: Any,
        protocol: VideoProtocol,
        task: str | None,
        seed: int,
        options: Mapping[str, Any],
        paste_given: bool = False,
    ) -> "Samples":
        """Raises UserError for a model that cannot do what the protocol asks."""
        if not is_model(pipeline):
            raise UserError(f"Protocol {protocol.name!r} measures models and videos; this is a tokenizer alone.")
        task = chosen_task(protocol, task, pipeline.index.tasks)
        length = clip_length(pipeline, protocol, task)
        given = {name: value for name, value in options.items() if value is not None}
        return cls(pipeline, protocol, task, seed, given, paste_given or protocol.paste_given, length)

    @property
    def takes_classes(self) -> bool:
        return self.task.startswith("class-conditional")

    @property
    def takes_pixels(self) -> bool:
        return self.task != UNCONDITIONAL and needs_video(self.task)

    @property
    def given_frames(self) -> int:
        """First frames that a prediction starts from."""
        return max(self.protocol.given_frames, 1)

    def departures(self) -> list[str]:
        """What makes the clips other ones than the protocol's."""
        made = (self.pipeline.index.height, self.pipeline.index.width)
        if self.protocol.size in (None, made):
            return []
        wanted = self.protocol.size
        return [f"clips of {made[0]}×{made[1]} brought to {wanted[0]}×{wanted[1]}"]

    def described(self) -> dict[str, object]:
        """What the clips depend on beside the conditions."""
        index = self.pipeline.index
        return {
            "task": self.task,
            "seed": self.seed,
            "sampling": {**index.sampling, **index.task_sampling.get(self.task, {}), **self.options},
            "blend_given": index.blend_given,
            "paste_given": self.paste_given,
            "model_sha256": weights_hash(self.pipeline.tokenizer, self.pipeline.model),
        }

    def make(self, first: int, count: int, labels: Sequence[int] | None, real: Clips | None) -> Clips:
        """Clips first ... first + count - 1, in one call: of these classes, from these real clips."""
        given: dict[str, Any] = {"num_samples": count} if self.task == UNCONDITIONAL else {"task": self.task}
        given |= {} if labels is None else {"class_label": list(labels)}
        if self.task in PREDICTION_TASKS and real is not None:
            given["context"] = list(real[:, : self.given_frames].numpy())
        elif real is not None:
            given["task_video"] = list(real.numpy())
        if self.num_frames is not None:
            given["num_frames"] = self.num_frames
        made = self.pipeline(**given, seed=call_seed(self.seed, first), batch_size=count, **self.options)
        clips = self._fitted(made if isinstance(made, list | tuple) else [made])
        return self._pasted(clips, real) if self.paste_given and real is not None else clips

    def _fitted(self, made: Sequence[Any]) -> Clips:
        """The frames that count, at the protocol's size."""
        frames = [np.asarray(clip.frames)[: self.protocol.num_frames] for clip in made]
        height, width = self.protocol.size or frames[0].shape[1:3]
        return torch.from_numpy(np.stack([fit_frames(clip, height, width) for clip in frames]))

    def _pasted(self, clips: Clips, real: Clips) -> Clips:
        mask = pixel_mask(self.task, *clips.shape[1:4], self.given_frames)
        shown = np.stack([fit_frames(clip, *clips.shape[2:4]) for clip in real.numpy()])
        return torch.where(mask[..., None], torch.from_numpy(shown), clips)


def chosen_task(protocol: VideoProtocol, asked: str | None, known: Sequence[str]) -> str:
    """The protocol's task, or the one asked for where it has several, if the model was trained for it."""
    if asked is not None and asked not in protocol.tasks:
        raise UserError(f"Protocol {protocol.name!r} has no task {asked!r}: {nearest(asked, protocol.tasks)}")
    possible = [task for task in protocol.tasks if can_do(task, known)]
    if asked is None and len(protocol.tasks) > 1 and len(possible) != 1:
        both = ", ".join(possible) or "none of them"
        raise UserError(f"Protocol {protocol.name!r} measures one task at a time: say --task (this model does {both}).")
    task = asked or (possible or list(protocol.tasks))[0]
    if not can_do(task, known):
        if task == UNCONDITIONAL:
            raise UserError(f"Protocol {protocol.name!r} gives nothing to go by; this model does {', '.join(known)}.")
        check_task(task, tuple(known))
    return task


def can_do(task: str, known: Sequence[str]) -> bool:
    """A model of classes draws them where none is given."""
    return task in known or (task == UNCONDITIONAL and "class-conditional" in known)


def clip_length(pipeline: Any, protocol: VideoProtocol, task: str) -> int | None:
    """Frames to ask for, None for the model's own length. Raises UserError where clips would be too short."""
    index, wanted = pipeline.index, protocol.num_frames
    if index.family in ANY_LENGTH:
        spec = pipeline.tokenizer.spec
        return spec.num_frames(spec.latent_shape(wanted, index.height, index.width)[0])
    if index.num_frames < wanted:
        raise UserError(
            f"Protocol {protocol.name!r} compares clips of {wanted} frames; this model makes {index.num_frames}."
        )
    whole = task not in (UNCONDITIONAL, *PREDICTION_TASKS) and needs_video(task)
    if whole and index.num_frames != wanted:
        raise UserError(f"The task {task!r} completes clips of {index.num_frames} frames, the real ones have {wanted}.")
    return None


def class_numbers(samples: Samples, names: Sequence[str]) -> list[int]:
    """The model's numbers of a data set's classes. Raises UserError where the model does not know one of them."""
    own, count = samples.pipeline.index.class_names, samples.pipeline.model.config.num_classes
    if own is None:
        if len(names) > count:
            raise UserError(f"The real videos have {len(names)} classes, this model {count}: they are not its data.")
        return list(range(len(names)))
    numbers = {name.lower(): number for number, name in enumerate(own)}
    if unknown := [name for name in names if name.lower() not in numbers]:
        raise UserError(
            f"This model knows no class {unknown[0]!r} of the real videos ({len(unknown)} of {len(names)} are unknown "
            "to it): it was trained on other data."
        )
    return [numbers[name.lower()] for name in names]


def asked_classes(
    samples: Samples, classes: Sequence[str], conditions: Sequence[Window] | None, count: int
) -> tuple[tuple[int, ...] | None, str]:
    """Class of every clip to make, by the model's numbers, and how they were chosen; None for tasks without classes.

    They are those of the real clips where these have any and the protocol says so; otherwise all in equal numbers.
    """
    if not samples.takes_classes:
        return None, ""
    if not samples.pipeline.model.config.num_classes:
        raise UserError(f"Protocol {samples.protocol.name!r} asks for classes; this model knows none.")
    numbers = class_numbers(samples, classes)
    labels = [window.file.label for window in conditions or ()]
    if labels and min(labels) >= 0 and samples.protocol.labels == "real":
        return tuple(numbers[label] for label in labels), "classes as they come with the real clips"
    numbers = numbers or list(range(samples.pipeline.model.config.num_classes))
    return tuple(numbers[i % len(numbers)] for i in range(count)), f"{len(numbers)} classes in equal numbers"


def cycled(windows: Sequence[Window], count: int, seed: int) -> tuple[Window, ...]:
    """That many real clips in random order, each once before any comes again."""

    def endless() -> Iterator[Window]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            yield from (windows[i] for i in torch.randperm(len(windows), generator=generator).tolist())

    return tuple(islice(endless(), count))
