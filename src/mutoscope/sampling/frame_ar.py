"""Frame by frame, and within a frame set by set in random order: NOVA's decoding of continuous tokens.

arXiv 2412.14169, §3.3 and §3.4. A frame starts empty. The network turns its context and the tokens decided so far into
a condition for each token of the next set, and a small diffusion network draws that set from noise.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Generic, Protocol, Self, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mutoscope.checks import COUNT, NOT_NEGATIVE, POSITIVE, Range, check_fields
from mutoscope.errors import UserError
from mutoscope.layers.diffusion import Diffusion, Plan
from mutoscope.layers.finite import require_finite
from mutoscope.layers.patchify import patchify, unpatchify
from mutoscope.layers.recorded import Steps
from mutoscope.layers.shortcut import Shortcut
from mutoscope.layers.token_masking import gather_rows
from mutoscope.sampling.base import Latents, SampleEvent, Sampler


class DiffusionHead(Protocol):
    """Denoises tokens. Embeddings of conditions and times are computed once and used in every diffusion step."""

    def condition(self, z: Float[Tensor, "b n d"]) -> Float[Tensor, "b n e"]: ...

    def time(self, times: Float[Tensor, " s"], lengths: Float[Tensor, " s"] | None = None) -> Float[Tensor, "s e"]:
        """`lengths`: of the steps, for a head that reads them."""
        ...

    def __call__(
        self, x: Float[Tensor, "b n p"], condition: Float[Tensor, "b2 n e"], time: Float[Tensor, " e"]
    ) -> Float[Tensor, "b2 n p"]: ...


class FrameSizes(Protocol):
    """Sizes of a frame and the diffusion that its tokens are drawn with."""

    @property
    def latent_channels(self) -> int: ...
    @property
    def latent_shape(self) -> tuple[int, int, int]: ...
    @property
    def patch_size(self) -> int: ...
    @property
    def grid(self) -> tuple[int, int]: ...  # rows and columns of tokens
    @property
    def diffusion(self) -> Diffusion | Shortcut: ...


class FrameState(Protocol):
    """What a network remembers of finished frames."""

    def take(self, rows: Int[Tensor, " b"]) -> Self:
        """The memory of chosen rows, each as often as it is named."""
        ...


State = TypeVar("State", bound=FrameState)
Canvas = TypeVar("Canvas")


class FrameModel(Protocol[State, Canvas]):
    """Methods that the sampler needs of a network. A canvas is a frame being filled in."""

    @property
    def config(self) -> FrameSizes: ...

    @property
    def head(self) -> DiffusionHead: ...

    @property
    def device(self) -> torch.device: ...

    def start(
        self, prefix: Float[Tensor, "b l d"], num_slots: int, blind: Bool[Tensor, " b"] | None = None
    ) -> tuple[State, Float[Tensor, "b m d"]]:
        """Read the prefix; returns the memory and the context of the first frame."""
        ...

    def read_frame(self, state: State, frame: Float[Tensor, "b c 1 h w"]) -> Float[Tensor, "b m d"]:
        """Read a finished frame into the memory; returns the context of the next frame."""
        ...

    def canvas(self, context: Float[Tensor, "b m d"]) -> Canvas:
        """A frame without any decided token."""
        ...

    def write(self, canvas: Canvas, ids: Int[Tensor, "b k"], vectors: Float[Tensor, "b k p"]) -> None:
        """Put decided tokens on the canvas."""
        ...

    def fill(
        self, canvas: Canvas, ids: Int[Tensor, "b r"] | None = None, remember: bool = False
    ) -> Float[Tensor, "b r d"]:
        """Outputs for the tokens `ids`; `remember` keeps keys and values for `fill_in_part`."""
        ...

    def fill_in_part(self, canvas: Canvas, ids: Int[Tensor, "b r"]) -> Float[Tensor, "b r d"]:
        """An approximation of `fill` that computes `ids` and the tokens written since the last call only."""
        ...


@dataclass(frozen=True)
class FrameCondition:
    """What the samples of one batch are conditioned on: prefixes of all guidance passes, and frames to continue.

    Passes are [conditional], with guidance [conditional; unconditional], and with image guidance a third, for which
    the prefix is the unconditional one, and the second is blind to frames. Equal prefixes are read once.
    """

    prefix: Float[Tensor, "u l d"]
    rows: Int[Tensor, " passes_b"]
    """The prefix of each sample in each pass, conditional pass first."""
    num_passes: int
    blind: Bool[Tensor, " u"] | None = None
    """Prefixes whose pass never sees a frame."""
    num_frames: int = 1
    """Latent frames of the clip, those of the context among them."""
    context: Float[Tensor, "b c k h w"] | None = None
    """Latents of the frames that the clip starts with."""

    @property
    def num_samples(self) -> int:
        return len(self.rows) // self.num_passes

    @property
    def num_context(self) -> int:
        """Latent frames of the context."""
        return 0 if self.context is None else self.context.shape[2]


RANGES = {
    "num_decoding_steps": COUNT,
    "num_diffusion_steps": Range(1, 1000),
    "guidance_scale": NOT_NEGATIVE,
    "min_guidance_scale": NOT_NEGATIVE,
    "guidance_trunc": NOT_NEGATIVE,
    "guidance_renorm": Range(above=0, high=1),
    "image_guidance_scale": NOT_NEGATIVE,
    "flow_shift": POSITIVE,
    "context_refresh": COUNT,
}


@dataclass(frozen=True)
class FrameARSamplerConfig:
    """How a frame is divided into sets, and how the tokens of a set are drawn and guided."""

    num_decoding_steps: int = 64
    """Sets of tokens per frame."""
    num_diffusion_steps: int = 25
    """Denoising steps per token, 1 to 1000."""
    guidance_scale: float = 5.0
    """Guidance by the text or class, u + s (c - u); 1 is off."""
    min_guidance_scale: float | None = None
    """Scale at the first set of a frame, from which it rises to guidance_scale; None: constant."""
    guidance_trunc: float = 0.0
    """Diffusion times below this value go without guidance."""
    guidance_renorm: float = 1.0
    """r < 1 shrinks guided outputs that are longer than unguided ones, to no less than r times their length."""
    image_guidance_scale: float = 0.0
    """Guidance by earlier frames; 0 is off."""
    flow_shift: float | None = None
    """Moves the diffusion steps to higher noise (flow matching only); None: as in training."""
    context_refresh: int = 1
    """n > 1 recomputes the whole frame at every n-th set only, which is faster and changes the result a little."""

    def __post_init__(self) -> None:
        check_fields(self, RANGES)

    @property
    def num_passes(self) -> int:
        """Rows of conditions that each sample needs: 1, with guidance 2, with image guidance 3."""
        return 1 if self.guidance_scale <= 1 else (3 if self.image_guidance_scale > 0 else 2)

    def scale_at(self, index: int, count: int) -> float:
        """Guidance at a 0-based set of `count`."""
        if self.min_guidance_scale is None:
            return self.guidance_scale
        return self.min_guidance_scale + (self.guidance_scale - self.min_guidance_scale) * (index + 1) / count


def set_sizes(num_steps: int, num_tokens: int) -> list[int]:
    """Tokens decided in each step: decrease of the rounded cosine schedule cos(πk / 2K) · N; some may be 0 (§3.3)."""
    left = [round(math.cos(math.pi / 2 * k / num_steps) * num_tokens) for k in range(num_steps + 1)]
    return [before - after for before, after in itertools.pairwise(left)]


class FrameARSampler(Sampler[FrameModel[State, Canvas], FrameCondition, SampleEvent], Generic[State, Canvas]):
    """One event per set of tokens.

    Draws from `generator`, in this order: one order of tokens per sample for the whole clip; then for every set the
    noise of a whole frame, and with DDPM a frame of noise for every step that needs one. A published pipeline with a
    CPU generator draws the same, so equal seeds give equal clips.
    """

    def __init__(self, config: FrameARSamplerConfig, steps: Steps | None = None) -> None:
        """`steps`: records the denoising of a set; None: nothing is recorded."""
        self.config, self.steps = config, steps or Steps()

    @torch.no_grad()
    def sample(
        self,
        model: FrameModel[State, Canvas],
        condition: FrameCondition,
        generator: torch.Generator,
    ) -> Iterator[SampleEvent]:
        """`condition.num_frames` latent frames, those of the context among them."""
        begin = time.perf_counter()
        num_context, num_frames = condition.num_context, condition.num_frames
        if num_context >= num_frames:
            raise UserError(
                f"The context has {num_context} latent frames and the clip {num_frames}: nothing is left to generate."
            )
        clip = _Clip(self.config, self.steps, model, condition, generator)
        for frame in range(num_context):
            assert condition.context is not None
            clip.accept(condition.context[:, :, frame : frame + 1])
        sizes = clip.sizes
        grid = condition.num_samples, num_frames, *model.config.grid
        for frame in range(num_context, num_frames):
            for index in range(len(sizes)):
                ids = clip.decide(index)
                last = index == len(sizes) - 1
                decided = torch.zeros(grid, dtype=torch.bool)  # (b, t, h, w)
                decided[:, frame].flatten(1).scatter_(1, ids.cpu(), True)
                yield SampleEvent(
                    step=(frame - num_context) * len(sizes) + index,
                    num_steps=(num_frames - num_context) * len(sizes),
                    decided=decided,
                    # The first finished frame hands over the context too.
                    frames=slice(frame if frame > num_context else 0, frame + 1) if last else None,
                    seconds=time.perf_counter() - begin,
                    draft=clip.draft(),
                )
            clip.finish_frame()


class _Clip(Generic[State, Canvas]):
    """The finished frames of one batch, and the frame in progress."""

    def __init__(
        self,
        config: FrameARSamplerConfig,
        steps: Steps,
        model: FrameModel[State, Canvas],
        condition: FrameCondition,
        generator: torch.Generator,
    ) -> None:
        self.steps = steps
        self.config, self.model, self.condition, self.generator = config, model, condition, generator
        self.num_frames, self.batch_size, sizes = condition.num_frames, condition.num_samples, model.config
        self.num_tokens = sizes.grid[0] * sizes.grid[1]
        self.sizes = [size for size in set_sizes(config.num_decoding_steps, self.num_tokens) if size > 0]
        self.plan: Plan = sizes.diffusion.plan(config.num_diffusion_steps, config.flow_shift)
        self.frames: tuple[Tensor, ...] = ()  # (b, c, 1, h, w) each
        state, context = model.start(condition.prefix, self.num_frames, condition.blind)
        self.state, self.context = state.take(condition.rows), context[condition.rows]
        lengths = None if self.plan.lengths is None else self.plan.lengths.to(model.device)
        self.times = model.head.time(self.plan.times.to(model.device), lengths)  # (steps, e)
        self.order: Tensor | None = None
        self.vectors = torch.zeros(0)
        self.canvas: Canvas | None = None

    def accept(self, frame: Float[Tensor, "b c 1 h w"]) -> None:
        """A finished frame. The network reads it if another one follows."""
        self.frames = (*self.frames, frame)
        self.canvas = None
        if len(self.frames) < self.num_frames:
            self.context = self.model.read_frame(self.state, frame.repeat(self.condition.num_passes, 1, 1, 1, 1))

    def finish_frame(self) -> None:
        self.accept(self._latents_of_frame(self.vectors))

    def decide(self, index: int) -> Int[Tensor, "b n"]:
        """Draw the set `index` of the current frame; returns the raster indices of its tokens."""
        if self.order is None:
            # Drawn as (b, n, 1), like the published pipeline: the shape decides which numbers a generator gives.
            uniform = torch.rand(self.batch_size, self.num_tokens, 1, generator=self.generator)
            self.order = uniform[..., 0].argsort(dim=1).to(self.model.device)  # (b, n)
        if self.canvas is None:
            self.canvas = self.model.canvas(self.context)
            token_size = self.model.config.patch_size**2 * self.model.config.latent_channels
            self.vectors = self.context.new_zeros(self.batch_size, self.num_tokens, token_size)
        start = sum(self.sizes[:index])
        ids = self.order[:, start : start + self.sizes[index]]
        all_ids = ids.repeat(self.condition.num_passes, 1)  # (passes · b, n)
        z = self._conditions(self.canvas, index, all_ids)
        drawn = self._denoise(z, ids, self.config.scale_at(index, len(self.sizes)))
        require_finite(drawn, f"The latents of frame {len(self.frames)}", z.dtype)
        self.vectors = self.vectors.scatter(1, ids[..., None].expand_as(drawn), drawn)  # (b, tokens, p)
        self.model.write(self.canvas, all_ids, drawn.repeat(self.condition.num_passes, 1, 1))
        return ids

    def _conditions(
        self, canvas: Canvas, index: int, all_ids: Int[Tensor, "passes_b n"]
    ) -> Float[Tensor, "passes_b n d"]:
        """The network's outputs for the set `index`, whose raster indices in all passes are `all_ids`."""
        if self.config.context_refresh == 1:
            return self.model.fill(canvas, all_ids)
        if index % self.config.context_refresh == 0:
            return self.model.fill(canvas, all_ids, remember=True)
        return self.model.fill_in_part(canvas, all_ids)

    def _denoise(
        self, z: Float[Tensor, "passes_b n d"], ids: Int[Tensor, "b n"], scale: float
    ) -> Float[Tensor, "b n p"]:
        """Denoise the tokens `ids`.

        With renorm the norms are those of the whole frame, where tokens outside the set count as their own prediction:
        these tokens follow the set's in `x`.
        """
        passes = self.condition.num_passes
        whole = self.config.guidance_renorm < 1 and passes > 1
        rows, n = self._with_others(ids) if whole else ids, ids.shape[1]
        noise = [self._noise(rows)]
        noise += [self._noise(rows) for k in range(len(self.plan)) if self.plan.needs_noise(k)]
        draws = torch.stack(noise)  # (draws, b, rows, p)
        step = partial(denoised, self.model.head, self.plan, self.times, passes, self.config)
        guidance = torch.full((), float(scale), device=z.device)
        if whole:
            return step(z, draws, guidance)[:, :n]
        # A recorded step takes the tokens of the largest set, and serves all sets.
        count = max(self.sizes) if self.steps.are_recorded else n
        key = self.config, tuple(z.shape[::2]), count, z.dtype
        x = self.steps.replay(
            key, step, padded_rows(z, count), padded_rows(draws, count), guidance, memory=[self.times]
        )
        return x[:, :n]

    def _with_others(self, ids: Int[Tensor, "b n"]) -> Int[Tensor, "b all"]:
        """The raster indices of a set, then all others."""
        others = torch.ones(self.batch_size, self.num_tokens, device=ids.device).scatter(1, ids, 0.0)
        rest = others.argsort(dim=1, descending=True, stable=True)[:, : self.num_tokens - ids.shape[1]]
        return torch.cat([ids, rest], dim=1)

    def _noise(self, rows: Int[Tensor, "b n"]) -> Float[Tensor, "b n p"]:
        """Noise of the tokens `rows`. A whole frame is drawn, so that every set takes the same numbers."""
        config = self.model.config
        shape = self.batch_size, config.latent_channels, 1, *config.latent_shape[1:]
        noise = torch.randn(shape, generator=self.generator).to(self.context)
        return gather_rows(patchify(noise, config.patch_size)[:, 0], rows)

    def _latents_of_frame(self, vectors: Float[Tensor, "b n p"]) -> Float[Tensor, "b c 1 h w"]:
        return unpatchify(vectors[:, None], self.model.config.grid, self.model.config.patch_size)

    def draft(self) -> Callable[[], Latents]:
        """Builds the clip as it is now, zeros where nothing is decided."""
        return partial(self._layout, self.frames, self.vectors)

    def _layout(
        self, finished: tuple[Float[Tensor, "b c 1 h w"], ...], vectors: Float[Tensor, "b n p"]
    ) -> Float[Tensor, "b c t h w"]:
        frames = (*finished, self._latents_of_frame(vectors))
        missing = torch.zeros_like(frames[0]).expand(-1, -1, self.num_frames - len(frames), -1, -1)
        return torch.cat([*frames, missing], dim=2)


def denoised(
    head: DiffusionHead,
    plan: Plan,
    times: Float[Tensor, "steps e"],
    passes: int,
    config: FrameARSamplerConfig,
    z: Float[Tensor, "passes_b n d"],
    noise: Float[Tensor, "draws b all p"],
    scale: Float[Tensor, ""],
) -> Float[Tensor, "b all p"]:
    """All diffusion steps of the tokens of a set, and of others after them that count as their own prediction.

    `noise`: where they start, then the fresh noise of each step that needs some.
    """
    (rows, n), draws, condition = z.shape[:2], iter(noise.unbind()), head.condition(z)
    x = next(draws)
    for k in range(len(plan)):
        guided = passes > 1 and plan.numbers[k] >= config.guidance_trunc
        outputs = head(x[:, :n], condition if guided else condition[: rows // passes], times[k])
        if guided:
            output = combine(outputs.chunk(passes), x[:, n:], scale, config)
        else:
            output = torch.cat([outputs, x[:, n:]], dim=1)
        x = plan.step(k, x, output, next(draws) if plan.needs_noise(k) else None)
    return x


def padded_rows(x: Float[Tensor, "*b n k"], count: int) -> Float[Tensor, "*b count k"]:
    """Rows of zeros after the tokens of a set, which the head treats one by one."""
    return x if x.shape[-2] == count else F.pad(x, (0, 0, 0, count - x.shape[-2]))


def combine(
    outputs: tuple[Float[Tensor, "b n p"], ...],
    others: Float[Tensor, "b r p"],
    scale: float | Float[Tensor, ""],
    config: FrameARSamplerConfig,
) -> Float[Tensor, "b all p"]:
    """One prediction from those of all passes; `others` are tokens that every pass predicts equally.

    [conditional, unconditional]: u + s (c − u). With image guidance [conditional, without frames, without text]:
    u + s (c − i) + s_I (i − u).
    """
    conditional, unconditional = outputs[0], outputs[1]
    base = unconditional if len(outputs) == 2 else outputs[2]
    guided = torch.cat([unconditional + scale * (conditional - base), others], dim=1)
    if config.guidance_renorm < 1:
        length = _norm(torch.cat([conditional, others], dim=1))  # (b,)
        ratio = (length / _norm(guided)).clamp(config.guidance_renorm, 1.0)
        guided = guided * ratio[:, None, None]
    if len(outputs) == 3:
        n = conditional.shape[1]
        guided[:, :n] += config.image_guidance_scale * (base - unconditional)
    return guided


def _norm(x: Float[Tensor, "b n p"]) -> Float[Tensor, " b"]:
    return torch.linalg.vector_norm(x.flatten(1), dim=1)  # pyright: ignore  (torch ships no type for it)
