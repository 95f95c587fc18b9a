"""Parallel autoregressive decoding: n tokens one after the other, then n distant tokens per step (PAR).

arXiv 2412.15119; with n = 1 it is LlamaGen's plain autoregression.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mutoscope.errors import UserError
from mutoscope.layers.token_order import regions_per_side
from mutoscope.sampling.base import TokenEvent
from mutoscope.sampling.categorical import gumbel, log_probability, sample_categorical
from mutoscope.sampling.guidance import guide


class Draw(Protocol):
    """How tokens are drawn; a test may supply recorded draws."""

    def __call__(self, logits: Tensor, places: slice) -> Tensor:
        """Ids (b, m) from guided logits (b, m, k); `places` are the tokens' places in decoding order."""
        ...


class ParallelTokenModel(Protocol):
    """All the sampler asks of a network. A condition is whatever the model's prefix is made from."""

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
    ) -> Any:
        """Memory for one clip per sample: at least `cache` (a KVCache) and `keep_first(batch_size)`.

        `static` asks for steps whose shapes do not change.
        """
        ...

    def read_prefix(self, prefix: Float[Tensor, "b p d"], state: Any) -> Float[Tensor, "b m k"]:
        """Logits of the first token, or of the first n."""
        ...

    def decode(self, tokens: Int[Tensor, "b n"], state: Any, num_wanted: int | None) -> Float[Tensor, "b2 m k"]:
        """Logits of what follows the tokens just decided, for the first `num_wanted` rows of the batch."""
        ...


@dataclass(frozen=True)
class Condition:
    """Prefix rows of every sample, and what guidance compares them with.

    mask: False on padded rows, the same for both. labels: names of the rows in a `PrefillMemo`, conditional ones first;
    only for prefixes of one position.
    """

    prefix: Float[Tensor, "b p d"]
    unconditional: Float[Tensor, "b p d"] | None = None
    mask: Bool[Tensor, "b p"] | None = None
    labels: tuple[int, ...] | None = None

    def rows(self, guided: bool) -> tuple[Float[Tensor, "b2 p d"], Bool[Tensor, "b2 p"] | None]:
        """Prefix and mask of the whole batch."""
        if not guided:
            return self.prefix, self.mask
        if self.unconditional is None:
            raise ValueError("guidance needs the unconditional prefix")
        mask = None if self.mask is None else torch.cat([self.mask, self.mask])
        return torch.cat([self.prefix, self.unconditional.expand_as(self.prefix)]), mask


@dataclass(frozen=True)
class ParallelARSamplerConfig:
    """`guidance_interval` k limits guidance: token 0, then those up to k places after the sequential or the parallel
    stage began; None guides all. (Official scripts call it cfg_interval and write −1 for None.)
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    guidance_scale: float = 1.0
    guidance_interval: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf or not 0 <= self.guidance_scale < math.inf:
            raise UserError("temperature and guidance_scale must be finite and not negative.")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k is {self.top_k}; it must be at least 1, or left out.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}; it must lie in (0, 1], or be left out.")
        if self.guidance_interval is not None and self.guidance_interval < 0:
            raise UserError(f"guidance_interval is {self.guidance_interval}; leave it out to guide every token.")

    def guides(self, place: int, num_parallel: int) -> bool:
        """Whether the tokens decided from `place` on are guided."""
        if self.guidance_scale == 1.0:
            return False
        if self.guidance_interval is None or place == 0:
            return True
        stage = 1 if place < num_parallel else num_parallel
        return place - stage <= self.guidance_interval


def group_starts(latent_shape: tuple[int, int, int], num_parallel: int, num_start: int) -> list[int]:
    """The first place that each forward pass decides: n + (N − n) / n passes with a sequential start, else N / n."""
    regions_per_side(latent_shape, num_parallel)
    return [*range(num_start), *range(num_start, prod(latent_shape), num_parallel)]


@dataclass
class PrefillMemo:
    """Class prefixes read before: by label, what they leave in the cache and the logits they give.

    Both depend on the label and the weights only. Whoever owns the model keeps the memo, and drops it with the weights.
    """

    rows: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)
    """label -> keys and values (layers, heads, n, d), logits (m, k)."""

    def read_prefix(
        self, model: ParallelTokenModel, prefix: Float[Tensor, "b 1 d"], labels: tuple[int, ...], state: Any
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


class ParallelARSampler:
    """Yields one event per forward pass; `frames` names the latent frames whose last token it decided."""

    def __init__(self, config: ParallelARSamplerConfig | None = None) -> None:
        self.config = config or ParallelARSamplerConfig()

    def sample(
        self,
        model: ParallelTokenModel,
        condition: Condition,
        generator: torch.Generator | None = None,
        *,
        latent_shape: tuple[int, int, int] | None = None,
        draw: Draw | None = None,
        memo: PrefillMemo | None = None,
        static: bool = False,
    ) -> Iterator[TokenEvent]:
        """Decode a batch, one sample per row of the condition's prefix.

        `latent_shape` may differ from the model's own. `generator` is required unless `draw` is given. Put the model in
        eval mode first. `static`: steps of unchanging shapes, for a network that was compiled (`PAR.advance`); plain
        steps are faster otherwise. Raises UserError for a grid that does not split into the model's regions.
        """
        began = time.perf_counter()
        shape = tuple(latent_shape or model.latent_shape)
        size, n, total = len(condition.prefix), model.num_parallel, prod(shape)
        starts = group_starts(shape, n, model.num_start)
        last_guided = max((place for place in starts if self.config.guides(place, n)), default=-1)
        clip = _Clip(size, shape, len(starts), model.token_order(shape), began)
        draw = draw or self._draw(generator, model.device)
        state, logits = self._start(model, condition, shape, memo, static)  # (b or 2b, m, k)
        while True:
            if self.config.guides(clip.place, n):
                logits = guide(logits[:size], logits[size:], self.config.guidance_scale)
            logits = logits[:size]  # (b, m, k)
            tokens = draw(logits, slice(clip.place, clip.place + logits.shape[1]))  # (b, m)
            yield clip.decide(tokens, log_probability(logits, tokens))
            if clip.place == total:
                return
            if clip.place > last_guided:
                state.keep_first(size)  # the unconditional half is never asked again
            wanted = None if self.config.guides(clip.place, n) else size
            logits = self._decode(model, tokens, state, wanted)

    @torch.no_grad()  # on the calls of the network, because a generator must not change the caller's grad mode
    def _start(
        self,
        model: ParallelTokenModel,
        condition: Condition,
        shape: tuple[int, int, int],
        memo: PrefillMemo | None,
        static: bool,
    ) -> tuple[Any, Float[Tensor, "b2 m k"]]:
        prefix, mask = condition.rows(self.config.guidance_scale != 1.0)
        state = model.new_state(len(prefix), shape, mask, static)
        if memo is None or condition.labels is None:
            return state, model.read_prefix(prefix, state)
        return state, memo.read_prefix(model, prefix, condition.labels[: len(prefix)], state)

    @torch.no_grad()
    def _decode(
        self, model: ParallelTokenModel, tokens: Tensor, state: Any, num_wanted: int | None
    ) -> Float[Tensor, "b2 m k"]:
        return model.decode(tokens, state, num_wanted)

    def _draw(self, generator: torch.Generator | None, device: torch.device) -> Draw:
        if generator is None:
            raise ValueError("sample() needs a torch.Generator (or recorded draws)")
        config = self.config

        def draw(logits: Tensor, places: slice) -> Tensor:
            noise = gumbel(tuple(logits.shape), generator, device)
            return sample_categorical(logits, noise, config.temperature, config.top_k, config.top_p)

        return draw


class _Clip:
    """The tokens decided so far, put back into their places in the grid."""

    def __init__(
        self, size: int, shape: tuple[int, int, int], steps: int, order: Int[Tensor, " n"], began: float
    ) -> None:
        self.shape, self.steps, self.order, self.began = (size, *shape), steps, order, began
        self.place, self.step = 0, 0  # tokens decided, forward passes done
        self.tokens = torch.zeros(size, prod(shape), dtype=torch.int64, device=order.device)
        self.confidence = torch.full((size, prod(shape)), -math.inf, device=order.device)

    def decide(self, tokens: Int[Tensor, "b m"], confidence: Float[Tensor, "b m"]) -> TokenEvent:
        places = self.order[self.place : self.place + tokens.shape[1]]
        self.tokens[:, places], self.confidence[:, places] = tokens, confidence
        decided = torch.zeros_like(self.tokens, dtype=torch.bool)
        decided[:, places] = True
        per_frame = self.shape[2] * self.shape[3]
        finished = slice(self.place // per_frame, (self.place + tokens.shape[1]) // per_frame)
        self.place += tokens.shape[1]
        self.step += 1
        return TokenEvent(
            step=self.step - 1,
            num_steps=self.steps,
            decided=decided.view(self.shape),
            tokens=self.tokens.view(self.shape).clone(),
            proposal=self.tokens.view(self.shape).clone(),
            confidence=self.confidence.view(self.shape).clone(),
            frames=finished if finished.start < finished.stop else None,
            seconds=time.perf_counter() - self.began,
        )
