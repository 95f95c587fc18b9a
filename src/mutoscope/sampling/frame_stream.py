"""Frame after frame without an end: MAGI's decoding (arXiv 2501.12389 §3.3; within a frame MAR's procedure).

A frame starts with all its tokens hidden and is filled in set by set in a random order fixed in advance. The network
reads the frame in progress and what it remembers of finished frames; it reads a finished frame once and remembers it.
Beyond the length of training a window keeps the history at a length the network was trained on.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Generic, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from mutoscope.checks import COUNT, NOT_NEGATIVE, POSITIVE, check_fields
from mutoscope.errors import UserError
from mutoscope.layers.diffusion import Plan
from mutoscope.layers.draws import Draws, copied, rand, randn
from mutoscope.layers.finite import require_finite
from mutoscope.layers.recorded import Steps
from mutoscope.layers.token_masking import gather_rows
from mutoscope.sampling.base import Latents, SampleEvent, Sampler
from mutoscope.sampling.categorical import drawable, gumbel, log_probability, sample_categorical
from mutoscope.sampling.frame_ar import DiffusionHead, padded_rows
from mutoscope.sampling.frame_history import Conditions, HistoryModel, StreamCondition
from mutoscope.sampling.frame_windows import Frame, History, RollingHistory
from mutoscope.sampling.guidance import guide

RANGES = {
    "num_decoding_steps": COUNT,
    "num_diffusion_steps": COUNT,
    "guidance_scale": NOT_NEGATIVE,
    "temperature": NOT_NEGATIVE,
    "sample_range": POSITIVE,
    "eta": NOT_NEGATIVE,
    "window": COUNT,
    "context_noise_level": NOT_NEGATIVE,
}


@dataclass(frozen=True)
class FrameStreamSamplerConfig:
    """How a frame is divided into sets, how their tokens are drawn and guided, and how much history is kept."""

    num_decoding_steps: int = 64
    """Sets of tokens per frame."""
    num_diffusion_steps: int = 100
    """Denoising steps per token, out of those of training."""
    guidance_scale: float = 1.0
    """u + s (c - u); 1 is off."""
    guidance_schedule: Literal["linear", "constant"] = "linear"
    """Constant, or rising with the share of decided tokens as in MAR."""
    guidance_by: Literal["conditions", "history"] = "conditions"
    """Compare with a pass without conditions, or with a pass without history."""
    temperature: float = 1.0
    """Factor of the noise added in diffusion, or of the distribution of discrete tokens."""
    sample_range: float | None = None
    """Bound of the predicted token, in its standard deviations."""
    eta: float | None = None
    """Diffusion by DDIM, without fresh noise at 0; None: ancestral sampling."""
    window: int | None = None
    """Latent frames that see each other, the one in progress among them; None: as many as in training."""
    window_mode: Literal["sliding", "anchored", "growing", "chunked", "rolling"] = "sliding"
    """A full window drops its first frame (sliding), half its length (chunked), the second frame (anchored, for
    networks trained with temporal gaps) or none (growing, with positions in time beyond training), and is read anew.
    Rolling, for networks with relative positions: nothing is ever read again, and the window is the network's own."""
    context_noise_level: int = 0
    """Noise level that the network is conditioned on for its history."""
    selection: Literal["random", "confidence"] = "random"
    """Discrete tokens: decide a random set in each step, or the most probable tokens."""
    use_cache: bool = True
    """False reads the history anew in every step, with the same result, for comparison."""

    def __post_init__(self) -> None:
        check_fields(self, RANGES)

    @property
    def num_passes(self) -> int:
        """Rows of conditions that each sample needs: 1, with guidance 2."""
        return 1 if self.guidance_scale == 1 else 2

    def scale_at(self, num_left: int, num_tokens: int) -> float:
        """Guidance of a step after which `num_left` tokens are hidden."""
        if self.guidance_schedule == "constant":
            return self.guidance_scale
        return 1 + (self.guidance_scale - 1) * (num_tokens - num_left) / num_tokens


def check_window_mode(config: FrameStreamSamplerConfig, is_relative: bool) -> None:
    """Raises UserError for a window that does not go with a network's positions in time."""
    mode = config.window_mode
    if is_relative and mode not in ("rolling", "growing"):
        raise UserError(f"A network with relative positions in time has window_mode rolling or growing, found {mode}.")
    if mode == "rolling" and not is_relative:
        raise UserError("A rolling window needs a network with relative positions in time: use sliding or anchored.")
    if mode == "rolling" and config.window is not None:
        raise UserError(f"A rolling window is as long as the network's own: leave out window, found {config.window}.")


def masked_counts(num_steps: int, num_tokens: int) -> list[int]:
    """Hidden tokens before every step: floor(N cos(π/2 · k/K)), at least one fewer each time and never 0 (MAR).

    With more steps than tokens the last steps but one decide nothing.
    """
    counts = [num_tokens]
    for k in range(1, num_steps):
        counts.append(max(1, min(counts[-1] - 1, math.floor(num_tokens * math.cos(math.pi / 2 * k / num_steps)))))
    return counts


def set_sizes(num_steps: int, num_tokens: int) -> list[int]:
    """Tokens decided in each step; the last step decides all that are left."""
    counts = [*masked_counts(num_steps, num_tokens), 0]
    return [before - after for before, after in itertools.pairwise(counts)]


class FrameStreamSampler(
    Sampler[HistoryModel[Conditions], StreamCondition[Conditions], SampleEvent], Generic[Conditions]
):
    """One event per set of tokens; without an end, events show the window instead of the whole clip.

    Draws from `generator`, in this order for every frame: an order of its tokens per sample; then for every set the
    noise it starts from and the noise of each diffusion step (or the noise of its categorical draws).
    """

    def __init__(self, config: FrameStreamSamplerConfig, steps: Steps | None = None) -> None:
        """`steps`: records the denoising of a set; None: nothing is recorded."""
        self.config, self.steps = config, steps or Steps()

    @torch.no_grad()
    def sample(
        self,
        model: HistoryModel[Conditions],
        condition: StreamCondition[Conditions],
        generator: Draws,
    ) -> Iterator[SampleEvent]:
        """`condition.num_frames` latent frames, those of the context among them; None: until the caller stops."""
        stream = _Stream(self.config, self.steps, model, condition, generator)
        stream.read_context()
        yield from self._continued(stream, condition.num_context)

    @torch.no_grad()
    def _resumed(
        self, model: HistoryModel[Conditions], condition: StreamCondition[Conditions], memory: "_Memory[Conditions]"
    ) -> Iterator[SampleEvent]:
        stream = _Stream(self.config, self.steps, model, condition, copied(memory.random))
        stream.recall(memory)
        yield from self._continued(stream, memory.frame)

    @torch.no_grad()
    def _continued(self, stream: "_Stream[Conditions]", frame: int) -> Iterator[SampleEvent]:
        """The frames from the 0-based latent frame `frame` on."""
        begin, condition, num_context = time.perf_counter(), stream.condition, stream.condition.num_context
        num_frames, model = condition.num_frames, stream.model
        total = 0 if num_frames is None else (num_frames - num_context) * len(stream.sizes)
        step = (frame - num_context) * len(stream.sizes)
        while num_frames is None or frame < num_frames:
            more = num_frames is None or frame + 1 < num_frames
            stream.begin_frame(frame, condition.at(frame))
            for index in range(len(stream.sizes)):
                decided = stream.decide(index)  # (b, n)
                end = len(stream.shown) + 1
                first = end - 1 if frame > num_context else 0  # the first finished frame hands over the context too
                positions = torch.zeros(condition.num_samples, num_frames or end, *model.config.grid, dtype=torch.bool)
                positions[:, end - 1] = decided.view(condition.num_samples, *model.config.grid).cpu()
                is_finished = index == len(stream.sizes) - 1
                memory = stream.memory(frame + 1) if is_finished else None
                yield SampleEvent(
                    step=step,
                    num_steps=total,
                    decided=positions,
                    frames=slice(first, end) if is_finished else None,
                    seconds=time.perf_counter() - begin,
                    draft=stream.draft(),
                    cut=stream.draft_of(first),
                    again=None if memory is None else partial(self._resumed, model, condition, memory),
                    ahead=partial(stream.finish_frame, more) if is_finished else None,
                )
                step += 1
            stream.finish_frame(more)
            frame += 1


@dataclass(frozen=True)
class _Memory(Generic[Conditions]):
    """Everything that a stream needs to go on from the end of a frame."""

    frame: int
    """Number of the next frame."""
    history: tuple[Frame[Conditions], ...]
    shown: tuple[Tensor, ...]
    random: Draws
    """Generators in their state at the end of the frame."""


class _Stream(Generic[Conditions]):
    """The frames so far, what the network remembers of them, and the frame in progress."""

    conditions: Conditions
    """Conditions of the frame in progress."""
    is_finished: bool
    """Whether the frame in progress is in the history already."""

    def __init__(
        self,
        config: FrameStreamSamplerConfig,
        steps: Steps,
        model: HistoryModel[Conditions],
        condition: StreamCondition[Conditions],
        generator: Draws,
    ) -> None:
        self.config, self.model, self.condition, self.generator = config, model, condition, generator
        self.steps = steps
        self.batch_size, self.num_frames = condition.num_samples, condition.num_frames
        self.num_tokens = model.config.num_tokens
        self.sizes = [size for size in set_sizes(config.num_decoding_steps, self.num_tokens) if size]
        self.window = config.window or model.config.latent_shape[0]
        self._check_window()
        self.blind: Tensor | None = None
        if config.num_passes == 2 and config.guidance_by == "history":
            self.blind = torch.arange(2 * self.batch_size, device=model.device) >= self.batch_size
        self.history = self._new_history()
        self.shown: tuple[Tensor, ...] = ()  # frames of the clip; without an end, of the window
        self.plan: Plan | None = None
        if model.config.codebook_parts is None:
            self.plan = model.config.diffusion.plan(config.num_diffusion_steps, config.sample_range, config.eta)
            lengths = None if self.plan.lengths is None else self.plan.lengths.to(model.device)
            self.times = model.denoiser.time(self.plan.times.to(model.device), lengths)  # (steps, w)

    # --------------------------------------------------------------------------------------------------- history

    def _check_window(self) -> None:
        mode, num_context = self.config.window_mode, self.condition.num_context
        check_window_mode(self.config, self.model.config.is_relative)
        if self.window < 2 and mode == "anchored":
            raise UserError(
                "An anchored window holds the first frame beside the one in progress: it must be at least 2 frames, "
                f"found {self.window}."
            )
        grows = mode == "growing" or (mode == "rolling" and not self.config.use_cache)
        if self.num_frames is None and grows:
            without = "" if mode == "growing" else " without a cache"
            raise UserError(f"A {mode} window{without} has no end to its memory: give num_frames, or slide the window.")
        if self.num_frames is not None and num_context >= self.num_frames:
            raise UserError(
                f"The context has {num_context} latent frames and the clip {self.num_frames}: nothing is left to "
                "generate."
            )
        if mode not in ("growing", "rolling") and num_context >= self.window:
            raise UserError(
                f"The context has {num_context} latent frames, but a window of {self.window} holds {self.window - 1} "
                "beside the one in progress: give fewer frames, or use window_mode growing."
            )

    def _new_history(self) -> History[Conditions]:
        config, rows = self.config, self.config.num_passes * self.batch_size
        mode, level = config.window_mode, config.context_noise_level
        if mode == "rolling" and config.use_cache:
            return RollingHistory(self.model, rows, level, self.blind)
        if mode in ("growing", "rolling"):
            assert self.num_frames is not None
            cache = self.model.reserve(rows, self.num_frames)
            return History(self.model, cache, None, False, level, self.blind, config.use_cache)
        capacity = self.window if self.num_frames is None else min(self.window, self.num_frames)
        keep = self.window // 2 if mode == "chunked" else self.window - 1 - (mode == "anchored")
        cache = self.model.reserve(rows, capacity)
        return History(self.model, cache, keep, mode == "anchored", level, self.blind, config.use_cache)

    def read_context(self) -> None:
        """Read the frames that the clip starts with."""
        for frame in range(self.condition.num_context):
            assert self.condition.context is not None
            tokens = self.model.to_tokens(self.condition.context[..., frame : frame + 1, :, :])  # (b, 1, n, k)
            self.accept(tokens[:, 0], self.condition.at(frame))
        self.history.catch_up()

    def memory(self, frame: int) -> _Memory[Conditions]:
        """What is to be remembered once the frame in progress, before `frame`, is finished."""
        last = Frame(self.tokens, self.conditions, self.frame)
        return _Memory(frame, (*self.history.frames, last), (*self.shown, self.tokens), copied(self.generator))

    def recall(self, memory: _Memory[Conditions]) -> None:
        """Go on from the end of a frame."""
        self.shown = memory.shown
        if self.num_frames is None:
            self.shown = self.shown[-self.window :]
        self.history.recall(memory.history)

    def accept(self, tokens: Num[Tensor, "b n k"], conditions: Conditions) -> None:
        """Append a finished frame to the history and to the frames shown."""
        self.history.add(tokens, conditions)
        self.shown = (*self.shown, tokens)
        if self.num_frames is None:
            self.shown = self.shown[-self.window :]

    # --------------------------------------------------------------------------------------- the frame in progress

    def begin_frame(self, frame: int, conditions: Conditions) -> None:
        """Start the 0-based latent frame `frame` with all tokens hidden, in a random order."""
        uniform = rand(self.generator, self.batch_size, self.num_tokens)
        self.order = uniform.argsort(dim=1).to(self.model.device)  # (b, n)
        config, device = self.model.config, self.model.device
        shape = self.batch_size, self.num_tokens
        if config.codebook_parts is None:
            self.tokens = torch.zeros(*shape, config.token_size, device=device, dtype=self.history.cache.keys.dtype)
        else:
            self.tokens = torch.zeros(*shape, len(config.codebook_parts), device=device, dtype=torch.int64)
        self.hidden = torch.ones(shape, dtype=torch.bool, device=device)
        self.frame, self.conditions, self.is_finished = frame, conditions, False

    @torch.no_grad()
    def finish_frame(self, more: bool) -> None:
        """Move the frame in progress to the history; the network reads it if `more` frames follow.

        Nothing here depends on the conditions of the next frame. A second call for one frame does nothing.
        """
        if self.is_finished:
            return
        self.is_finished = True
        self.accept(self.tokens, self.conditions)
        if more:
            self.history.catch_up()

    def decide(self, index: int) -> Bool[Tensor, "b n"]:
        """Draw the set `index`; returns the tokens that it decided."""
        self.history.look()
        passes, hidden = self.config.num_passes, self.hidden
        previous = self._previous() if self.model.config.predicts_change else None
        z = self.model.restore(
            self.history.cache,
            self.tokens.repeat(passes, 1, 1),
            hidden.repeat(passes, 1),
            self.conditions,
            self.history.time,
            self.blind,
            previous,
        )  # (passes · b, n, d)
        left = int(hidden[0].sum()) - self.sizes[index]
        scale = self.config.scale_at(left, self.num_tokens)
        if self.plan is None and self.config.selection == "confidence":
            ids, drawn = self._most_confident(z, self.sizes[index], scale)
        else:
            start = sum(self.sizes[:index])
            ids = self.order[:, start : start + self.sizes[index]]
            z = gather_rows(z, ids.repeat(passes, 1))  # (passes · b, set, d)
            previous = None if previous is None else gather_rows(previous, ids.repeat(passes, 1))
            drawn = self._codes(z, scale)[0] if self.plan is None else self._denoise(self.plan, z, scale, previous)
        self.tokens = self.tokens.scatter(1, ids[..., None].expand_as(drawn), drawn)  # (b, n, k)
        self.hidden = hidden.scatter(1, ids, False)
        return hidden & ~self.hidden

    def _previous(self) -> Float[Tensor, "passes_b n k"]:
        """Tokens of the frame before; zeros where there is none, and for rows that see no history."""
        frames = self.history.frames
        tokens = frames[-1].tokens if frames else torch.zeros_like(self.tokens)
        tokens = tokens.repeat(self.config.num_passes, 1, 1)
        return tokens if self.blind is None else tokens.masked_fill(self.blind[:, None, None], 0)

    def _denoise(
        self,
        plan: Plan,
        z: Float[Tensor, "passes_b n d"],
        scale: float,
        previous: Float[Tensor, "passes_b n k"] | None = None,
    ) -> Float[Tensor, "b n k"]:
        """From noise to tokens. Every pass reads the same noisy tokens; the variance is the conditional pass's.

        `previous`: what the head's prediction is added to.
        """
        count, rows = z.shape[1], self._num_rows(z.shape[1])
        noise = [self._noise(count)]
        noise += [self._noise(count) * self.config.temperature for k in range(len(plan)) if plan.needs_noise(k)]
        optional = [] if previous is None else [padded_rows(previous, rows)]
        step = partial(denoised, self.model.denoiser, plan, self.times, self.config.num_passes)
        x = self.steps.replay(
            (self.config, z.shape[0], rows, z.dtype, previous is None),
            step,
            padded_rows(z, rows),
            padded_rows(torch.stack(noise), rows),
            torch.full((), float(scale), device=z.device),
            *optional,
            memory=[self.times],
        )[:, :count]
        require_finite(x, f"The latents of frame {self.frame}", z.dtype)
        return x

    def _num_rows(self, count: int) -> int:
        """Tokens that are denoised together: a recorded step takes those of the largest set, and serves all sets."""
        return max(self.sizes) if self.steps.are_recorded else count

    def _noise(self, count: int) -> Float[Tensor, "b n k"]:
        shape = self.batch_size, count, self.model.config.token_size
        return randn(self.generator, *shape).to(self.model.device)

    def _codes(
        self, z: Float[Tensor, "passes_b n d"], scale: float
    ) -> tuple[Int[Tensor, "b n k"], Float[Tensor, "b n"]]:
        """Discrete tokens, and the logarithms of their probabilities."""
        parts = self.model.config.codebook_parts
        assert parts is not None
        logits = self.model.code_logits(z)
        dtype, logits = logits.dtype, logits.float()
        if self.config.num_passes == 2:
            conditional, unconditional = logits.chunk(2)
            logits = guide(conditional, unconditional, scale)
        logits = drawable(logits, dtype, f"The model's logits for frame {self.frame}")
        digits: list[Tensor] = []
        confidence = torch.zeros(logits.shape[:2], device=z.device)
        for part in torch.split(logits, list(parts), dim=-1):
            noise = gumbel(tuple(part.shape), self.generator, part.device)
            digits.append(sample_categorical(part, noise, self.config.temperature))
            confidence = confidence + log_probability(part, digits[-1])
        return torch.stack(digits, dim=-1), confidence

    def _most_confident(
        self, z: Float[Tensor, "passes_b n d"], count: int, scale: float
    ) -> tuple[Int[Tensor, "b r"], Int[Tensor, "b r k"]]:
        """Draw all hidden tokens and keep the most probable ones."""
        codes, confidence = self._codes(z, scale)
        ids = confidence.masked_fill(~self.hidden, -math.inf).topk(count, dim=1).indices
        return ids, gather_rows(codes, ids)

    def draft(self) -> Callable[[], Latents]:
        """Builds the clip as it is now, zeros where nothing is decided; without an end, the window."""
        frames = (*self.shown, self.tokens)
        return partial(_layout, self.model, frames, self.num_frames or len(frames))

    def draft_of(self, first: int) -> Callable[[], Latents]:
        """Builds the shown frames from `first` to the one in progress."""
        frames = (*self.shown, self.tokens)[first:]
        return partial(_layout, self.model, frames, len(frames))


def _layout(
    model: HistoryModel[Conditions], frames: tuple[Num[Tensor, "b n k"], ...], num_frames: int
) -> Num[Tensor, "b *c f h w"]:
    """Frames of tokens as latents or codes, with zeros up to `num_frames`."""
    clip = model.to_frames(torch.stack(frames, dim=1))
    missing = torch.zeros_like(clip[..., :1, :, :]).repeat_interleave(num_frames - len(frames), dim=-3)
    return torch.cat([clip, missing], dim=-3)


def denoised(
    head: DiffusionHead,
    plan: Plan,
    times: Float[Tensor, "steps w"],
    passes: int,
    z: Float[Tensor, "passes_b n d"],
    noise: Float[Tensor, "draws b n k"],
    scale: Float[Tensor, ""],
    previous: Float[Tensor, "passes_b n k"] | None = None,
) -> Float[Tensor, "b n k"]:
    """All diffusion steps of a set. `noise`: where it starts, then the fresh noise of each step that needs some."""
    condition, draws = head.condition(z), iter(noise.unbind())
    x = next(draws)
    for k in range(len(plan)):
        output = head(x.repeat(passes, 1, 1).to(z), condition, times[k])  # (passes · b, n, 2k)
        if previous is not None:
            output = output + F.pad(previous, (0, previous.shape[-1]))
        if passes == 2:
            conditional, unconditional = output.chunk(2)
            count = plan.num_guided(output.shape[-1])
            guided = guide(conditional[..., :count], unconditional[..., :count], scale)
            output = torch.cat([guided, conditional[..., count:]], dim=-1)
        x = plan.step(k, x, output, next(draws) if plan.needs_noise(k) else None)
    return x.to(z)
