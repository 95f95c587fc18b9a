"""MAGI: clips of any length from classes, prompts, actions and first frames, which may change from frame to frame."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Num, UInt8
from torch import Tensor

from mutoscope.data.fit import Frames
from mutoscope.errors import UserError
from mutoscope.families.base import Generator, Request, common_length
from mutoscope.families.frames import context_clips, latent_frames
from mutoscope.json_config import dataclass_from_dict
from mutoscope.models.magi import MAX_INTERVAL, FrameConditions
from mutoscope.sampling.base import SampleEvent
from mutoscope.sampling.frame_stream import FrameStreamSampler, FrameStreamSamplerConfig, set_sizes
from mutoscope.text.base import TextFeatures


@dataclass(frozen=True)
class FrameStreamRequest(Request):
    """`num_latent_frames` counts those of the context too; None: without an end.

    `labels`: −1 for none. `text`: features of every sample's prompt. `actions`: row t is done in frame t and leads to
    the next; behind their end nothing is told. `interval`: source frames from one frame to the next.
    """

    num_latent_frames: int | None = 1
    interval: int = 1
    text: TextFeatures | None = None
    actions: Float[Tensor, "b rows a"] | None = None
    context: UInt8[Tensor, "n t h w 3"] | None = None


class FrameStreamGenerator(Generator):
    """Conditions and first frames in, latents or codes out."""

    def check_parts_fit(self) -> None:
        spec, config = self.tokenizer.spec, self.model.config
        shape = spec.latent_shape(self.index.num_frames, self.index.height, self.index.width)
        found = spec.vocab_size if config.is_discrete else spec.latent_channels
        expected = config.codebook_size if config.is_discrete else config.latent_channels
        if shape[1:] != tuple(config.latent_shape[1:]) or found != expected:
            what = "codes" if config.is_discrete else "channels"
            raise UserError(
                f"Tokenizer and model do not fit: frames of {self.index.height}×{self.index.width} are "
                f"{shape[1]}×{shape[2]} latents of {found} {what}, the model expects {config.latent_shape[1]}×"
                f"{config.latent_shape[2]} of {expected}."
            )

    def prepare(
        self,
        *,
        class_label: int | str | Sequence[int | str] | None = None,
        prompt: str | Sequence[str] | None = None,
        context: Frames | Sequence[Frames] | None = None,
        context_frames: int | None = None,
        actions: Any = None,
        interval: int = 1,
        task: str | None = None,
        task_video: Any = None,
        num_frames: int | None = None,
        endless: bool = False,
        num_samples: int | None = None,
        seed: int = 0,
        batch_size: int = 16,
        paste_given: bool = False,
        **sampler_options: Any,
    ) -> FrameStreamRequest:
        """`actions`: (t, numbers), or one such array per sample. `endless`: frames come until the caller stops."""
        if task_video is not None:
            context, context_frames = task_video, context_frames or 1
        given = {"prompt": prompt, "class_label": class_label, "context": context}
        listed = actions if actions is not None and np.ndim(actions[0]) == 2 else None
        num_samples = common_length(num_samples, actions=listed, **given)
        self.check_call(num_samples, seed, None, None, None)
        self._check_task(task, context, actions, paste_given)
        sampler = self._sampler(sampler_options)
        if not 1 <= interval <= MAX_INTERVAL:
            raise UserError(f"interval must lie between 1 and {MAX_INTERVAL}, found {interval}.")
        clips = context_clips(self.tokenizer.spec, self.index, context, context_frames)
        num_frames = None if endless else num_frames or self.index.num_frames
        frames = None if num_frames is None else latent_frames(self.tokenizer.spec, self.index, num_frames)
        left = self._check_context(clips, frames, num_frames, sampler)
        sets = sum(size > 0 for size in set_sizes(sampler.num_decoding_steps, self.model.config.num_tokens))
        chosen = self._labels(class_label, num_samples, seed, task, free=clips is None and actions is None)
        return FrameStreamRequest(
            task=task or _mode(chosen, prompt, clips, actions),
            num_samples=num_samples,
            seed=seed,
            sampler=sampler,
            num_steps=(left or 0) * sets,
            labels=chosen,
            batch_size=max(batch_size, 1),
            num_frames=num_frames,
            num_latent_frames=frames,
            interval=interval,
            text=self._text(prompt, num_samples),
            actions=self._actions(actions, num_samples, frames),
            context=clips,
        )

    # -------------------------------------------------------------------------------------------------- checks

    def _check_task(self, task: str | None, context: Any, actions: Any, paste_given: bool) -> None:
        tasks = self.model.config.tasks
        if task not in (None, *tasks):
            raise UserError(f"This model does not do {task!r}: {', '.join(tasks)}.")
        if paste_given:
            raise UserError("Given frames are kept as they are by this model. Leave paste_given out.")
        if task is not None and "prediction" in task and context is None:
            raise UserError(f"The task {task} needs first frames: give a context.")
        if task == "action-conditional" and actions is None:
            raise UserError("The task action-conditional needs actions, one row per frame: give them.")
        if actions is not None and self.model.config.action_size is None:
            raise UserError("This model takes no actions. Leave them out.")

    def _sampler(self, options: dict[str, Any]) -> FrameStreamSamplerConfig:
        chosen = {**self.index.sampling, **{key: value for key, value in options.items() if value is not None}}
        sampler, config = dataclass_from_dict(FrameStreamSamplerConfig, chosen, "Sampler options"), self.model.config
        if sampler.num_decoding_steps > config.num_tokens:
            raise UserError(f"A frame has {config.num_tokens} tokens: num_decoding_steps can be at most that.")
        if sampler.context_noise_level > config.noise_levels:
            raise UserError(f"context_noise_level can be at most {config.noise_levels} for this model.")
        return sampler

    def _check_context(
        self,
        clips: UInt8[Tensor, "n t h w 3"] | None,
        frames: int | None,
        num_frames: int | None,
        sampler: FrameStreamSamplerConfig,
    ) -> int | None:
        """Latent frames left to make; None without an end."""
        given = 0 if clips is None else latent_frames(self.tokenizer.spec, self.index, clips.shape[1])
        window = sampler.window or self.model.config.latent_shape[0]
        if sampler.window_mode != "growing" and given >= window:
            raise UserError(
                f"The context is {given} latent frames long, but the model sees {window} at a time, the one in "
                f"progress among them: give at most {window - 1}, for example with context_frames."
            )
        if frames is not None and given >= frames:
            raise UserError(f"The context is as long as the clip asked for: raise num_frames above {num_frames}.")
        return None if frames is None else frames - given

    def _labels(
        self, class_label: Any, num_samples: int, seed: int, task: str | None, free: bool
    ) -> Int[Tensor, " b"] | None:
        """Classes asked for. With nothing else to go by every sample draws one; otherwise there is none."""
        if class_label is None and (not free or task not in (None, "class-conditional")):
            return None
        return self.class_labels(class_label, num_samples, seed)

    def _text(self, prompt: str | Sequence[str] | None, num_samples: int) -> TextFeatures | None:
        if prompt is None:
            return None
        config = self.model.config
        if config.text_size is None:
            raise UserError("This model takes no prompt. Say what it should show with a class label or a context.")
        asked = [prompt] * num_samples if isinstance(prompt, str) else list(prompt) * (num_samples // len(prompt))
        text = self.text_encoder.encode(asked, config.text_length)
        if text.features.shape[2] != config.text_size:
            raise UserError(
                f"The text encoder {str(self.text_encoder.folder)!r} gives {text.features.shape[2]} channels, this "
                f"model reads {config.text_size}: name the encoder it was trained with."
            )
        return text

    def _actions(self, actions: Any, num_samples: int, frames: int | None) -> Float[Tensor, "b rows a"] | None:
        """Checked, one row per latent frame, the same for all samples unless listed."""
        if actions is None:
            return None
        try:
            values = torch.as_tensor(np.asarray(actions, dtype=np.float32))
        except (ValueError, TypeError):
            raise UserError("Actions must be rows of numbers, all of one length.") from None
        values = values[None] if values.ndim == 2 else values
        size, needed = self.model.config.action_size, (frames or 1) - 1
        if values.ndim != 3 or values.shape[2] != size:
            raise UserError(
                f"Actions are rows of {size} numbers for this model, found the shape {tuple(values.shape)}."
            )
        if values.shape[1] < needed:
            raise UserError(f"{frames} latent frames need {needed} actions, found {values.shape[1]}: give more rows.")
        return values.expand(num_samples, -1, -1)

    # ------------------------------------------------------------------------------------------------ sampling

    def sample(self, request: Request, on_step: Callable[[SampleEvent], None]) -> Iterator[Iterator[SampleEvent]]:
        assert isinstance(request, FrameStreamRequest)
        generator, given = torch.Generator().manual_seed(request.seed), self._given(request)
        for samples in request.rounds():
            yield self._round(request, samples, given, generator, Steering(self, request, samples), on_step)

    def steered(self, request: Request) -> "tuple[Iterator[Iterator[SampleEvent]], Steering]":
        assert isinstance(request, FrameStreamRequest)
        steering, generator = Steering(self, request, slice(0, 1)), torch.Generator().manual_seed(request.seed)
        events = self._round(request, slice(0, 1), self._given(request), generator, steering, lambda event: None)
        return iter([events]), steering

    @torch.no_grad()
    def _given(self, request: FrameStreamRequest) -> Num[Tensor, "n *c k h w"] | None:
        if request.context is None:
            return None
        return self.tokenizer.encode(self.tokenizer.from_uint8(request.context.to(self.device)))

    def _round(
        self,
        request: FrameStreamRequest,
        samples: slice,
        given: Num[Tensor, "n *c k h w"] | None,
        generator: torch.Generator,
        steering: "Steering",
        on_step: Callable[[SampleEvent], None],
    ) -> Iterator[SampleEvent]:
        if given is not None:
            given = given.expand(steering.num_samples, *given.shape[1:]) if len(given) == 1 else given[samples]
            given = given.to(self.model.mask_token.dtype) if given.is_floating_point() else given
        sampler = FrameStreamSampler(request.sampler)
        frames = request.num_latent_frames
        for event in sampler.sample(self.model, steering.at, steering.num_samples, frames, generator, given):
            on_step(event)
            yield event


class Steering:
    """What the frames of a round are told; `change` takes effect with the next frame."""

    def __init__(self, generator: FrameStreamGenerator, request: FrameStreamRequest, samples: slice) -> None:
        self._generator, self._request = generator, request
        self.num_samples = samples.stop - samples.start
        self._passes, self._by_history = request.sampler.num_passes, request.sampler.guidance_by == "history"
        self._actions = None if request.actions is None else request.actions[samples]
        self._held: Tensor | None = None
        device = generator.device
        self._interval = torch.full((self._passes * self.num_samples,), request.interval, device=device)
        nothing = torch.full((self.num_samples,), -1)
        self._label = self._for_all(nothing if request.labels is None else request.labels[samples], -1)
        text = request.text
        self._tell(None if text is None else TextFeatures(text.features[samples], text.mask[samples]))

    def _for_all(self, values: Tensor, nothing: float) -> Tensor:
        """For the rows of all passes: without guidance by history the second one is told nothing."""
        values = values.to(self._generator.device)
        if self._passes == 1:
            return values
        return torch.cat([values, values if self._by_history else torch.full_like(values, nothing)])

    def _tell(self, text: TextFeatures | None) -> None:
        self._caption = None if text is None else self._for_all(text.features, 0)
        self._caption_mask = None if text is None else self._for_all(text.mask, False)

    def at(self, frame: int) -> FrameConditions:
        """Conditions of a 0-based latent frame for the rows of all passes."""
        return FrameConditions(self._interval, self._label, self._action(frame), self._caption, self._caption_mask)

    def _action(self, frame: int) -> Float[Tensor, "pb 1 a"] | None:
        """What was done in the frame before."""
        config = self._generator.model.config
        if config.action_size is None:
            return None
        action = torch.full((self.num_samples, 1, config.action_size), torch.nan)
        if self._held is not None:
            action = self._held.expand(self.num_samples, 1, -1)
        elif self._actions is not None and 0 < frame <= self._actions.shape[1]:
            action = self._actions[:, frame - 1 : frame]
        told = self._for_all(action, torch.nan) if config.drop_actions else action.repeat(self._passes, 1, 1)
        return told.to(self._generator.device, self._generator.model.mask_token.dtype)

    def change(
        self,
        *,
        class_label: int | str | None = None,
        prompt: str | None = None,
        interval: int | None = None,
        action: Sequence[float] | None = None,
    ) -> None:
        """From the next frame on; what is left out stays. `action` is held until the next change."""
        generator, count = self._generator, self.num_samples
        if interval is not None:
            if not 1 <= interval <= MAX_INTERVAL:
                raise UserError(f"interval must lie between 1 and {MAX_INTERVAL}, found {interval}.")
            self._interval = torch.full_like(self._interval, interval)
        if class_label is not None:
            labels = generator.class_labels(class_label, count, 0)
            assert labels is not None
            self._label = self._for_all(labels, -1)
        if prompt is not None:
            self._tell(generator._text(prompt, count))
        if action is not None:
            generator._check_task(None, None, action, False)
            checked = generator._actions([list(action)], 1, None)
            assert checked is not None
            self._held = checked


def _mode(labels: Tensor | None, prompt: Any, clips: Tensor | None, actions: Any) -> str:
    """What a call without a task amounts to."""
    if clips is not None:
        return "frame-prediction" if labels is None else "class-conditional-frame-prediction"
    for name, value in (("action", actions), ("text", prompt), ("class", labels)):
        if value is not None:
            return f"{name}-conditional"
    return "unconditional"
