"""Networks whose steps are CUDA graphs, in the form that the samplers ask of a network.

At batch 1 a decoding step is a few hundred kernels of microseconds each, and starting them takes longer than running
them. Each wrapper records a step at its first call and replays it from then on. It decodes one batch at a time: the
next one uses the same memory. Weights may change in place, but not move.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mutoscope.layers.cuda_graph import CUDAGraphCall, Record
from mutoscope.layers.kv_cache import KVCache, StaticKVCache
from mutoscope.models.magvit import Magvit
from mutoscope.models.magvit.baselines import MagvitAR
from mutoscope.models.par import PAR, PARState


@dataclass
class Captured:
    """What the wrappers share."""

    model: Any
    record: Record = CUDAGraphCall
    steps: dict[Any, Any] = field(default_factory=dict)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.model.latent_shape

    @property
    def device(self) -> torch.device:
        return self.model.device

    def replayed(self, key: Any, step: Any, *arguments: Tensor) -> Tensor:
        """The result of a step, recorded under `key` if it is new."""
        if key not in self.steps:
            self.steps[key] = self.record(step, *arguments)
        return self.steps[key](*arguments)


@dataclass
class CapturedMagvit(Captured):
    """A `Magvit` for `MaskedSampler`."""

    model: Magvit

    def logits(
        self, tokens: Int[Tensor, "b t h w"], task: str, label: Tensor | None = None, unconditional: bool = False
    ) -> Float[Tensor, "b t h w k"]:
        given = (tokens,) if label is None else (tokens, label.to(self.device))

        def step(tokens: Tensor, label: Tensor | None = None) -> Tensor:
            return self.model.logits(tokens, task, label, unconditional)

        return self.replayed((len(tokens), task, unconditional, label is None), step, *given)

    def class_logits(self, condition_tokens: Int[Tensor, "b t h w"]) -> Float[Tensor, "b classes"]:
        return self.model.class_logits(condition_tokens)  # once per clip: not worth a graph


@dataclass
class CapturedMagvitAR(Captured):
    """A `MagvitAR` for `AutoregressiveSampler`. What comes before the first token is read without a graph."""

    model: MagvitAR
    caches: dict[int, KVCache] = field(default_factory=dict)

    def new_cache(self, batch_size: int) -> KVCache:
        if batch_size not in self.caches:
            self.caches[batch_size] = self.model.new_cache(batch_size, static=True)
        self.caches[batch_size].length = 0
        return self.caches[batch_size]

    def prefix(self, label: Tensor | None, condition_tokens: Tensor | None, batch_size: int) -> Int[Tensor, "b p"]:
        return self.model.prefix(label, condition_tokens, batch_size)

    def code_logits(self, ids: Int[Tensor, "b n"], cache: KVCache | None = None) -> Float[Tensor, "b k"]:
        if not isinstance(cache, StaticKVCache) or ids.shape[1] > 1:
            return self.model.code_logits(ids, cache)
        cache.aim(1)
        logits = self.replayed(len(ids), lambda ids: self.model.step(ids, cache), ids)
        cache.advance(1)
        return logits[:, -1, : self.model.config.codebook_size]


@dataclass
class CapturedPAR(Captured):
    """A `PAR` for `ParallelARSampler.sample(..., static=True)`: graphs for one token, for the queries, for n tokens."""

    model: PAR
    states: dict[Any, PARState] = field(default_factory=dict)

    @property
    def num_parallel(self) -> int:
        return self.model.num_parallel

    @property
    def num_start(self) -> int:
        return self.model.num_start

    def token_order(self, latent_shape: tuple[int, int, int]) -> Int[Tensor, " n"]:
        return self.model.token_order(latent_shape)

    def new_state(
        self, batch_size: int, latent_shape: tuple[int, int, int], prefix_mask: Bool[Tensor, "b p"] | None, static: bool
    ) -> PARState:
        if not static:
            return self.model.new_state(batch_size, latent_shape, prefix_mask)
        key = batch_size, latent_shape, prefix_mask is None
        if key not in self.states:
            mask = None if prefix_mask is None else prefix_mask.clone()  # a buffer of its own
            self.states[key] = self.model.new_state(batch_size, latent_shape, mask, static=True)
        state = self.states[key]
        if prefix_mask is not None and state.prefix_mask is not None:
            state.prefix_mask.copy_(prefix_mask)
        return replace(state, cache=replace(state.cache, length=0))

    def read_prefix(self, prefix: Float[Tensor, "b p d"], state: PARState) -> Float[Tensor, "b m k"]:
        return self.model.read_prefix(prefix, state)

    def decode(self, tokens: Int[Tensor, "b n"], state: PARState, num_wanted: int | None) -> Float[Tensor, "b2 m k"]:
        cache = state.cache
        if not isinstance(cache, StaticKVCache):
            return self.model.decode(tokens, state, num_wanted)
        opens = self.model.opens_groups(state)
        n = tokens.shape[1] + (self.num_parallel - 1 if opens else 0)
        cache.aim(n)
        now = replace(state)  # the sampler may cut `state` down later

        def step(tokens: Tensor) -> Tensor:
            return self.model.static_step(self.model.step_input(tokens, opens), now, num_wanted)

        # Two states may have equal shapes, one of them the first rows of a larger one: a graph belongs to its memory.
        memory = cache.keys.data_ptr(), cache.keys.shape[1], state.table.data_ptr()
        logits = self.replayed((*tokens.shape, opens, num_wanted, *memory), step, tokens)
        cache.advance(n)
        return logits
