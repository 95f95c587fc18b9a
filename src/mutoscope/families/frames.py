"""What families that generate frame by frame have in common: calls, requests, first frames, classes, actions."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int, Num, UInt8
from torch import Tensor

from mutoscope.data.fit import fit_frames
from mutoscope.errors import UserError
from mutoscope.families.actions import Action, ActionRows, Actions, action_row, spec_of
from mutoscope.families.base import (
    ACTIONS_FILE,
    PYTHON_ONLY,
    VIDEO_FILE,
    Call,
    Clips,
    Generator,
    Labels,
    ModelType,
    Parts,
    Prompts,
    Request,
    Steering,
    as_list,
)
from mutoscope.families.first_frames import GENERATED, FirstFrames
from mutoscope.json_config import nearest
from mutoscope.model_index import ModelIndex
from mutoscope.sampling.base import SampleEvent
from mutoscope.tokenizers.base import TokenizerSpec, checked_latents

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

NO_ACTIONS = "This model takes no actions. Omit them."
FROM_NOTHING = ("unconditional", "class-conditional", "text-conditional")  # tasks without a first frame

Changed = TypeVar("Changed", bound="DataclassInstance")


@dataclass(frozen=True, kw_only=True)
class FrameCall(Call):
    """The options that all of these families take."""

    task: str | None = None
    """One of the model's tasks, checked against the other options; None: what these imply."""
    class_label: Labels = None
    """Index or name of a class; None: drawn at random if nothing else is given."""
    context: Clips = field(default=None, metadata=VIDEO_FILE)
    """Frames that the clip starts with."""
    context_frames: int | None = None
    """How many of these frames to use; None: all of context, the first frame of a video."""
    first_frame: str | None = None
    """Name of one of the model's own first frames (`mutoscope models MODEL` lists them), or "none": the first frame is
    generated too. None: one of the class, or of any class, where the model has some and no task, prompt or context
    says otherwise."""
    task_video: Clips = field(default=None, metadata={**VIDEO_FILE, "flag": "video"})
    """Clip whose first frames are the context."""
    actions: Actions | None = field(default=None, metadata=ACTIONS_FILE)
    """What is done in each frame of the clip, by name as in "right*8 left+attack*2 dx=-2.5*4", or a file with one row
    per frame (.csv with or without names, .json, .npy). Unless num_frames says otherwise, each leads to one more frame.
    """
    endless: bool = field(default=False, metadata=PYTHON_ONLY)
    """Frames come until the caller stops; for streams."""


FrameCallType = TypeVar("FrameCallType", bound=FrameCall)


@dataclass(frozen=True, kw_only=True)
class FrameRequest(Request):
    """A checked call whose conditions may change from frame to frame."""

    generator: "FrameGenerator[Any, Any]"
    num_latent_frames: int | None = 1
    """Latent frames of the clip, those of the context among them; None: without an end."""
    actions: Float[Tensor, "b rows a"] | None = None
    """As the network reads them. Row t is done in frame t and leads to frame t + 1; NaN: unknown. Frames after the last
    action are unconditioned."""
    context: UInt8[Tensor, "n t h w 3"] | None = None
    """Frames that the clips start with, for every sample or one for all."""

    @abstractmethod
    def decoded(
        self, samples: slice, context: Num[Tensor, "n *c k h w"] | None, random: torch.Generator
    ) -> tuple[Iterator[SampleEvent], Steering]:
        """The sampler's events of some samples, and the handle on their conditions. context: encoded."""

    def events(self) -> Iterator[Iterator[SampleEvent]]:
        random, context = torch.Generator().manual_seed(self.seed), self.generator.encode_context(self.context)
        for samples in self.batches():
            yield self.decoded(samples, context, random)[0]

    def opening(self) -> UInt8[Tensor, "n t h w 3"] | None:
        return self.context

    def steered(self) -> tuple[Iterator[Iterator[SampleEvent]], Steering]:
        random, context = torch.Generator().manual_seed(self.seed), self.generator.encode_context(self.context)
        events, steering = self.decoded(slice(0, 1), context, random)
        return iter([events]), steering


class FrameGenerator(Generator[FrameCallType, ModelType]):
    """First frames, classes and actions of a call, in the form that the network reads."""

    def __init__(self, parts: Parts[ModelType]) -> None:
        super().__init__(parts)
        self.actions = spec_of(self.index.actions, self.model.config.action_size)
        self.first_frames = FirstFrames(self.parts.folder, self.index.first_frames)

    def fits_length(self, latent_frames: int) -> bool:
        """A window moves over clips of any length."""
        return True

    def check_task(self, call: FrameCallType) -> None:
        """Raise UserError unless the model does the task and reads the actions of a call."""
        task, tasks = call.task, self.model.config.tasks
        if task not in (None, *tasks):
            raise UserError(f"This model does not do {task!r}: {', '.join(tasks)}.")
        if task is not None and "prediction" in task and call.context is None and not self.first_frames:
            raise UserError(f"The task {task} needs first frames: give a context.")
        if task == "action-conditional" and call.actions is None:
            raise UserError("The task action-conditional needs actions, one row per frame: give them.")
        if call.actions is not None and self.model.config.action_size is None:
            raise UserError(NO_ACTIONS)

    def draws_first_frame(self, call: FrameCallType) -> bool:
        """Whether a call without a context starts from one of the model's own first frames, drawn at random."""
        return call.first_frame is None and call.task not in FROM_NOTHING

    def with_first_frames(self, call: FrameCallType, num_samples: int) -> FrameCallType:
        """The call with the model's own first frames as context, and their classes where it states none."""
        self._check_first_frame(call)
        is_named = call.first_frame not in (None, GENERATED)
        if call.context is not None or not self.first_frames or not (is_named or self.draws_first_frame(call)):
            return call
        labels = None if call.class_label is None else self.class_labels(call.class_label, num_samples, call.seed)
        names = self.first_frames.chosen(call.first_frame, labels, num_samples, call.seed)
        call = replace(call, context=[self.first_frames.read(name) for name in names])
        classes = self.first_frames.labels_of(names)
        are_known = min(classes) >= 0 and max(classes) < (self.model.config.num_classes or 0)
        if call.class_label is not None or call.task == "frame-prediction" or not are_known:
            return call
        return replace(call, class_label=classes)

    def _check_first_frame(self, call: FrameCallType) -> None:
        """Raises UserError where something else in a call decides its first frame."""
        if call.first_frame is None:
            return
        found = "no first frames of its own" if not self.first_frames else None
        found = f"the task {call.task}" if call.task in FROM_NOTHING else found
        found = "a context" if call.context is not None else found
        if found is not None:
            raise UserError(f"first_frame names a frame of the model's own, but there is {found}: omit it.")
        if call.first_frame == GENERATED and "prediction" in (call.task or ""):
            raise UserError(f"The task {call.task} needs first frames: name one in first_frame, or give a context.")

    def requested_labels(self, call: FrameCallType, num_samples: int, is_free: bool) -> Int[Tensor, " b"] | None:
        """The requested classes. If no other condition is given, a class is drawn at random for each sample."""
        if call.class_label is None and (not is_free or call.task not in (None, "class-conditional")):
            return None
        return self.class_labels(call.class_label, num_samples, call.seed)

    def default_length(self, actions: ActionRows | None) -> int:
        """Frames of a clip whose length is not stated: every action leads to one, else as in training."""
        if actions is None:
            return self.index.num_frames
        return self.tokenizer.spec.num_frames(len(actions.clips[0]) + 1)

    def action_rows(self, actions: ActionRows, num_samples: int, frames: int | None) -> Float[Tensor, "b rows a"]:
        """Actions as the network reads them, one row per latent frame, the same for all samples unless listed.

        Raises UserError where a clip of `frames` latent frames needs more.
        """
        assert self.actions is not None
        rows, needed = np.stack(actions.clips), (frames or 1) - 1  # (b or 1, rows, a)
        if rows.shape[1] < needed:
            raise UserError(
                f"{frames} latent frames need {needed} actions, found {rows.shape[1]}: give {needed - rows.shape[1]} "
                f"more, or omit num_frames for a clip of {self.tokenizer.spec.num_frames(rows.shape[1] + 1)} frames."
            )
        return torch.as_tensor(self.actions.scaled(rows)).expand(num_samples, -1, -1)

    def held_action(self, action: Action) -> Float[Tensor, "1 1 a"]:
        """One action as the network reads it. Raises UserError for a model without actions."""
        if self.actions is None:
            raise UserError(NO_ACTIONS)
        return torch.as_tensor(self.actions.scaled(action_row(action, self.actions)))[None, None]

    @torch.no_grad()
    def encode_context(self, context: UInt8[Tensor, "n t h w 3"] | None) -> Num[Tensor, "n *c k h2 w2"] | None:
        """Latents or codes of the context frames."""
        if context is None:
            return None
        latents = self.tokenizer.encode(self.tokenizer.from_uint8(context.to(self.device)))
        return checked_latents(latents, self.tokenizer)


def changed(change: Changed, conditions: Mapping[str, object]) -> Changed:
    """A change with these conditions. Raises UserError for a name that streams do not have."""
    known = {f.name for f in fields(change)}
    for name in conditions:
        if name not in known:
            raise UserError(f"A stream has no condition {name!r}: {nearest(name, known)}")
    return replace(change, **conditions)


def latent_frames(spec: TokenizerSpec, index: ModelIndex, num_frames: int) -> int:
    """Latent frames of a clip. Raises UserError unless the tokenizer decodes to exactly that length."""
    count = spec.latent_shape(num_frames, index.height, index.width)[0]
    longest = spec.num_frames(count)
    if num_frames < 1 or longest != num_frames:
        below = f"{spec.num_frames(count - 1)} or " if count > 1 else ""
        raise UserError(f"The tokenizer cannot decode {num_frames} frames; the nearest lengths are {below}{longest}.")
    return count


def context_clips(
    spec: TokenizerSpec, index: ModelIndex, context: Clips, count: int | None
) -> UInt8[Tensor, "n t h w 3"] | None:
    """The first `count` frames (None: all, or the first one of a file) of each context, at the model's size.

    Raises UserError for contexts of unequal lengths.
    """
    if context is None:
        return None
    found = as_list(context, max_frames=count or 1)
    clips = [fit_frames(frames[:count], index.height, index.width) for frames in found if frames is not None]
    lengths = {len(clip) for clip in clips}
    if len(lengths) > 1:
        raise UserError(f"All contexts must have the same number of frames, found {sorted(lengths)}.")
    latent_frames(spec, index, lengths.pop())
    return torch.stack([torch.as_tensor(clip) for clip in clips])  # (n, t, h, w, 3)


def unused_actions(actions: ActionRows, frames: int | None) -> tuple[str, ...]:
    """A warning if there are more actions than a clip of `frames` frames has, the last of which leads to none."""
    found = len(actions.clips[0])
    if frames is None or found <= frames:
        return ()
    return (f"A clip of {frames} frames reads {frames - 1} actions, found {found}: the others have no effect.",)


def implied_task(labels: Tensor | None, prompt: Prompts, clips: Tensor | None, actions: object) -> str:
    """The name of what a call without a task amounts to."""
    if clips is not None:
        return "frame-prediction" if labels is None else "class-conditional-frame-prediction"
    for name, value in (("action", actions), ("text", prompt), ("class", labels)):
        if value is not None:
            return f"{name}-conditional"
    return "unconditional"
