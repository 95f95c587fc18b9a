"""FAR: clips of any length from classes, actions and first frames, by flow matching frame by frame.

arXiv 2503.19325.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import cast

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from mutoscope.errors import UserError
from mutoscope.families.actions import Action, ActionRows, Actions, action_row, read_actions, spec_of
from mutoscope.families.base import (
    ACTIONS_FILE,
    PYTHON_ONLY,
    VIDEO_FILE,
    Call,
    Capabilities,
    Clips,
    Family,
    Generator,
    Labels,
    PaperModel,
    Parts,
    Request,
    Rollout,
    Steering,
    common_length,
    option_names,
)
from mutoscope.families.first_frames import GENERATED, FirstFrames
from mutoscope.families.frames import context_clips, implied_task, latent_frames, unused_actions
from mutoscope.families.transfer import Change, TransferRule, class_rows, columns_by_name
from mutoscope.json_config import dataclass_from_dict, nearest
from mutoscope.models.far import FAR, PAPER_SIZES, FARBatch, FARCache, FARConfig, FrameConditions
from mutoscope.sampling.base import SampleEvent
from mutoscope.sampling.frame_flow import FlowCondition, FrameFlowSampler, FrameFlowSamplerConfig
from mutoscope.tokenizers.base import checked_latents

NO_ACTIONS = "This model takes no actions. Omit them."
FROM_NOTHING = ("unconditional", "class-conditional")  # tasks without a first frame


@dataclass(frozen=True, kw_only=True)
class FARCall(Call):
    """One call of a FAR model: a class, actions, frames to continue, or several of them."""

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
    generated too. None: one of the class, or of any class, where the model has some and no task or context says
    otherwise."""
    task_video: Clips = field(default=None, metadata={**VIDEO_FILE, "flag": "video"})
    """Clip whose first frames are the context."""
    actions: Actions | None = field(default=None, metadata=ACTIONS_FILE)
    """What is done in each frame of the clip, by name as in "forward*8 left*2", or a file with one row per frame (.csv
    with or without names, .json, .npy). Unless num_frames says otherwise, each leads to one more frame."""
    endless: bool = field(default=False, metadata=PYTHON_ONLY)
    """Frames come until the caller stops; for streams."""
    sampling: FrameFlowSamplerConfig = field(default_factory=FrameFlowSamplerConfig)


@dataclass(frozen=True, kw_only=True)
class FARChange:
    """Conditions that change from the next frame of a stream on; None leaves a condition as it is."""

    class_label: int | str | None = None
    action: Action | None = None
    """{name: number} with 0 for absent names, all numbers in order, or a text such as "forward"; "?" for an unknown
    action. Held until the next change."""


@dataclass(frozen=True, kw_only=True)
class FARRequest(Request):
    """A checked call. A missing condition is encoded as: label −1, NaN actions."""

    generator: "FARGenerator"
    sampler: FrameFlowSamplerConfig
    num_latent_frames: int | None = 1
    """Latent frames of the clip, those of the context among them; None: without an end."""
    actions: Float[Tensor, "b rows a"] | None = None
    """As the network reads them. Row t is done in frame t and leads to frame t + 1; NaN: unknown. Frames after the last
    action are unconditioned."""
    context: UInt8[Tensor, "n t h w 3"] | None = None
    """Frames that the clips start with, for every sample or one for all."""

    def events(self) -> Iterator[Iterator[SampleEvent]]:
        random, context = torch.Generator().manual_seed(self.seed), self.generator.encode_context(self.context)
        for samples in self.batches():
            steering = FARSteering(self.generator, self, samples)
            yield self.generator.decode(self, samples, context, steering, random)

    def opening(self) -> UInt8[Tensor, "n t h w 3"] | None:
        return self.context

    def steered(self) -> tuple[Iterator[Iterator[SampleEvent]], Steering]:
        samples = slice(0, 1)
        steering = FARSteering(self.generator, self, samples)
        random, context = torch.Generator().manual_seed(self.seed), self.generator.encode_context(self.context)
        return iter([self.generator.decode(self, samples, context, steering, random)]), steering


class FARGenerator(Generator[FARCall, FAR]):
    """Conditions and first frames in, latents out."""

    def __init__(self, parts: Parts[FAR]) -> None:
        super().__init__(parts)
        self.actions = spec_of(self.index.actions, self.model.config.action_size)
        self.first_frames = FirstFrames(self.parts.folder, self.index.first_frames)

    def fits_length(self, latent_frames: int) -> bool:
        """A window moves over clips of any length."""
        return True

    def prepare(self, call: FARCall) -> FARRequest:
        self.check_call(call)
        if call.task_video is not None:
            call = replace(call, context=call.task_video, context_frames=call.context_frames or 1)
        self.check_task(call)
        actions = None if call.actions is None or self.actions is None else read_actions(call.actions, self.actions)
        listed = actions.clips if actions is not None and actions.is_listed else None
        given = {"class_label": call.class_label, "context": call.context, "actions": listed}
        num_samples = common_length(call.num_samples, **given)
        check_sampler(self.model.config, call.sampling)
        call = self._with_first_frames(call, num_samples)
        clips = context_clips(self.tokenizer.spec, self.index, call.context, call.context_frames)
        num_frames = None if call.endless else call.num_frames or self._default_length(actions)
        frames = None if num_frames is None else latent_frames(self.tokenizer.spec, self.index, num_frames)
        left = self._check_context(clips, frames, num_frames, call.sampling)
        labels = self._labels(call, num_samples, is_free=clips is None and call.actions is None)
        return FARRequest(
            generator=self,
            task=call.task or implied_task(labels, None, clips, call.actions),
            num_samples=num_samples,
            seed=call.seed,
            num_steps=(left or 0) * call.sampling.num_decoding_steps,
            num_frames=num_frames,
            sampling=vars(call.sampling),
            sampler=call.sampling,
            labels=labels,
            batch_size=max(call.batch_size, 1),
            num_latent_frames=frames,
            actions=None if actions is None else self.action_rows(actions, num_samples, frames),
            context=clips,
            warnings=() if actions is None else (*actions.warnings, *unused_actions(actions, frames)),
        )

    # -------------------------------------------------------------------------------------------------- checks

    def check_task(self, call: FARCall) -> None:
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

    def _with_first_frames(self, call: FARCall, num_samples: int) -> FARCall:
        """The call with the model's own first frames as context, and their classes where it states none."""
        self._check_first_frame(call)
        is_drawn = call.first_frame is None and call.task not in FROM_NOTHING
        is_named = call.first_frame not in (None, GENERATED)
        if call.context is not None or not self.first_frames or not (is_drawn or is_named):
            return call
        labels = None if call.class_label is None else self.class_labels(call.class_label, num_samples, call.seed)
        names = self.first_frames.chosen(call.first_frame, labels, num_samples, call.seed)
        call = replace(call, context=[self.first_frames.read(name) for name in names])
        classes = self.first_frames.labels_of(names)
        are_known = min(classes) >= 0 and max(classes) < (self.model.config.num_classes or 0)
        if call.class_label is not None or call.task == "frame-prediction" or not are_known:
            return call
        return replace(call, class_label=classes)

    def _check_first_frame(self, call: FARCall) -> None:
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

    def _check_context(
        self,
        clips: UInt8[Tensor, "n t h w 3"] | None,
        frames: int | None,
        num_frames: int | None,
        sampler: FrameFlowSamplerConfig,
    ) -> int | None:
        """Latent frames left to generate; None without an end."""
        known = 0 if clips is None else latent_frames(self.tokenizer.spec, self.index, clips.shape[1])
        config, window = self.model.config, sampler.window
        if window is None and (frames is None or config.is_long):
            window = config.latent_shape[0]
        if window is not None and known >= window:
            what = "long window" if config.is_long else "window"
            raise UserError(
                f"The context is {known} latent frames long, but the {what} of this model holds {window}, the one in "
                f"progress among them: give at most {window - 1}, for example with context_frames."
            )
        if frames is not None and known >= frames:
            raise UserError(f"The context is as long as the clip: raise num_frames above {num_frames}.")
        return None if frames is None else frames - known

    def _labels(self, call: FARCall, num_samples: int, is_free: bool) -> Int[Tensor, " b"] | None:
        """The requested classes. If no other condition is given, a class is drawn at random for each sample."""
        if call.class_label is None and (not is_free or call.task not in (None, "class-conditional")):
            return None
        return self.class_labels(call.class_label, num_samples, call.seed)

    def _default_length(self, actions: ActionRows | None) -> int:
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

    # ------------------------------------------------------------------------------------------------ sampling

    @torch.no_grad()
    def encode_context(self, context: UInt8[Tensor, "n t h w 3"] | None) -> Float[Tensor, "n c k h2 w2"] | None:
        """Latents of the context frames."""
        if context is None:
            return None
        latents = self.tokenizer.encode(self.tokenizer.from_uint8(context.to(self.device)))
        return checked_latents(latents, self.tokenizer)

    def decode(
        self,
        request: FARRequest,
        samples: slice,
        context: Float[Tensor, "n c k h w"] | None,
        steering: "FARSteering",
        random: torch.Generator,
    ) -> Iterator[SampleEvent]:
        """The sampler's events of one batch."""
        count = steering.num_samples
        if context is not None:
            context = context.expand(count, *context.shape[1:]) if len(context) == 1 else context[samples]
        condition = FlowCondition(steering.at, count, request.num_latent_frames, context)
        return FrameFlowSampler[FrameConditions, FARCache](request.sampler).sample(self.model, condition, random)


class FARSteering(Steering):
    """The conditions of a batch, frame by frame.

    A frame in progress reads the action that is held, as if it went on; once finished, the frame is read with the
    action that was really done in it, which leads to the next one.
    """

    def __init__(self, generator: FARGenerator, request: FARRequest, samples: slice) -> None:
        self._generator, self._device = generator, generator.device
        self.num_samples = samples.stop - samples.start
        config = generator.model.config
        self._passes = request.sampler.num_passes(config.is_conditional)
        self._is_free = request.sampler.guidance_scale == 0
        self._actions = None if request.actions is None else request.actions[samples]
        self._held: Tensor | None = None
        no_label = torch.full((self.num_samples,), -1)
        self._label = self._for_all(no_label if request.labels is None else request.labels[samples], -1)

    def _for_all(self, values: Tensor, missing: float) -> Tensor:
        """Values for the rows of all guidance passes: the second pass, or with a scale of 0 the only one, has none."""
        values = torch.full_like(values, missing) if self._is_free else values
        values = torch.cat([values, torch.full_like(values, missing)]) if self._passes == 2 else values
        return values.to(self._device)

    def at(self, frame: int) -> FrameConditions:
        """Conditions of a 0-based latent frame for the rows of all passes."""
        return FrameConditions(self._label, self._action(frame))

    def _action(self, frame: int) -> Float[Tensor, "rows 1 a"] | None:
        """The action done in the frame."""
        size = self._generator.model.config.action_size
        if size is None:
            return None
        action = torch.full((self.num_samples, 1, size), torch.nan)
        if self._held is not None:
            action = self._held.expand(self.num_samples, 1, -1)
        elif self._actions is not None and frame < self._actions.shape[1]:
            action = self._actions[:, frame : frame + 1]
        return self._for_all(action, torch.nan)

    def change(self, **conditions: object) -> None:
        known = {f.name for f in fields(FARChange)}
        for name in conditions:
            if name not in known:
                raise UserError(f"A stream has no condition {name!r}: {nearest(name, known)}")
        self.apply(replace(FARChange(), **conditions))

    def apply(self, change: FARChange) -> None:
        """See `FARChange`. Raises UserError for conditions that the model does not read."""
        generator, count = self._generator, self.num_samples
        # Everything is checked before anything changes.
        labels = None if change.class_label is None else generator.class_labels(change.class_label, count, 0)
        held = None if change.action is None else generator.held_action(change.action)
        if labels is not None:
            self._label = self._for_all(labels, -1)
        if held is not None:
            self._held = held


# ---------------------------------------------------------------------------------------------------------- declaration

PAPER_STEPS = 50  # Euler steps per frame
STRIDES = {"B": 8, "M": 16, "L": 16, "XL": 32, "B-long": 8, "M-long": 16}  # of the autoencoder, by size


def check_sampler(config: FARConfig, sampler: FrameFlowSamplerConfig) -> None:
    """Raises UserError for a window that is smaller than the frames in fine patches: there were no such clips."""
    if config.is_long and sampler.window is not None and sampler.window < config.window:
        raise UserError(
            f"A long model reads its last {config.window} frames in fine patches: window must be at least that, found "
            f"{sampler.window}."
        )


def planned_steps(config: FARConfig, sampler: FrameFlowSamplerConfig) -> int:
    """Euler steps of all frames of a training clip."""
    return sampler.num_decoding_steps * config.latent_shape[0]


def paper_models() -> Iterator[PaperModel]:
    """The published sizes; the long ones on 300 frames, with four actions."""
    for size, (_, _, is_long) in PAPER_SIZES.items():
        config = FARConfig.paper(size, **({"action_size": 4, "one_action": True} if is_long else {}))
        frames, rows, columns = config.latent_shape
        steps = planned_steps(config, FrameFlowSamplerConfig(num_decoding_steps=PAPER_STEPS))
        clip = (frames, rows * STRIDES[size], columns * STRIDES[size])
        yield PaperModel(f"far-{size}", config, clip, steps, config.tasks)


def action_rows_of_table(change: Change) -> Tensor:
    """Rows of the numbers of an action by name, those of new numbers zero, then the row of an unknown action.

    Numbers that the clips of the new model scale otherwise have the effect that they had, up to a shift.
    """
    names, wanted = change.before.action_names, change.after.action_names
    rows = columns_by_name(change.old[:-1].T, names, wanted).T  # (a, d)
    scales = [
        change.after.action_scaling(n)[1] / change.before.action_scaling(n)[1] if n in names else 1.0 for n in wanted
    ]
    return torch.cat([rows * rows.new_tensor(scales)[:, None], change.old[-1:]])


@torch.no_grad()  # the history of a training step carries no gradient
def roll_out(model: FAR, rollout: Rollout) -> Float[Tensor, "b c f h w"]:
    """Latents of training clips: context frames of the recording, then the model's own, unguided."""
    batch = cast(FARBatch, rollout.batch)
    tokens, actions, label = batch["tokens"], batch.get("actions"), batch.get("label")

    def at(frame: int) -> FrameConditions:
        return FrameConditions(label, None if actions is None else actions[:, frame : frame + 1])

    known = option_names(FrameFlowSamplerConfig)
    options = {name: value for name, value in rollout.options.items() if name in known}
    sampler = FrameFlowSampler[FrameConditions, FARCache](
        dataclass_from_dict(FrameFlowSamplerConfig, options, "Rollouts")
    )
    condition = FlowCondition(at, len(tokens), tokens.shape[2], tokens[:, :, : rollout.num_context])
    *_, last = sampler.sample(model, condition, rollout.draws)
    return last.draft()


TRANSFER_RULES = (
    TransferRule("class_embedding.weight", class_rows(), optional=True, start=torch.zeros_like),
    # New actions change nothing at first; without actions, all of them are unknown.
    TransferRule("action_embedding.weight", action_rows_of_table, optional=True, start=torch.zeros_like),
    # A short model becomes a long one: its own projections are a good start for coarse frames only after training.
    TransferRule("coarse_*", optional=True),
    TransferRule("blocks.*.coarse_heads.*", optional=True),
)

FAR_FAMILY = Family(
    name="far",
    title="FAR",
    paper="2503.19325",
    config=FARConfig,
    network=FAR,
    sampler=FrameFlowSamplerConfig,
    call=FARCall,
    generator=FARGenerator,
    capabilities=Capabilities(any_length=True, endless=True, steerable=True, packs=True),
    planned_steps=planned_steps,
    check_sampler=check_sampler,
    roll_out=roll_out,
    papers=paper_models,
    transfer_rules=TRANSFER_RULES,
    lora_modules=("heads.qkv", "heads.output", "mlp_in", "mlp_out"),
)
