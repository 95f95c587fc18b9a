"""Models of actions as an evaluation uses them: clips and endless streams under recorded actions, in batches."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor
from tqdm import tqdm

from mutoscope.actions import ActionSpec
from mutoscope.errors import UserError
from mutoscope.evaluation.sources.model_clips import model_hash, reconstructed
from mutoscope.evaluation.sources.opened import ModelSource, SourceLike, open_source
from mutoscope.families.actions import ActionRows, spec_of
from mutoscope.pipeline import VideoPipeline
from mutoscope.text.letters import folded

Frames = UInt8[np.ndarray, "n t h w 3"]
ACTION_TASK = "action-conditional"  # what reports call the clips


@dataclass(frozen=True)
class Starts:
    """What the clips of one batch are conditioned on.

    context: their first frames. actions: row t is done in frame t of the clip, that of the context included, and leads
    to frame t + 1. labels, captions: of the episodes, as far as these have any.
    """

    context: Frames
    actions: Float32[np.ndarray, "n rows a"]
    labels: tuple[str | None, ...] = ()
    captions: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.context)


class StreamModel(ABC):
    """A model whose frames follow from earlier frames and actions.

    spec: its actions. size: height and width of its frames. fps: of its clips. window: frames that the model sees at a
    time, the one in progress among them.
    """

    spec: ActionSpec
    size: tuple[int, int]
    fps: float
    window: int

    @abstractmethod
    def clips(self, starts: Starts, num_frames: int, seed: int) -> Frames:
        """Clips of `num_frames` frames that begin with the context."""

    @abstractmethod
    def stream(self, starts: Starts, seed: int) -> Iterator[UInt8[np.ndarray, "n h w 3"]]:
        """One frame after the other that follows the context, for all samples, until the caller stops."""

    @abstractmethod
    def reconstructed(self, frames: Frames) -> Frames:
        """Frames encoded and decoded by the tokenizer: the best that the model can show."""

    @abstractmethod
    def described(self) -> dict[str, object]:
        """What the clips depend on beside their conditions, as JSON."""


@dataclass(frozen=True)
class PipelineStreams(StreamModel):
    """A loaded model. options: of its sampler, beside the model's defaults."""

    pipeline: VideoPipeline
    spec: ActionSpec
    options: Mapping[str, object]

    @property
    def size(self) -> tuple[int, int]:
        return self.pipeline.index.frame_size

    @property
    def fps(self) -> float:
        return self.pipeline.index.fps

    @property
    def window(self) -> int:
        sampling = {**self.pipeline.index.sampling_for(None), **self.options}
        return int(str(sampling.get("window") or self.pipeline.model.config.latent_shape[0]))

    def clips(self, starts: Starts, num_frames: int, seed: int) -> Frames:
        call = self._conditions(starts, starts.actions[:, : num_frames - 1])
        with tqdm(desc="generate", unit="step", disable=None, leave=False) as bar:
            generation = self.pipeline.generate(
                on_step=lambda event: bar.update(), num_frames=num_frames, seed=seed, **call
            )
        return np.stack([clip.frames for clip in generation.clips])

    def stream(self, starts: Starts, seed: int) -> Iterator[UInt8[np.ndarray, "n h w 3"]]:
        known = starts.context.shape[1]  # the first part hands the context over, too
        for part in self.pipeline.stream_batch(seed=seed, **self._conditions(starts, starts.actions)):
            yield from np.moveaxis(part[:, known:], 1, 0)
            known = max(0, known - part.shape[1])

    def _conditions(self, starts: Starts, actions: Float32[np.ndarray, "n rows a"]) -> dict[str, object]:
        call: dict[str, object] = {
            "context": list(starts.context),
            "actions": ActionRows(tuple(actions), is_listed=True),
            "batch_size": len(starts),
            **self.options,
        }
        if classes := self._classes(starts.labels):
            call["class_label"] = classes
        if self.pipeline.model.config.text is not None and any(starts.captions):
            call["prompt"] = list(starts.captions)
        return call

    def _classes(self, labels: Sequence[str | None]) -> list[str]:
        """The classes of the episodes, if the model knows all of them by name."""
        known = {folded(name) for name in self.pipeline.index.class_names or ()}
        named = [label for label in labels if label is not None and folded(label) in known]
        return named if labels and len(named) == len(labels) else []

    def reconstructed(self, frames: Frames) -> Frames:
        return reconstructed(self.pipeline.tokenizer, torch.from_numpy(frames))[0].numpy()

    def described(self) -> dict[str, object]:
        index = self.pipeline.index
        return {
            "task": ACTION_TASK,
            "sampling": {**index.sampling_for(None), **self.options},
            "model_sha256": model_hash(self.pipeline),
        }


def open_streams(
    source: SourceLike | StreamModel, options: Mapping[str, object], device: torch.device | str
) -> StreamModel:
    """The model of a source. Raises UserError for one that has no actions, or that does not stream."""
    if isinstance(source, StreamModel):
        return source
    opened = open_source(source, device)
    if not isinstance(opened, ModelSource):
        raise UserError("This protocol measures a model that is steered by actions: name a model, not videos.")
    pipeline = opened.pipeline
    size = pipeline.model.config.action_size
    if size is None:
        raise UserError("This model takes no actions, so there is no control to measure: name a model with actions.")
    if not pipeline.family.capabilities.endless or not pipeline.tokenizer.spec.decodes_in_order:
        raise UserError("This model does not generate streams without an end, which this protocol measures.")
    if pipeline.tokenizer.spec.temporal_stride > 1:
        raise UserError(
            f"The tokenizer of this model joins {pipeline.tokenizer.spec.temporal_stride} frames: this protocol "
            "measures models with one action for every frame."
        )
    spec = spec_of(pipeline.index.actions, size)
    assert spec is not None
    return PipelineStreams(pipeline, spec, {name: value for name, value in options.items() if value is not None})


def as_tensor(frames: UInt8[np.ndarray, "*shape"]) -> UInt8[Tensor, "*shape"]:
    """Frames as the metrics read them."""
    return torch.from_numpy(np.ascontiguousarray(frames))
