"""Networks whose steps are CUDA graphs, with the methods that the samplers need.

At batch 1 a decoding step is a few hundred kernels of microseconds each, and starting them takes longer than running
them. Each wrapper records a step at its first call and replays it from then on. It decodes one batch at a time: the
next batch uses the same memory. Weights may change in place, but not move.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mutoscope.layers.cuda_graph import CUDAGraphCall, Record
from mutoscope.layers.kv_cache import KVCache, StaticKVCache
from mutoscope.models.magvit import Magvit
from mutoscope.models.magvit.baselines import MagvitAR
from mutoscope.models.par import PAR, PARState

Step = Callable[..., Tensor]


@dataclass
class Steps:
    """Recorded steps, by key."""

    record: Record = CUDAGraphCall
    recorded: dict[Hashable, Step] = field(default_factory=dict[Hashable, Step])

    def replay(self, key: Hashable, step: Step, *arguments: Tensor) -> Tensor:
        """The result of a step, which is recorded if `key` is new."""
        if key not in self.recorded:
            self.recorded[key] = self.record(step, *arguments)
        return self.recorded[key](*arguments)


class CapturedMagvit:
    """A `Magvit` for `MaskedSampler`."""

    def __init__(self, model: Magvit, record: Record = CUDAGraphCall) -> None:
        self.model, self.steps = model, Steps(record)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.model.latent_shape

    @property
    def device(self) -> torch.device:
        return self.model.device

    def logits(
        self, tokens: Int[Tensor, "b t h w"], task: str, label: Tensor | None = None, unconditional: bool = False
    ) -> Float[Tensor, "b t h w k"]:
        arguments = (tokens,) if label is None else (tokens, label.to(self.device))

        def step(tokens: Tensor, label: Tensor | None = None) -> Tensor:
            return self.model.logits(tokens, task, label, unconditional)

        return self.steps.replay((len(tokens), task, unconditional, label is None), step, *arguments)

    def class_logits(self, condition_tokens: Int[Tensor, "b t h w"]) -> Float[Tensor, "b classes"]:
        return self.model.class_logits(condition_tokens)  # once per clip: not worth a graph


class CapturedMagvitAR:
    """A `MagvitAR` for `AutoregressiveSampler`. The prefix before the first token is read without a graph."""

    def __init__(self, model: MagvitAR, record: Record = CUDAGraphCall) -> None:
        self.model, self.steps = model, Steps(record)
        self.caches: dict[int, KVCache] = {}

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.model.latent_shape

    @property
    def device(self) -> torch.device:
        return self.model.device

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

        def step(ids: Tensor) -> Tensor:
            return self.model.step(ids, cache)

        logits = self.steps.replay(len(ids), step, ids)
        cache.advance(1)
        return logits[:, -1, : self.model.config.codebook_size]


class CapturedPAR:
    """A `PAR` for `ParallelARSampler.sample(..., static=True)`: graphs for one token, for the queries, for n tokens."""

    def __init__(self, model: PAR, record: Record = CUDAGraphCall) -> None:
        self.model, self.steps = model, Steps(record)
        self.states: dict[Hashable, PARState] = {}

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.model.latent_shape

    @property
    def device(self) -> torch.device:
        return self.model.device

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
        logits = self.steps.replay((*tokens.shape, opens, num_wanted, *memory), step, tokens)
        cache.advance(n)
        return logits
