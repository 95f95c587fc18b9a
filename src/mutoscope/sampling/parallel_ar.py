"""Parallel autoregressive decoding: n tokens one after the other, then n distant tokens per step (PAR).

arXiv 2412.15119; with n = 1 it is LlamaGen's plain autoregression.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Generic, Protocol, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mutoscope.checks import COUNT, NOT_NEGATIVE, Range, check_fields
from mutoscope.layers.kv_cache import KVCache
from mutoscope.layers.token_order import regions_per_side
from mutoscope.sampling.base import Sampler, TokenEvent, ready
from mutoscope.sampling.categorical import drawable, gumbel, log_probability, sample_categorical
from mutoscope.sampling.guidance import guide


class Draw(Protocol):
    """How tokens are drawn; a test may supply recorded draws."""

    def __call__(self, logits: Tensor, positions: slice) -> Tensor:
        """Ids (b, m) from guided logits (b, m, k); `positions` are those of the tokens in decoding order."""
        ...


class DecodingState(Protocol):
    """What a network remembers of the clips it decodes."""

    cache: KVCache

    def keep_first(self, batch_size: int) -> None:
        """Forget all rows but the first: the unconditional half, once guidance is over."""
        ...


State = TypeVar("State", bound=DecodingState)


class ParallelTokenModel(Protocol[State]):
    """Methods that the sampler needs of a network. A condition is whatever the model builds its prefix from."""

    @property
    def latent_shape(self) -> tuple[int, int, int]: ...

    @property
    def num_parallel(self) -> int: ...

    @property
    def num_start(self) -> int:
        """Tokens decided one by one before the first group."""
        ...

    @property
    def device(self) -> torch.device: ...

    def token_order(self, latent_shape: tuple[int, int, int]) -> Int[Tensor, " n"]:
        """Raster index of every token in decoding order."""
        ...

    def new_state(
        self, batch_size: int, latent_shape: tuple[int, int, int], prefix_mask: Tensor | None, static: bool
    ) -> State:
        """Memory for one clip per sample. `static`: the shapes of all steps are equal, for CUDA graphs."""
        ...

    def read_prefix(self, prefix: Float[Tensor, "b p d"], state: State) -> Float[Tensor, "b m k"]:
        """Logits of the first token, or of the first n."""
        ...

    def decode(self, tokens: Int[Tensor, "b n"], state: State, num_wanted: int | None) -> Float[Tensor, "b2 m k"]:
        """Logits of the tokens that follow those just decided, for the first `num_wanted` rows of the batch."""
        ...


@dataclass(frozen=True)
class PrefixCondition:
    """Prefix rows of every sample, one sample per row, and the rows that guidance compares them with."""

    prefix: Float[Tensor, "b p d"]
    unconditional: Float[Tensor, "b p d"] | None = None
    """Prefix of no class or no caption; required for guidance."""
    mask: Bool[Tensor, "b p"] | None = None
    """False on padded rows, the same for both prefixes."""
    labels: tuple[int, ...] | None = None
    """Keys of the rows in a `PrefillMemo`, conditional ones first; only for prefixes of one position."""

    def rows(self, guided: bool) -> tuple[Float[Tensor, "b2 p d"], Bool[Tensor, "b2 p"] | None]:
        """Prefix and mask of the whole batch."""
        if not guided:
            return self.prefix, self.mask
        if self.unconditional is None:
            raise ValueError("guidance needs the unconditional prefix")
        mask = None if self.mask is None else torch.cat([self.mask, self.mask])
        return torch.cat([self.prefix, self.unconditional.expand_as(self.prefix)]), mask


RANGES = {
    "temperature": NOT_NEGATIVE,
    "top_k": COUNT,
    "top_p": Range(above=0, high=1),
    "guidance_scale": NOT_NEGATIVE,
    "guidance_interval": NOT_NEGATIVE,
}


@dataclass(frozen=True)
class ParallelARSamplerConfig:
    """How tokens are drawn and guided."""

    temperature: float = 1.0
    """Of the token distribution; 0 takes the most probable token."""
    top_k: int | None = None
    """Draw among the k most probable tokens only."""
    top_p: float | None = None
    """Draw among the most probable tokens that hold this share of the probability."""
    guidance_scale: float = 1.0
    """u + s (c - u); 1 is off."""
    guidance_interval: int | None = None
    """Guide token 0 and the first k positions of the sequential and of the parallel stage; None guides all tokens
    (cfg_interval of the official scripts, which write −1 for None)."""

    def __post_init__(self) -> None:
        check_fields(self, RANGES)

    def guides(self, position: int, num_parallel: int) -> bool:
        """Whether the tokens decided from `position` on are guided."""
        if self.guidance_scale == 1.0:
            return False
        if self.guidance_interval is None or position == 0:
            return True
        stage = 1 if position < num_parallel else num_parallel
        return position - stage <= self.guidance_interval


def group_starts(latent_shape: tuple[int, int, int], num_parallel: int, num_start: int) -> list[int]:
    """First position that each forward pass decides: n + (N − n) / n passes with a sequential start, else N / n."""
    regions_per_side(latent_shape, num_parallel)
    return [*range(num_start), *range(num_start, prod(latent_shape), num_parallel)]


@dataclass
class PrefillMemo:
    """Class prefixes that were read before: by label, the cached keys and values, and the logits of the first tokens.

    Both depend on the label and the weights only. The owner of the model keeps the memo and drops it with the weights.
    """

    rows: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict[int, tuple[Tensor, Tensor, Tensor]])
    """label -> keys and values (layers, heads, n, d), logits (m, k)."""

    def read_prefix(
        self, model: ParallelTokenModel[State], prefix: Float[Tensor, "b 1 d"], labels: tuple[int, ...], state: State
    ) -> Float[Tensor, "b m k"]:
        """As the model's `read_prefix`; every new label is computed once."""
        new = [i for i, label in enumerate(labels) if label not in self.rows and label not in labels[:i]]
        if new:
            small = model.new_state(len(new), model.latent_shape, None, False)
            logits, cache = model.read_prefix(prefix[new], small), small.cache
            for j, i in enumerate(new):
                keys, values = (y[:, j, :, : cache.length].clone() for y in (cache.keys, cache.values))
                self.rows[labels[i]] = keys, values, logits[j]
        keys, values, first = zip(*(self.rows[label] for label in labels), strict=True)
        length = keys[0].shape[2]
        state.cache.keys[:, :, :, :length] = torch.stack(keys, dim=1)
        state.cache.values[:, :, :, :length] = torch.stack(values, dim=1)
        state.cache.advance(length)
        return torch.stack(first)


class ParallelARSampler(Sampler[ParallelTokenModel[State], PrefixCondition, TokenEvent], Generic[State]):
    """One event per forward pass; its `frames` are the latent frames whose last token the pass decided."""

    def __init__(self, config: ParallelARSamplerConfig | None = None) -> None:
        self.config = config or ParallelARSamplerConfig()

    def sample(
        self,
        model: ParallelTokenModel[State],
        condition: PrefixCondition,
        generator: torch.Generator,
        *,
        latent_shape: tuple[int, int, int] | None = None,
        draw: Draw | None = None,
        memo: PrefillMemo | None = None,
        static: bool = False,
    ) -> Iterator[TokenEvent]:
        """Decode a batch, one sample per row of the condition's prefix.

        `latent_shape` may differ from the model's own. `draw` replaces the draws from `generator` by recorded ones.
        `memo` remembers class prefixes between calls. `static`: steps of unchanging shapes, for a compiled or captured
        network; plain steps are faster otherwise. Raises UserError for a grid that does not split into the model's
        regions.
        """
        began = time.perf_counter()
        shape = latent_shape or model.latent_shape
        size, n, total = len(condition.prefix), model.num_parallel, prod(shape)
        starts = group_starts(shape, n, model.num_start)
        last_guided = max((start for start in starts if self.config.guides(start, n)), default=-1)
        clip = _Clip(size, shape, len(starts), model.token_order(shape), began)
        draw = draw or self._draw(generator, model.device)
        state, logits = self._start(model, condition, shape, memo, static)  # (b or 2b, m, k)
        while True:
            dtype, logits = logits.dtype, logits.float()
            if self.config.guides(clip.position, n):
                logits = guide(logits[:size], logits[size:], self.config.guidance_scale)
            logits = drawable(logits[:size], dtype)  # (b, m, k)
            tokens = draw(logits, slice(clip.position, clip.position + logits.shape[1]))  # (b, m)
            yield clip.decide(tokens, log_probability(logits, tokens))
            if clip.position == total:
                return
            if clip.position > last_guided:
                state.keep_first(size)  # no later token is guided: the unconditional half has done its work
            wanted = None if self.config.guides(clip.position, n) else size
            logits = self._decode(model, tokens, state, wanted)

    @torch.no_grad()  # on the calls of the network, because a generator must not change the caller's grad mode
    def _start(
        self,
        model: ParallelTokenModel[State],
        condition: PrefixCondition,
        shape: tuple[int, int, int],
        memo: PrefillMemo | None,
        static: bool,
    ) -> tuple[State, Float[Tensor, "b2 m k"]]:
        prefix, mask = condition.rows(self.config.guidance_scale != 1.0)
        state = model.new_state(len(prefix), shape, mask, static)
        if memo is None or condition.labels is None:
            return state, model.read_prefix(prefix, state)
        return state, memo.read_prefix(model, prefix, condition.labels[: len(prefix)], state)

    @torch.no_grad()
    def _decode(
        self, model: ParallelTokenModel[State], tokens: Tensor, state: State, num_wanted: int | None
    ) -> Float[Tensor, "b2 m k"]:
        return model.decode(tokens, state, num_wanted)

    def _draw(self, generator: torch.Generator, device: torch.device) -> Draw:
        config = self.config

        def draw(logits: Tensor, positions: slice) -> Tensor:
            noise = gumbel(tuple(logits.shape), generator, device)
            return sample_categorical(logits, noise, config.temperature, config.top_k, config.top_p)

        return draw


class _Clip:
    """The tokens decided so far, in raster order."""

    def __init__(
        self, size: int, shape: tuple[int, int, int], steps: int, order: Int[Tensor, " n"], began: float
    ) -> None:
        self.shape, self.steps, self.order, self.began = (size, *shape), steps, order, began
        self.position, self.step = 0, 0  # tokens decided, forward passes done
        self.tokens = torch.zeros(size, prod(shape), dtype=torch.int64, device=order.device)
        self.confidence = torch.full((size, prod(shape)), -math.inf, device=order.device)

    def decide(self, tokens: Int[Tensor, "b m"], confidence: Float[Tensor, "b m"]) -> TokenEvent:
        """Write the tokens of one pass; returns its event."""
        raster = self.order[self.position : self.position + tokens.shape[1]]  # (m,) raster indices
        self.tokens[:, raster], self.confidence[:, raster] = tokens, confidence
        decided = torch.zeros_like(self.tokens, dtype=torch.bool)
        decided[:, raster] = True
        per_frame = self.shape[2] * self.shape[3]
        finished = slice(self.position // per_frame, (self.position + tokens.shape[1]) // per_frame)
        self.position += tokens.shape[1]
        self.step += 1
        drawn = self.tokens.view(self.shape).clone()  # later passes write into `self.tokens`
        return TokenEvent(
            step=self.step - 1,
            num_steps=self.steps,
            decided=decided.view(self.shape),
            tokens=drawn,
            draft=ready(drawn),
            confidence=self.confidence.view(self.shape).clone(),
            frames=finished if finished.start < finished.stop else None,
            seconds=time.perf_counter() - self.began,
        )
