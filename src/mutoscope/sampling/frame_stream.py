"""Frame after frame without an end: MAGI's decoding (2501.12389 §3.3, MAR's procedure within a frame).

A frame starts with all its tokens hidden and is filled in set by set in a random order fixed in advance. The network
reads the frame in progress beside what it remembers of finished ones; a finished frame is read once and remembered.
Beyond the length of training a window keeps the history at a length the network has seen.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from mutoscope.errors import UserError
from mutoscope.layers.token_masking import gather_rows
from mutoscope.sampling.base import SampleEvent
from mutoscope.sampling.categorical import gumbel, log_probability, sample_categorical
from mutoscope.sampling.guidance import guide


class HistoryModel(Protocol):
    """All the sampler asks of a network. What frames are told is a value of its own, which the sampler passes on."""

    config: Any
    """Has num_tokens, grid, latent_shape, codebook_parts and, for continuous tokens, token_size and diffusion."""
    head: Any

    @property
    def device(self) -> torch.device: ...

    def to_tokens(self, frames: Num[Tensor, "b *c f h w"]) -> Num[Tensor, "b f n k"]: ...

    def to_frames(self, tokens: Num[Tensor, "b f n k"]) -> Num[Tensor, "b *c f h w"]: ...

    def reserve(self, batch_size: int, num_frames: int) -> Any: ...

    def observe(self, cache: Any, tokens: Num[Tensor, "b f n k"], conditions: Any, first: int, level: int) -> None: ...

    def restore(
        self,
        cache: Any,
        tokens: Num[Tensor, "b n k"],
        hidden: Bool[Tensor, "b n"],
        conditions: Any,
        time: int,
        blind: Bool[Tensor, " b"] | None,
    ) -> Float[Tensor, "b n d"]: ...


class FrameConditions(Protocol):
    """What one frame is told, for the rows of all passes of guidance: conditional ones first."""

    @classmethod
    def grouped(cls, frames: Sequence[Any]) -> list[tuple[int, Any]]:
        """Neighbouring frames that are told alike, but for their actions, as one value each: (count, value)."""
        ...

    def first(self, count: int) -> Any:
        """The same for the first rows alone."""
        ...


@dataclass(frozen=True)
class FrameStreamSamplerConfig:
    """`num_decoding_steps`: sets per frame. `num_diffusion_steps`: per token, of the 1,000 of training.

    `guidance_schedule`: constant, or rising with the share of decided tokens as in MAR. `guidance_by`: against a pass
    without conditions, or against one without history. `temperature`: factor of the noise added in diffusion, or of
    the distribution of discrete tokens. `sample_range`: bound of the predicted token, in its standard deviations.
    `eta`: diffusion by DDIM, with no noise at 0.

    `window`: frames that see each other, the one in progress among them (None: as many as in training). When it is
    full it moves on by one frame and is read again ("sliding"), or by half its length ("chunked"); "anchored" slides
    behind the first frame, which stays, for networks trained on clips that jump (`DataConfig.max_jump`); "growing"
    keeps all frames, with positions in time that training never saw. `context_noise_level`: the level of noise that
    history is said to have. `selection`: with discrete tokens "confidence" keeps the most probable ones of each step
    in place of a random set. `use_cache=False` reads the history anew in every step, with the same result, to compare.
    """

    num_decoding_steps: int = 64
    num_diffusion_steps: int = 100
    guidance_scale: float = 1.0
    guidance_schedule: Literal["linear", "constant"] = "linear"
    guidance_by: Literal["conditions", "history"] = "conditions"
    temperature: float = 1.0
    sample_range: float | None = None
    eta: float | None = None
    window: int | None = None
    window_mode: Literal["sliding", "anchored", "growing", "chunked"] = "sliding"
    context_noise_level: int = 0
    selection: Literal["random", "confidence"] = "random"
    use_cache: bool = True

    def __post_init__(self) -> None:
        if self.num_decoding_steps < 1 or not 1 <= self.num_diffusion_steps <= 1000:
            raise UserError(
                f"There must be at least 1 decoding step and 1 to 1000 diffusion steps, found "
                f"{self.num_decoding_steps} and {self.num_diffusion_steps}."
            )
        for name in ("guidance_scale", "temperature", "eta"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise UserError(f"{name} must be finite and not negative, found {value}.")
        if self.sample_range is not None and not self.sample_range > 0:
            raise UserError(f"sample_range must be positive, found {self.sample_range}.")
        if self.window is not None and self.window < 1:
            raise UserError(f"window must be at least 1 frame, found {self.window}.")
        if self.context_noise_level < 0:
            raise UserError(f"context_noise_level must not be negative, found {self.context_noise_level}.")

    @property
    def num_passes(self) -> int:
        """How many rows of conditions each sample needs."""
        return 1 if self.guidance_scale == 1 else 2

    def scale_at(self, num_left: int, num_tokens: int) -> float:
        """Guidance of a step after which `num_left` tokens are hidden."""
        if self.guidance_schedule == "constant":
            return self.guidance_scale
        return 1 + (self.guidance_scale - 1) * (num_tokens - num_left) / num_tokens


def masked_counts(num_steps: int, num_tokens: int) -> list[int]:
    """Hidden tokens before every step: floor(N cos(π/2 · k/K)), but at least one fewer each time and never 0.

    With more steps than tokens the last ones before the end decide nothing.
    """
    counts = [num_tokens]
    for k in range(1, num_steps):
        counts.append(max(1, min(counts[-1] - 1, math.floor(num_tokens * math.cos(math.pi / 2 * k / num_steps)))))
    return counts


def set_sizes(num_steps: int, num_tokens: int) -> list[int]:
    """Tokens decided in each step; the last one decides all that are left."""
    counts = [*masked_counts(num_steps, num_tokens), 0]
    return [before - after for before, after in itertools.pairwise(counts)]


class FrameStreamSampler:
    """Draws from `generator`, in this order for every frame: an order of its tokens per sample; then for every set
    the noise it starts from and the noise of each diffusion step (or the noise of its categorical draws).
    """

    def __init__(self, config: FrameStreamSamplerConfig) -> None:
        self.config = config

    @torch.no_grad()
    def sample(
        self,
        model: HistoryModel,
        conditions: Callable[[int], FrameConditions],
        num_samples: int,
        num_frames: int | None,
        generator: torch.Generator,
        given: Num[Tensor, "b *c k h w"] | None = None,
    ) -> Iterator[SampleEvent]:
        """`num_frames` latent frames, those `given` among them; None: until the caller stops. One event per set.

        `conditions(frame)` is asked once for every frame, just before it is needed. Without an end, events show the
        window instead of the whole clip.
        """
        begin = time.perf_counter()
        stream = _Stream(self.config, model, num_samples, num_frames, generator)
        num_given = 0 if given is None else given.shape[-3]
        stream.check_given(num_given)
        for frame in range(num_given):
            assert given is not None
            stream.accept(model.to_tokens(given[..., frame : frame + 1, :, :])[:, 0], conditions(frame))
        stream.read()
        total = 0 if num_frames is None else (num_frames - num_given) * len(stream.sizes)
        frame, step = num_given, 0
        while num_frames is None or frame < num_frames:
            stream.begin_frame(conditions(frame))
            for index in range(len(stream.sizes)):
                decided = stream.decide(index)
                clip = stream.clip()
                last, end = index == len(stream.sizes) - 1, len(stream.shown) + 1
                # The first event also hands over what was given.
                finished = slice(end - 1 if frame > num_given else 0, end) if last else None
                shape = (num_samples, num_frames or end, *model.config.grid)
                places = torch.zeros(shape, dtype=torch.bool)
                places[:, end - 1] = decided.view(num_samples, *model.config.grid).cpu()
                yield SampleEvent(step, total, places, clip, finished, time.perf_counter() - begin)
                step += 1
            stream.finish_frame(more=num_frames is None or frame + 1 < num_frames)
            frame += 1


@dataclass
class _Told:
    """A finished frame and what it was told."""

    tokens: Num[Tensor, "b n k"]
    conditions: Any


class _Stream:
    """The frames so far, what the network remembers of them, and the frame in progress."""

    def __init__(
        self,
        config: FrameStreamSamplerConfig,
        model: HistoryModel,
        batch_size: int,
        num_frames: int | None,
        generator: torch.Generator,
    ) -> None:
        self.config, self.model, self.batch_size, self.generator = config, model, batch_size, generator
        self.num_frames, self.num_tokens = num_frames, model.config.num_tokens
        self.sizes = [size for size in set_sizes(config.num_decoding_steps, self.num_tokens) if size]
        self.window = config.window or model.config.latent_shape[0]
        if self.window < 2 and config.window_mode == "anchored":
            raise UserError(
                "An anchored window holds the first frame beside the one in progress: it must be at least 2 frames, "
                f"found {self.window}."
            )
        if num_frames is None and config.window_mode == "growing":
            raise UserError("A growing window has no end to its memory: give num_frames, or slide the window.")
        capacity = num_frames if config.window_mode == "growing" else self.window
        if num_frames is not None:
            capacity = min(capacity or num_frames, num_frames)
        assert capacity is not None
        self.cache = model.reserve(config.num_passes * batch_size, capacity)
        self.history: list[_Told] = []  # what the network remembers, or is about to read
        self.shown: list[Tensor] = []  # frames of the clip; without an end, of the window
        self.plan: Any = None
        if model.config.codebook_parts is None:
            self.plan = model.config.diffusion.plan(config.num_diffusion_steps, config.sample_range, config.eta)
            self.times = model.head.time(self.plan.times.to(model.device))  # (steps, w)
        self.canvas: Tensor | None = None
        self.blind: Tensor | None = None
        if config.num_passes == 2 and config.guidance_by == "history":
            self.blind = torch.arange(2 * batch_size, device=model.device) >= batch_size
            for memory in (self.cache.keys, self.cache.values):  # never written for these, and NaN gets through masks
                memory[:, memory.shape[1] // 2 :].zero_()

    # --------------------------------------------------------------------------------------------------- history

    def check_given(self, count: int) -> None:
        if self.num_frames is not None and count >= self.num_frames:
            raise UserError(f"{count} latent frames are given and {self.num_frames} asked for: nothing is left.")
        if self.config.window_mode != "growing" and count >= self.window:
            raise UserError(
                f"{count} latent frames are given, but a window of {self.window} holds {self.window - 1} beside the "
                "one in progress: give fewer frames, or use window_mode growing."
            )

    def accept(self, tokens: Num[Tensor, "b n k"], conditions: Any) -> None:
        self.history.append(_Told(tokens, conditions))
        self.shown.append(tokens)
        if self.num_frames is None:
            self.shown = self.shown[-self.window :]

    def read(self) -> None:
        """Reads all of the history anew."""
        self.cache.length, first = 0, 0
        if not self.history:
            return
        told = [frame.conditions for frame in self.history]
        for count, conditions in type(told[0]).grouped(told):
            self._observe([h.tokens for h in self.history[first : first + count]], conditions, first)
            first += count

    def _observe(self, frames: list[Tensor], conditions: Any, first: int) -> None:
        tokens, level = torch.stack(frames, dim=1), self.config.context_noise_level
        if self.blind is None:
            self.model.observe(self.cache, tokens.repeat(self.config.num_passes, 1, 1, 1), conditions, first, level)
            return
        # The blind half never looks at what would be read for it.
        seeing = self.cache.first(self.cache.keys.shape[1] // 2)
        self.model.observe(seeing, tokens, conditions.first(len(tokens)), first, level)
        self.cache.length = seeing.length

    def make_room(self) -> None:
        """Moves a full window on."""
        if self.config.window_mode == "growing" or len(self.history) < self.window:
            return
        mode, count = self.config.window_mode, len(self.history)
        keep = self.window // 2 if mode == "chunked" else self.window - 1 - (mode == "anchored")
        anchor = self.history[:1] if mode == "anchored" else []
        self.history = anchor + self.history[count - keep :]
        self.read()

    # --------------------------------------------------------------------------------------- the frame in progress

    def begin_frame(self, conditions: Any) -> None:
        self.make_room()
        uniform = torch.rand(self.batch_size, self.num_tokens, generator=self.generator)
        self.order = uniform.argsort(dim=1).to(self.model.device)
        config, device = self.model.config, self.model.device
        shape = self.batch_size, self.num_tokens
        if config.codebook_parts is None:
            self.tokens = torch.zeros(*shape, config.token_size, device=device, dtype=self.cache.keys.dtype)
        else:
            self.tokens = torch.zeros(*shape, len(config.codebook_parts), device=device, dtype=torch.int64)
        self.hidden = torch.ones(shape, dtype=torch.bool, device=device)
        self.conditions = conditions

    def finish_frame(self, more: bool) -> None:
        self.accept(self.tokens, self.conditions)
        if more and self.config.use_cache:
            self._observe([self.tokens], self.conditions, len(self.history) - 1)

    def decide(self, index: int) -> Bool[Tensor, "b n"]:
        """Draws the set `index`; returns its places."""
        if not self.config.use_cache:
            self.read()
        passes, hidden = self.config.num_passes, self.hidden
        z = self.model.restore(
            self.cache,
            self.tokens.repeat(passes, 1, 1),
            hidden.repeat(passes, 1),
            self.conditions,
            len(self.history),
            self.blind,
        )
        left = int(hidden[0].sum()) - self.sizes[index]
        scale = self.config.scale_at(left, self.num_tokens)
        if self.plan is None and self.config.selection == "confidence":
            ids, drawn = self._most_confident(z, self.sizes[index], scale)
        else:
            start = sum(self.sizes[:index])
            ids = self.order[:, start : start + self.sizes[index]]
            z = gather_rows(z, ids.repeat(passes, 1))
            drawn = self._codes(z, scale)[0] if self.plan is None else self._denoise(z, scale)
        self.tokens = self.tokens.scatter(1, ids[..., None].expand_as(drawn), drawn)
        self.hidden = hidden.scatter(1, ids, False)
        return hidden & ~self.hidden

    def _denoise(self, z: Float[Tensor, "passes_b n d"], scale: float) -> Float[Tensor, "b n k"]:
        """From noise to tokens. Every pass reads the same noisy tokens; the variance is the conditional one's."""
        condition, passes = self.model.head.condition(z), self.config.num_passes
        x = self._noise(z.shape[1])
        for k in range(len(self.plan)):
            output = self.model.head(x.repeat(passes, 1, 1).to(z), condition, self.times[k])
            if passes == 2:
                conditional, unconditional = output.chunk(2)
                noise, fraction = conditional.chunk(2, dim=-1)
                output = torch.cat([guide(noise, unconditional.chunk(2, dim=-1)[0], scale), fraction], dim=-1)
            fresh = self._noise(z.shape[1]) * self.config.temperature if self.plan.needs_noise(k) else None
            x = self.plan.step(k, x, output, fresh)
        return x.to(z)

    def _noise(self, count: int) -> Float[Tensor, "b n k"]:
        shape = self.batch_size, count, self.model.config.token_size
        return torch.randn(shape, generator=self.generator).to(self.model.device)

    def _codes(
        self, z: Float[Tensor, "passes_b n d"], scale: float
    ) -> tuple[Int[Tensor, "b n k"], Float[Tensor, "b n"]]:
        """Discrete tokens, and the logarithms of their probabilities."""
        logits = self.model.head(z).float()
        logits = guide(*logits.chunk(2), scale) if self.config.num_passes == 2 else logits
        digits, confidence = [], torch.zeros(logits.shape[:2], device=z.device)
        for part in logits.split(self.model.config.codebook_parts, dim=-1):
            noise = gumbel(tuple(part.shape), self.generator, part.device)
            digits.append(sample_categorical(part, noise, self.config.temperature))
            confidence = confidence + log_probability(part, digits[-1])
        return torch.stack(digits, dim=-1), confidence

    def _most_confident(
        self, z: Float[Tensor, "passes_b n d"], count: int, scale: float
    ) -> tuple[Int[Tensor, "b r"], Int[Tensor, "b r k"]]:
        """Draws all hidden tokens and keeps the most probable ones."""
        codes, confidence = self._codes(z, scale)
        ids = confidence.masked_fill(~self.hidden, -math.inf).topk(count, dim=1).indices
        return ids, gather_rows(codes, ids)

    def clip(self) -> Num[Tensor, "b *c f h w"]:
        """The clip so far, zeros where nothing is decided; without an end, the window."""
        current = self.model.to_frames(self.tokens[:, None])
        if self.num_frames is None:
            return self.model.to_frames(torch.stack([*self.shown, self.tokens], dim=1))
        if self.canvas is None:
            # Laid out once: most of a long clip stays as it is from one set to the next.
            past = [self.model.to_frames(tokens[:, None]) for tokens in self.shown]
            future = torch.zeros_like(current).repeat_interleave(self.num_frames - len(past), dim=-3)
            self.canvas = torch.cat([*past, future], dim=-3)
        place = len(self.shown)
        self.canvas[..., place : place + 1, :, :] = current
        return self.canvas.clone()
