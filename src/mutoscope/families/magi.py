"""MAGI: clips of any length from classes, prompts, actions and first frames, which may change from frame to frame.

arXiv 2501.12389.
"""

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from jaxtyping import Float, Num, UInt8
from torch import Tensor

from mutoscope.checks import Range
from mutoscope.errors import UserError
from mutoscope.families.actions import Action, read_actions
from mutoscope.families.base import (
    Capabilities,
    Family,
    PaperModel,
    Prompts,
    Rollout,
    Steering,
    WebWorld,
    as_prompts,
    common_length,
    per_sample,
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
from mutoscope.families.recorded import RecordedMAGI
from mutoscope.families.transfer import (
    TransferRule,
    action_bias,
    action_columns,
    class_rows,
    distance_rows,
    fresh_if_resized,
    position_table,
    word_columns,
)
from mutoscope.json_config import dataclass_from_dict
from mutoscope.layers.recorded import Steps
from mutoscope.models.base import ModelConfig
from mutoscope.models.magi import MAGI, MAX_INTERVAL, PAPER_SIZES, FrameConditions, MAGIBatch, MAGIConfig
from mutoscope.sampling.base import SampleEvent
from mutoscope.sampling.frame_history import HistoryModel, StreamCondition
from mutoscope.sampling.frame_stream import FrameStreamSampler, FrameStreamSamplerConfig, check_window_mode, set_sizes
from mutoscope.text.base import TextFeatures


@dataclass(frozen=True, kw_only=True)
class MAGICall(FrameCall):
    """One call of a MAGI model: a class, a prompt, actions, frames to continue, or several of them."""

    prompt: Prompts = None
    """Text to show, for models trained with text."""
    interval: int = 1
    """Source frames from one frame to the next, 1 to 25; larger is faster motion."""
    sampling: FrameStreamSamplerConfig = field(default_factory=FrameStreamSamplerConfig)


@dataclass(frozen=True, kw_only=True)
class MAGIChange:
    """Conditions that change from the next frame of a stream on; None leaves a condition as it is."""

    class_label: int | str | None = None
    prompt: str | None = None
    interval: int | None = None
    """Source frames from one frame to the next, 1 to 25."""
    action: Action | None = None
    """{name: number} with 0 for absent names, all numbers in order, or a text such as "left+attack"; "?" for an
    unknown action. Held until the next change."""


@dataclass(frozen=True, kw_only=True)
class MAGIRequest(FrameRequest):
    """A checked call. A missing condition is encoded as: label −1, no text, NaN actions."""

    generator: "MAGIGenerator"
    sampler: FrameStreamSamplerConfig
    interval: int = 1
    text: TextFeatures | None = None
    """Features of every sample's prompt."""

    def decoded(
        self, samples: slice, context: Num[Tensor, "n *c k h w"] | None, random: torch.Generator
    ) -> tuple[Iterator[SampleEvent], "MAGISteering"]:
        steering = MAGISteering(self.generator, self, samples)
        return self.generator.decode(self, samples, context, steering, random), steering


class MAGIGenerator(FrameGenerator[MAGICall, MAGI]):
    """Conditions and first frames in, latents or codes out."""

    network: HistoryModel[FrameConditions]
    """The model as the sampler sees it: with its steps recorded, if they are."""

    def check_parts_fit(self) -> None:
        super().check_parts_fit()
        self.network = self.model

    def record_steps(self, steps: Steps) -> None:
        super().record_steps(steps)
        self.network = RecordedMAGI(self.model, steps)

    def draws_first_frame(self, call: MAGICall) -> bool:
        """A frame that is drawn has nothing to do with a prompt."""
        return call.prompt is None and super().draws_first_frame(call)

    def prepare(self, call: MAGICall) -> MAGIRequest:
        self.check_call(call)
        if call.task_video is not None:
            call = replace(call, context=call.task_video, context_frames=call.context_frames or 1)
        self.check_task(call)
        actions = None if call.actions is None or self.actions is None else read_actions(call.actions, self.actions)
        listed = actions.clips if actions is not None and actions.is_listed else None
        given = {"prompt": call.prompt, "class_label": call.class_label, "context": call.context, "actions": listed}
        num_samples = common_length(call.num_samples, **given)
        sampler = call.sampling
        check_sampler(self.model.config, sampler)
        check_interval(call.interval)
        call = self.with_first_frames(call, num_samples)
        clips = context_clips(self.tokenizer.spec, self.index, call.context, call.context_frames)
        num_frames = None if call.endless else call.num_frames or self.default_length(actions)
        frames = None if num_frames is None else latent_frames(self.tokenizer.spec, self.index, num_frames)
        left = self._check_context(clips, frames, num_frames, sampler)
        labels = self.requested_labels(call, num_samples, is_free=clips is None and call.actions is None)
        return MAGIRequest(
            generator=self,
            task=call.task or implied_task(labels, call.prompt, clips, call.actions),
            num_samples=num_samples,
            seed=call.seed,
            num_steps=(left or 0) * num_sets(sampler.num_decoding_steps, self.model.config.num_tokens),
            num_frames=num_frames,
            sampling=vars(sampler),
            sampler=sampler,
            labels=labels,
            batch_size=max(call.batch_size, 1),
            num_latent_frames=frames,
            interval=call.interval,
            text=None if call.prompt is None else self.encode_text(per_sample(call.prompt, num_samples)),
            actions=None if actions is None else self.action_rows(actions, num_samples, frames),
            context=clips,
            warnings=(
                *(() if call.prompt is None else self.prompt_warnings(*as_prompts(call.prompt))),
                *(() if actions is None else (*actions.warnings, *unused_actions(actions, frames))),
            ),
        )

    def _check_context(
        self,
        clips: UInt8[Tensor, "n t h w 3"] | None,
        frames: int | None,
        num_frames: int | None,
        sampler: FrameStreamSamplerConfig,
    ) -> int | None:
        """Latent frames left to generate; None without an end."""
        known = 0 if clips is None else latent_frames(self.tokenizer.spec, self.index, clips.shape[1])
        window = sampler.window or self.model.config.latent_shape[0]
        if sampler.window_mode not in ("growing", "rolling") and known >= window:
            raise UserError(
                f"The context is {known} latent frames long, but the model sees {window} at a time, the one in "
                f"progress among them: give at most {window - 1}, for example with context_frames."
            )
        if frames is not None and known >= frames:
            raise UserError(f"The context is as long as the clip: raise num_frames above {num_frames}.")
        return None if frames is None else frames - known

    def web_world(self, name: str) -> WebWorld:
        from mutoscope.families.magi_graphs import web_world

        return web_world(self.parts, name)

    # ------------------------------------------------------------------------------------------------ sampling

    def decode(
        self,
        request: MAGIRequest,
        samples: slice,
        context: Num[Tensor, "n *c k h w"] | None,
        steering: "MAGISteering",
        random: torch.Generator,
    ) -> Iterator[SampleEvent]:
        """The sampler's events of one batch."""
        count = steering.num_samples
        if context is not None:
            context = context.expand(count, *context.shape[1:]) if len(context) == 1 else context[samples]
            context = context.to(self.model.mask_token.dtype) if context.is_floating_point() else context
        condition = StreamCondition(steering.at, count, request.num_latent_frames, context)
        sampler = FrameStreamSampler[FrameConditions](request.sampler, self.steps)
        return sampler.sample(self.network, condition, random)


class MAGISteering(Steering):
    """The conditions of a batch, frame by frame."""

    def __init__(self, generator: MAGIGenerator, request: MAGIRequest, samples: slice) -> None:
        self._generator, self._device = generator, generator.device
        self.num_samples = samples.stop - samples.start
        self._passes, self._by_history = request.sampler.num_passes, request.sampler.guidance_by == "history"
        self._actions = None if request.actions is None else request.actions[samples]
        self._held: Tensor | None = None
        self._interval = torch.full((self._passes * self.num_samples,), request.interval, device=self._device)
        no_label = torch.full((self.num_samples,), -1)
        self._label = self._for_all(no_label if request.labels is None else request.labels[samples], -1)
        text = request.text
        self._set_text(None if text is None else TextFeatures(text.features[samples], text.mask[samples]))

    def _for_all(self, values: Tensor, missing: float) -> Tensor:
        """Values for the rows of all guidance passes. Without guidance by history the second pass is unconditional."""
        values = values.to(self._device)
        if self._passes == 1:
            return values
        return torch.cat([values, values if self._by_history else torch.full_like(values, missing)])

    def _set_text(self, text: TextFeatures | None) -> None:
        self._caption = None if text is None else self._for_all(text.features, 0)
        self._caption_mask = None if text is None else self._for_all(text.mask, False)

    def at(self, frame: int) -> FrameConditions:
        """Conditions of a 0-based latent frame for the rows of all passes."""
        return FrameConditions(self._interval, self._label, self._action(frame), self._caption, self._caption_mask)

    def _action(self, frame: int) -> Float[Tensor, "passes_b 1 a"] | None:
        """The action done in the frame before."""
        config = self._generator.model.config
        if config.action_size is None:
            return None
        action = torch.full((self.num_samples, 1, config.action_size), torch.nan)
        if self._held is not None:
            action = self._held.expand(self.num_samples, 1, -1)
        elif self._actions is not None and 0 < frame <= self._actions.shape[1]:
            action = self._actions[:, frame - 1 : frame]
        rows = self._for_all(action, torch.nan) if config.drop_actions else action.repeat(self._passes, 1, 1)
        return rows.to(self._device, self._generator.model.mask_token.dtype)

    def change(self, **conditions: object) -> None:
        self.apply(changed(MAGIChange(), conditions))

    def apply(self, change: MAGIChange) -> None:
        """See `MAGIChange`. Raises UserError for conditions that the model does not read."""
        generator, count = self._generator, self.num_samples
        # Everything is checked before anything changes.
        if change.interval is not None:
            check_interval(change.interval)
        labels = None if change.class_label is None else generator.class_labels(change.class_label, count, 0)
        text = None if change.prompt is None else generator.encode_text([change.prompt] * count)
        held = None if change.action is None else generator.held_action(change.action)
        if change.interval is not None:
            self._interval = torch.full_like(self._interval, change.interval)
        if labels is not None:
            self._label = self._for_all(labels, -1)
        if text is not None:
            self._set_text(text)
            for sentence in generator.prompt_warnings(change.prompt or ""):
                warnings.warn(sentence, stacklevel=4)
        if held is not None:
            self._held = held


def check_interval(interval: int) -> None:
    """Raise UserError for an interval outside training."""
    if not 1 <= interval <= MAX_INTERVAL:
        raise UserError(f"interval must be between 1 and {MAX_INTERVAL}, found {interval}.")


# ---------------------------------------------------------------------------------------------------------- declaration

PAPER_SETS = 64  # per frame, as in MAR


def num_sets(num_decoding_steps: int, num_tokens: int) -> int:
    """Sets of a frame that decide anything."""
    return sum(size > 0 for size in set_sizes(num_decoding_steps, num_tokens))


def check_sampler(config: MAGIConfig, sampler: FrameStreamSamplerConfig) -> None:
    """Raises UserError for more sets than tokens of a frame, and for levels and steps that training did not have."""
    if sampler.num_decoding_steps > config.num_tokens:
        raise UserError(
            f"A frame has {config.num_tokens} tokens: num_decoding_steps can be at most that, found "
            f"{sampler.num_decoding_steps}."
        )
    check_window_mode(sampler, config.is_relative)
    Range(0, config.noise_levels).check("context_noise_level", sampler.context_noise_level)
    if not config.is_discrete:
        Range(1, config.diffusion.num_train_steps).check("num_diffusion_steps", sampler.num_diffusion_steps)
        config.diffusion.plan(sampler.num_diffusion_steps, sampler.sample_range, sampler.eta)


def planned_steps(config: MAGIConfig, sampler: FrameStreamSamplerConfig) -> int:
    """Sets of tokens of all frames of a training clip."""
    return num_sets(sampler.num_decoding_steps, math.prod(config.grid)) * config.latent_shape[0]


def paper_models() -> Iterator[PaperModel]:
    """MAR's sizes on 16 frames of 256 pixels; steps are sets of tokens."""
    for size in PAPER_SIZES:
        config = MAGIConfig.paper(size)
        steps = planned_steps(config, FrameStreamSamplerConfig(num_decoding_steps=PAPER_SETS))
        yield PaperModel(f"magi-{size}", config, (16, 256, 256), steps, config.tasks)


@torch.no_grad()  # the history of a training step carries no gradient
def roll_out(model: MAGI, rollout: Rollout) -> Num[Tensor, "b *c f h w"]:
    """Latents or codes of training clips: context frames of the recording, then the model's own, unguided."""
    batch = cast(MAGIBatch, rollout.batch)
    tokens, actions = batch["tokens"], batch.get("actions")
    shared = FrameConditions(
        batch.get("interval", torch.ones(len(tokens), dtype=torch.int64, device=tokens.device)),
        batch.get("label"),
        None,
        batch.get("caption"),
        batch.get("caption_mask"),
    )

    def at(frame: int) -> FrameConditions:
        if actions is None:
            return shared
        unknown = torch.full_like(actions[:, :1], torch.nan)
        return replace(shared, actions=actions[:, frame - 1 : frame] if frame else unknown)

    options = dataclass_from_dict(FrameStreamSamplerConfig, rollout.options, "Rollouts")
    condition = StreamCondition(at, len(tokens), tokens.shape[-3], tokens[..., : rollout.num_context, :, :])
    *_, last = FrameStreamSampler[FrameConditions](options).sample(model, condition, rollout.draws)
    return last.draft()


def window_length(config: ModelConfig) -> int:
    """Distances in time within the window."""
    return cast(MAGIConfig, config).reach


TRANSFER_RULES = (
    TransferRule("class_embedding.weight", class_rows(), optional=True),
    TransferRule("role_embedding", position_table(1)),
    TransferRule("head_position", position_table(0)),
    # Text attention ends in a matrix of zeros until it is trained: captions change nothing at first.
    TransferRule("word_embedding.weight", word_columns, optional=True),
    TransferRule("word_embedding.bias", optional=True),
    TransferRule("null_word", optional=True),
    TransferRule("blocks.*.text*", optional=True),
    # Relative positions begin without any effect.
    TransferRule("blocks.*.time.distances", distance_rows(window_length), optional=True, start=torch.zeros_like),
    # A head that predicts something else begins its last layer anew.
    TransferRule("head.output.*", fresh_if_resized),
    TransferRule("head.length_embedding.*", optional=True),
    # New actions change nothing at first: the last layer of their projection starts at zero.
    TransferRule("action_embedding.0.weight", action_columns, optional=True),
    TransferRule("action_embedding.0.bias", action_bias("action_embedding.0.weight"), optional=True),
    TransferRule("action_embedding.2.*", optional=True, start=torch.zeros_like),
    TransferRule("null_action", optional=True, start=torch.zeros_like),
    # Both are added to all positions of a frame: without actions, all of them are unknown.
    TransferRule("interval_embedding.weight", absorbs="null_action"),
)

MAGI_FAMILY = Family(
    name="magi",
    title="MAGI",
    paper="2501.12389",
    config=MAGIConfig,
    network=MAGI,
    sampler=FrameStreamSamplerConfig,
    call=MAGICall,
    generator=MAGIGenerator,
    capabilities=Capabilities(any_length=True, endless=True, steerable=True),
    planned_steps=planned_steps,
    check_sampler=check_sampler,
    roll_out=roll_out,
    papers=paper_models,
    transfer_rules=TRANSFER_RULES,
    lora_modules=(
        "space.qkv",
        "space.output",
        "time.qkv",
        "time.output",
        "blocks.*.text.*",
        "mlp_in",
        "mlp_out",
        "head.blocks.*",
    ),
)
