"""Frame by frame, and within a frame set by set in random order: NOVA's decoding of continuous tokens (2412.14169).

A frame starts empty. The network turns its context and the tokens decided so far into a condition for each token of the
next set, and a small diffusion network draws that set from noise.
"""

import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mutoscope.errors import UserError
from mutoscope.layers.diffusion import Plan
from mutoscope.layers.patchify import patchify, unpatchify
from mutoscope.layers.token_masking import gather_rows
from mutoscope.sampling.base import SampleEvent


class DiffusionHead(Protocol):
    """Draws tokens: what it makes of conditions and times is computed once and used in every step."""

    def condition(self, z: Float[Tensor, "b n d"]) -> Float[Tensor, "b n e"]: ...

    def time(self, times: Float[Tensor, " s"]) -> Float[Tensor, "s e"]: ...

    def __call__(
        self, x: Float[Tensor, "b n p"], condition: Float[Tensor, "b2 n e"], time: Float[Tensor, " e"]
    ) -> Float[Tensor, "b2 n p"]: ...


class FrameModel(Protocol):
    """All the sampler asks of a network. A canvas is a frame being filled in; a state remembers finished frames."""

    config: Any
    """Has latent_channels, latent_shape, patch_size, grid (rows and columns of tokens) and diffusion."""
    head: Any

    @property
    def device(self) -> torch.device: ...

    def start(
        self, prefix: Float[Tensor, "b l d"], num_slots: int, blind: Bool[Tensor, " b"] | None = None
    ) -> tuple[Any, Float[Tensor, "b m d"]]: ...

    def read_frame(self, state: Any, frame: Float[Tensor, "b c 1 h w"]) -> Float[Tensor, "b m d"]: ...

    def canvas(self, context: Float[Tensor, "b m d"]) -> Any: ...

    def write(self, canvas: Any, ids: Int[Tensor, "b k"], vectors: Float[Tensor, "b k p"]) -> None: ...

    def fill(self, canvas: Any, ids: Int[Tensor, "b r"] | None = None) -> Float[Tensor, "b r d"]: ...


@dataclass(frozen=True)
class FrameCondition:
    """Prefixes of the passes of guidance: `rows` names one for each sample, conditional ones first.

    Passes are [conditional], with guidance [conditional; unconditional], and with image guidance a third, for which
    the prefix is the unconditional one, and the second is blind to frames. Equal prefixes are read once.
    """

    prefix: Float[Tensor, "u l d"]
    rows: Int[Tensor, " passes_b"]
    num_passes: int
    blind: Bool[Tensor, " u"] | None = None

    @property
    def num_samples(self) -> int:
        return len(self.rows) // self.num_passes


@dataclass(frozen=True)
class FrameARSamplerConfig:
    """`guidance_scale` is that of the text (1: off); from `min_guidance_scale`, if given, it rises over a frame's sets.

    `guidance_trunc`: diffusion times below it go without guidance. `guidance_renorm` r < 1 shrinks guided outputs that
    are longer than unguided ones, to no less than r. `image_guidance_scale`: guidance by earlier frames (0: off).
    `flow_shift` moves the diffusion steps to higher noise.

    `context_refresh` n > 1 saves time and changes the result a little: only at every n-th set of a frame is all of the
    frame computed, in between the set itself and the tokens decided last, with the keys and values that the others
    had before (`NOVA.fill_in_part`).
    """

    num_decoding_steps: int = 64
    num_diffusion_steps: int = 25
    guidance_scale: float = 5.0
    min_guidance_scale: float | None = None
    guidance_trunc: float = 0.0
    guidance_renorm: float = 1.0
    image_guidance_scale: float = 0.0
    flow_shift: float | None = None
    context_refresh: int = 1

    def __post_init__(self) -> None:
        if self.num_decoding_steps < 1 or not 1 <= self.num_diffusion_steps <= 1000:
            raise UserError(
                f"There must be at least 1 decoding step and 1 to 1000 diffusion steps, found "
                f"{self.num_decoding_steps} and {self.num_diffusion_steps}."
            )
        for name in ("guidance_scale", "guidance_trunc", "image_guidance_scale"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name} must be finite and not negative, found {getattr(self, name)}.")
        if not 0 < self.guidance_renorm <= 1:
            raise UserError(f"guidance_renorm must lie in (0, 1], found {self.guidance_renorm}.")
        if self.context_refresh < 1:
            raise UserError(f"context_refresh must be at least 1, found {self.context_refresh}.")
        if self.flow_shift is not None and not 0 < self.flow_shift < math.inf:
            raise UserError(f"flow_shift must be positive, found {self.flow_shift}.")

    @property
    def num_passes(self) -> int:
        """How many rows of conditions each sample needs."""
        return 1 if self.guidance_scale <= 1 else (3 if self.image_guidance_scale > 0 else 2)

    def scale_at(self, index: int, count: int) -> float:
        """Guidance at a 0-based set of `count`."""
        if self.min_guidance_scale is None:
            return self.guidance_scale
        return self.min_guidance_scale + (self.guidance_scale - self.min_guidance_scale) * (index + 1) / count


def set_sizes(num_steps: int, num_tokens: int) -> list[int]:
    """Tokens decided in each step: what the rounded cosine schedule cos(πk / 2K) · N loses; some may be 0 (§3.3)."""
    left = [round(math.cos(math.pi / 2 * k / num_steps) * num_tokens) for k in range(num_steps + 1)]
    return [before - after for before, after in itertools.pairwise(left)]


class FrameARSampler:
    """Draws from `generator`, in this order: one order of tokens per sample for the whole clip; then for every set the
    noise of a whole frame, and with DDPM a frame of noise for every step that needs one. A published pipeline with a
    CPU generator draws the same, so equal seeds give equal clips.
    """

    def __init__(self, config: FrameARSamplerConfig) -> None:
        self.config = config

    @torch.no_grad()
    def sample(
        self,
        model: FrameModel,
        condition: FrameCondition,
        num_frames: int,
        generator: torch.Generator,
        given: Float[Tensor, "b c k h w"] | None = None,
    ) -> Iterator[SampleEvent]:
        """`num_frames` latent frames, those `given` among them. One event per set."""
        begin = time.perf_counter()
        num_given = 0 if given is None else given.shape[2]
        if num_given >= num_frames:
            raise UserError(f"{num_given} latent frames are given and {num_frames} asked for: nothing is left to make.")
        clip = _Clip(self.config, model, condition, num_frames, generator)
        for frame in range(num_given):
            assert given is not None
            clip.accept(given[:, :, frame : frame + 1])
        sizes = clip.sizes
        decided = torch.zeros(condition.num_samples, num_frames, *model.config.grid, dtype=torch.bool)
        for frame in range(num_given, num_frames):
            for index in range(len(sizes)):
                ids = clip.decide(index)
                last = index == len(sizes) - 1
                step = (frame - num_given) * len(sizes) + index
                decided = torch.zeros_like(decided)
                decided[:, frame].flatten(1).scatter_(1, ids.cpu(), True)
                finished = slice(frame if frame > num_given else 0, frame + 1) if last else None
                total = (num_frames - num_given) * len(sizes)
                seconds = time.perf_counter() - begin
                yield SampleEvent(step, total, decided, clip.latents(), finished, seconds)
            clip.finish_frame()


class _Clip:
    """A clip in the making."""

    def __init__(
        self,
        config: FrameARSamplerConfig,
        model: FrameModel,
        condition: FrameCondition,
        num_frames: int,
        generator: torch.Generator,
    ) -> None:
        self.config, self.model, self.condition, self.generator = config, model, condition, generator
        self.num_frames, self.batch_size, shape = num_frames, condition.num_samples, model.config
        self.num_tokens = shape.grid[0] * shape.grid[1]
        self.sizes = [size for size in set_sizes(config.num_decoding_steps, self.num_tokens) if size > 0]
        self.plan: Plan = shape.diffusion.plan(config.num_diffusion_steps, config.flow_shift)
        self.frames: list[Tensor] = []  # (b, c, 1, h, w) each
        state, context = model.start(condition.prefix, num_frames, condition.blind)
        self.state, self.context = state.take(condition.rows), context[condition.rows]
        self.times = model.head.time(self.plan.times.to(model.device))  # (steps, e)
        self.order: Tensor | None = None
        self.vectors = torch.zeros(0)
        self.canvas: Any = None

    def accept(self, frame: Float[Tensor, "b c 1 h w"]) -> None:
        """A finished frame: the network reads it, if another one follows."""
        self.frames.append(frame)
        self.canvas = None
        if len(self.frames) < self.num_frames:
            self.context = self.model.read_frame(self.state, frame.repeat(self.condition.num_passes, 1, 1, 1, 1))

    def finish_frame(self) -> None:
        self.accept(self._latents_of_frame())

    def decide(self, index: int) -> Int[Tensor, "b n"]:
        """Draws the set `index` of the current frame; returns its places."""
        if self.order is None:
            uniform = torch.rand(self.batch_size, self.num_tokens, 1, generator=self.generator)
            self.order = uniform[..., 0].argsort(dim=1).to(self.model.device)
        if self.canvas is None:
            self.canvas = self.model.canvas(self.context)
            token_size = self.model.config.patch_size**2 * self.model.config.latent_channels
            self.vectors = self.context.new_zeros(self.batch_size, self.num_tokens, token_size)
        start = sum(self.sizes[:index])
        ids = self.order[:, start : start + self.sizes[index]]
        every = ids.repeat(self.condition.num_passes, 1)
        z = self._conditions(index, every)
        drawn = self._denoise(z, ids, self.config.scale_at(index, len(self.sizes)))
        self.vectors = self.vectors.scatter(1, ids[..., None].expand_as(drawn), drawn)
        self.model.write(self.canvas, every, drawn.repeat(self.condition.num_passes, 1, 1))
        return ids

    def _conditions(self, index: int, every: Int[Tensor, "passes_b n"]) -> Float[Tensor, "passes_b n d"]:
        """What the network says of the set `index`, whose places for all passes are `every`."""
        if self.config.context_refresh == 1:
            return self.model.fill(self.canvas, every)
        model: Any = self.model
        if not hasattr(model, "fill_in_part"):
            raise UserError("This model computes whole frames at every set. Leave context_refresh out.")
        if index % self.config.context_refresh == 0:
            return model.fill(self.canvas, every, remember=True)
        return model.fill_in_part(self.canvas, every)

    def _denoise(
        self, z: Float[Tensor, "passes_b n d"], ids: Int[Tensor, "b n"], scale: float
    ) -> Float[Tensor, "b n p"]:
        """From noise to the tokens `ids`.

        With renorm the norms go over the whole frame, where what lies outside the set counts as its own prediction:
        those tokens are carried along behind the set's.
        """
        whole = self.config.guidance_renorm < 1 and self.condition.num_passes > 1
        places = self._with_others(ids) if whole else ids
        n, b = ids.shape[1], self.batch_size
        x, condition = self._noise(places), self.model.head.condition(z)
        for k in range(len(self.plan)):
            guided = self.condition.num_passes > 1 and float(self.plan.times[k]) >= self.config.guidance_trunc
            outputs = self.model.head(x[:, :n], condition if guided else condition[:b], self.times[k])
            if guided:
                output = combine(outputs.chunk(self.condition.num_passes), x[:, n:], scale, self.config)
            else:
                output = torch.cat([outputs, x[:, n:]], dim=1)
            noise = self._noise(places) if self.plan.needs_noise(k) else None
            x = self.plan.step(k, x, output, noise)
        return x[:, :n]

    def _with_others(self, ids: Int[Tensor, "b n"]) -> Int[Tensor, "b all"]:
        """The places of a set, then all others."""
        others = torch.ones(self.batch_size, self.num_tokens, device=ids.device).scatter(1, ids, 0.0)
        rest = others.argsort(dim=1, descending=True, stable=True)[:, : self.num_tokens - ids.shape[1]]
        return torch.cat([ids, rest], dim=1)

    def _noise(self, places: Int[Tensor, "b n"]) -> Float[Tensor, "b n p"]:
        """Noise of a whole frame, of which the places are kept."""
        config = self.model.config
        shape = self.batch_size, config.latent_channels, 1, *config.latent_shape[1:]
        noise = torch.randn(shape, generator=self.generator).to(self.context)
        return gather_rows(patchify(noise, config.patch_size)[:, 0], places)

    def _latents_of_frame(self) -> Float[Tensor, "b c 1 h w"]:
        return unpatchify(self.vectors[:, None], self.model.config.grid, self.model.config.patch_size)

    def latents(self) -> Float[Tensor, "b c t h w"]:
        """The clip so far; zeros where nothing is decided."""
        done = [*self.frames, self._latents_of_frame()]
        missing = self.num_frames - len(done)
        return torch.cat([*done, torch.zeros_like(done[0]).expand(-1, -1, missing, -1, -1)], dim=2)


def combine(
    outputs: tuple[Float[Tensor, "b n p"], ...],
    others: Float[Tensor, "b r p"],
    scale: float,
    config: FrameARSamplerConfig,
) -> Float[Tensor, "b all p"]:
    """One prediction from those of all passes; `others` are tokens that every pass predicts alike.

    [conditional, unconditional]: u + s (c − u). With image guidance [conditional, without frames, without text]:
    u + s (c − i) + s_I (i − u).
    """
    conditional, unconditional = outputs[0], outputs[1]
    base = unconditional if len(outputs) == 2 else outputs[2]
    guided = torch.cat([unconditional + scale * (conditional - base), others], dim=1)
    if config.guidance_renorm < 1:
        length = torch.cat([conditional, others], dim=1).flatten(1).norm(dim=1)
        ratio = (length / guided.flatten(1).norm(dim=1)).clamp(config.guidance_renorm, 1.0)
        guided = guided * ratio[:, None, None]
    if len(outputs) == 3:
        n = conditional.shape[1]
        guided[:, :n] += config.image_guidance_scale * (base - unconditional)
    return guided
