"""FAR: clips of any length from classes, actions and first frames, by flow matching frame by frame.

arXiv 2503.19325.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from jaxtyping import Float, Num, UInt8
from torch import Tensor

from mutoscope.errors import UserError
from mutoscope.families.actions import Action, read_actions
from mutoscope.families.base import (
    Capabilities,
    Family,
    PaperModel,
    Rollout,
    Steering,
    common_length,
    option_names,
)
from mutoscope.families.frames import (
    FrameCall,
    FrameGenerator,
    FrameRequest,
    changed,
    context_clips,
    implied_task,
    latent_frames,
    unused_actions,
)
from mutoscope.families.recorded import RecordedFAR
from mutoscope.families.transfer import Change, TransferRule, class_rows, columns_by_name
from mutoscope.json_config import dataclass_from_dict
from mutoscope.layers.recorded import Steps
from mutoscope.models.far import FAR, PAPER_SIZES, FARBatch, FARCache, FARConfig, FrameConditions
from mutoscope.sampling.base import SampleEvent
from mutoscope.sampling.frame_flow import FlowCondition, FlowModel, FrameFlowSampler, FrameFlowSamplerConfig


@dataclass(frozen=True, kw_only=True)
class FARCall(FrameCall):
    """One call of a FAR model: a class, actions, frames to continue, or several of them."""

    sampling: FrameFlowSamplerConfig = field(default_factory=FrameFlowSamplerConfig)


@dataclass(frozen=True, kw_only=True)
class FARChange:
    """Conditions that change from the next frame of a stream on; None leaves a condition as it is."""

    class_label: int | str | None = None
    action: Action | None = None
    """{name: number} with 0 for absent names, all numbers in order, or a text such as "forward"; "?" for an unknown
    action. Held until the next change."""


@dataclass(frozen=True, kw_only=True)
class FARRequest(FrameRequest):
    """A checked call. A missing condition is encoded as: label −1, NaN actions."""

    generator: "FARGenerator"
    sampler: FrameFlowSamplerConfig

    def decoded(
        self, samples: slice, context: Num[Tensor, "n *c k h w"] | None, random: torch.Generator
    ) -> tuple[Iterator[SampleEvent], "FARSteering"]:
        steering = FARSteering(self.generator, self, samples)
        return self.generator.decode(self, samples, context, steering, random), steering


class FARGenerator(FrameGenerator[FARCall, FAR]):
    """Conditions and first frames in, latents out."""

    network: FlowModel[FrameConditions, FARCache]
    """The model as the sampler sees it: with its steps recorded, if they are."""

    def check_parts_fit(self) -> None:
        super().check_parts_fit()
        self.network = self.model

    def record_steps(self, steps: Steps) -> None:
        super().record_steps(steps)
        self.network = RecordedFAR(self.model, steps)

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
        call = self.with_first_frames(call, num_samples)
        clips = context_clips(self.tokenizer.spec, self.index, call.context, call.context_frames)
        num_frames = None if call.endless else call.num_frames or self.default_length(actions)
        frames = None if num_frames is None else latent_frames(self.tokenizer.spec, self.index, num_frames)
        left = self._check_context(clips, frames, num_frames, call.sampling)
        labels = self.requested_labels(call, num_samples, is_free=clips is None and call.actions is None)
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

    # ------------------------------------------------------------------------------------------------ sampling

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
        return FrameFlowSampler[FrameConditions, FARCache](request.sampler).sample(self.network, condition, random)


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
        self.apply(changed(FARChange(), conditions))

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
