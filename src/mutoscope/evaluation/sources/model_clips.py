"""Clips that a model generates for an evaluation, or that a tokenizer reconstructs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from tqdm import tqdm

from mutoscope.data.fit import Frames, fit_frames
from mutoscope.errors import UserError
from mutoscope.evaluation.protocols.published import UNCONDITIONAL, VideoProtocol
from mutoscope.evaluation.sources.windows import Window
from mutoscope.hub import weights_hash
from mutoscope.json_config import nearest
from mutoscope.pipeline import VideoPipeline
from mutoscope.sampling.base import SampleEvent
from mutoscope.sampling.tasks import check_task, needs_video, pixel_mask
from mutoscope.text.letters import folded
from mutoscope.tokenizers.base import VideoTokenizer

Clips = UInt8[Tensor, "n t h w 3"]
PREDICTION_TASKS = ("frame-prediction", "class-conditional-frame-prediction")
SEED_STEP = 1_000_003  # a prime above the number of calls of any evaluation: calls of two seeds never share one


class Conditions(TypedDict, total=False):
    """Conditions of one call of a pipeline; a list holds one entry per sample."""

    task: str
    class_label: str | list[str] | list[int] | None
    prompt: list[str]
    context: list[Frames]
    task_video: list[Frames]
    num_samples: int
    num_frames: int
    batch_size: int


def call_seed(seed: int, number: int) -> int:
    """Seed of call `number` of a run: different for all calls, below 2^63."""
    return (seed * SEED_STEP + number) % 2**63


@dataclass(frozen=True)
class ModelClips:
    """A model that generates clips call by call. `options`: of its sampler, beside the model's defaults.

    The clips of a call depend on the seed, the number of the call and its conditions alone.
    """

    pipeline: VideoPipeline
    seed: int
    options: Mapping[str, object]

    def generate(self, number: int, conditions: Conditions) -> list[UInt8[Tensor, "t h w 3"]]:
        """The clips of call `number`."""
        seed = call_seed(self.seed, number)
        # A call may take minutes: its own bar shows that it moves, on a terminal only.
        with tqdm(desc="generate", unit="step", disable=None, leave=False) as bar:

            def advance(event: SampleEvent) -> None:
                bar.update()

            generation = self.pipeline.generate(on_step=advance, **conditions, seed=seed, **self.options)
        return [torch.as_tensor(np.asarray(clip.frames)) for clip in generation.clips]

    def described(self, task: str) -> dict[str, object]:
        """Everything the clips depend on beside their conditions."""
        index = self.pipeline.index
        return {
            "task": task,
            "seed": self.seed,
            "sampling": {**index.sampling, **index.task_sampling.get(task, {}), **self.options},
            "blend_given": index.blend_given,
            "model_sha256": model_hash(self.pipeline),
        }


def model_hash(pipeline: VideoPipeline) -> str:
    """SHA-256 of the weights of tokenizer and network."""
    parts = (pipeline.tokenizer, pipeline.model)
    return weights_hash(*(part for part in parts if part is not None))


def prediction_task(tasks: Iterable[str]) -> str | None:
    """The task by which a model predicts from a first frame; None if it has none."""
    return next((task for task in PREDICTION_TASKS if task in tasks), None)


def takes_pixels(task: str) -> bool:
    """Whether a task is conditioned on pixels of a real clip."""
    return task != UNCONDITIONAL and needs_video(task)


def pixel_conditions(task: str, real: Clips, context_frames: int = 1) -> Conditions:
    """Pixels of real clips that condition `task`: their first frames or the whole clip; none for other tasks."""
    if task in PREDICTION_TASKS:
        return {"context": list(real[:, :context_frames].numpy())}
    return {"task_video": list(real.numpy())} if takes_pixels(task) else {}


@torch.inference_mode()
def reconstructed(
    tokenizer: VideoTokenizer, video: Clips
) -> tuple[Clips, Int[Tensor, "n lt lh lw"] | Float[Tensor, "n d lt lh lw"]]:
    """Clips encoded and decoded again, and their tokens or latents, both on the CPU."""
    device = next(tokenizer.parameters()).device
    tokens = tokenizer.encode(tokenizer.from_uint8(video.to(device)))
    return tokenizer.to_uint8(tokenizer.decode(tokens)).cpu(), tokens.cpu()


# ---------------------------------------------------------------------------------------- under published protocols


@dataclass(frozen=True)
class ProtocolClips:
    """A model as the generated side of a published protocol; each clip has the conditions of a real one.

    `paste_given`: put the conditioning pixels back over the result. `num_frames`: requested length, None for the
    model's own. Clip i depends on the seed and on its batch, so the same batches give the same clips.
    """

    model: ModelClips
    protocol: VideoProtocol
    task: str
    paste_given: bool = False
    num_frames: int | None = None

    @classmethod
    def of(
        cls,
        pipeline: VideoPipeline,
        protocol: VideoProtocol,
        task: str | None,
        seed: int,
        options: Mapping[str, object],
        paste_given: bool = False,
    ) -> "ProtocolClips":
        """Raises UserError for a model that cannot do the protocol's task."""
        task = chosen_task(protocol, task, pipeline.index.tasks)
        length = clip_length(pipeline, protocol, task)
        chosen = {name: value for name, value in options.items() if value is not None}
        model = ModelClips(pipeline, seed, chosen)
        return cls(model, protocol, task, paste_given or protocol.paste_given, length)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the model's clips in pixels."""
        index = self.model.pipeline.index
        return index.height, index.width

    @property
    def takes_classes(self) -> bool:
        return self.task.startswith("class-conditional")

    @property
    def takes_pixels(self) -> bool:
        return takes_pixels(self.task)

    @property
    def given_frames(self) -> int:
        """Number of context frames of a prediction."""
        return max(self.protocol.given_frames, 1)

    def departures(self) -> list[str]:
        """Differences of the clips from the protocol's."""
        if self.protocol.size in (None, self.size):
            return []
        (h, w), wanted = self.size, self.protocol.size
        return [f"clips of {h}×{w} brought to {wanted[0]}×{wanted[1]}"]

    def described(self) -> dict[str, object]:
        """Everything the clips depend on beside their conditions."""
        return self.model.described(self.task) | {"paste_given": self.paste_given}

    def generate(self, first: int, count: int, labels: Sequence[int] | None, real: Clips | None) -> Clips:
        """Clips first ... first + count - 1 in a single call, of these classes and with pixels of these real clips."""
        conditions = Conditions(batch_size=count)
        if self.task == UNCONDITIONAL:
            conditions["num_samples"] = count
        else:
            conditions["task"] = self.task
        if labels is not None:
            conditions["class_label"] = list(labels)
        if real is not None:
            conditions.update(pixel_conditions(self.task, real, self.given_frames))
        if self.num_frames is not None:
            conditions["num_frames"] = self.num_frames
        clips = self._fitted(self.model.generate(first, conditions))
        return self._pasted(clips, real) if self.paste_given and real is not None else clips

    def _fitted(self, clips: Sequence[Tensor]) -> Clips:
        """The protocol's number of frames, at its size."""
        frames = [clip.numpy()[: self.protocol.num_frames] for clip in clips]
        height, width = self.protocol.size or frames[0].shape[1:3]
        return torch.from_numpy(np.stack([fit_frames(clip, height, width) for clip in frames]))

    def _pasted(self, clips: Clips, real: Clips) -> Clips:
        mask = pixel_mask(self.task, *clips.shape[1:4], self.given_frames)
        shown = np.stack([fit_frames(clip, *clips.shape[2:4]) for clip in real.numpy()])
        return torch.where(mask[..., None], torch.from_numpy(shown), clips)


def chosen_task(protocol: VideoProtocol, requested: str | None, known: Sequence[str]) -> str:
    """The requested task, or the protocol's if it has one only. Raises UserError unless the model can do it."""
    if requested is not None and requested not in protocol.tasks:
        raise UserError(f"Protocol {protocol.name!r} has no task {requested!r}: {nearest(requested, protocol.tasks)}")
    possible = [task for task in protocol.tasks if can_do(task, known)]
    if requested is None and len(protocol.tasks) > 1 and len(possible) != 1:
        listed = ", ".join(possible) or "none of them"
        raise UserError(
            f"Protocol {protocol.name!r} measures one task at a time: name it with --task (this model does {listed})."
        )
    task = requested or (possible or list(protocol.tasks))[0]
    if not can_do(task, known):
        if task == UNCONDITIONAL:
            raise UserError(f"Protocol {protocol.name!r} sets no condition; this model does {', '.join(known)}.")
        check_task(task, tuple(known))
    return task


def can_do(task: str, known: Sequence[str]) -> bool:
    """Whether a model can do a task; a class-conditional one also generates without a class, which it draws."""
    return task in known or (task == UNCONDITIONAL and "class-conditional" in known)


def clip_length(pipeline: VideoPipeline, protocol: VideoProtocol, task: str) -> int | None:
    """Frames to request, None for the model's own length. Raises UserError if clips would be too short."""
    index, wanted = pipeline.index, protocol.num_frames
    if pipeline.family.capabilities.any_length:
        spec = pipeline.tokenizer.spec
        return spec.num_frames(spec.latent_shape(wanted, index.height, index.width)[0])
    if index.num_frames < wanted:
        raise UserError(
            f"Protocol {protocol.name!r} compares clips of {wanted} frames; this model generates {index.num_frames}."
        )
    whole = task not in PREDICTION_TASKS and takes_pixels(task)
    if whole and index.num_frames != wanted:
        raise UserError(f"The task {task!r} completes clips of {index.num_frames} frames, the real ones have {wanted}.")
    return None


def class_numbers(clips: ProtocolClips, names: Sequence[str]) -> list[int]:
    """The model's labels of a dataset's classes. Raises UserError if the model does not know one of them."""
    pipeline = clips.model.pipeline
    own, count = pipeline.index.class_names, pipeline.model.config.num_classes or 0
    if own is None:
        if len(names) > count:
            raise UserError(f"The real videos have {len(names)} classes, this model {count}: they are not its data.")
        return list(range(len(names)))
    numbers = {folded(name): number for number, name in enumerate(own)}
    if unknown := [name for name in names if folded(name) not in numbers]:
        raise UserError(
            f"This model knows no class {unknown[0]!r} of the real videos ({len(unknown)} of {len(names)} are unknown "
            "to it): it was trained on other data."
        )
    return [numbers[folded(name)] for name in names]


def chosen_classes(
    clips: ProtocolClips, classes: Sequence[str], conditions: Sequence[Window] | None, count: int
) -> tuple[tuple[int, ...] | None, str]:
    """The model's label of every clip and a note on their choice; None for tasks without classes.

    Labels are those of the real clips if these have any and the protocol says so; otherwise classes come in equal
    numbers.
    """
    if not clips.takes_classes:
        return None, ""
    num_classes = clips.model.pipeline.model.config.num_classes
    if not num_classes:
        raise UserError(f"Protocol {clips.protocol.name!r} needs a model with classes; this one has none.")
    numbers = class_numbers(clips, classes)
    labels = [window.file.label for window in conditions or ()]
    if labels and min(labels) >= 0 and clips.protocol.labels == "real":
        return tuple(numbers[label] for label in labels), "classes as they come with the real clips"
    numbers = numbers or list(range(num_classes))
    return tuple(numbers[i % len(numbers)] for i in range(count)), f"{len(numbers)} classes in equal numbers"
