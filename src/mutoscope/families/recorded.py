"""Networks whose steps are recorded, with the methods that the samplers need.

At batch 1 a decoding step is a few hundred operations of microseconds each, and starting them takes longer than running
them. Each wrapper records a step at its first call and replays it from then on: as a CUDA graph, or compiled (see
`layers.recorded`). CUDA graphs decode one batch at a time, because the next batch uses the same memory.
"""

from collections.abc import Hashable
from dataclasses import fields, replace

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from mutoscope.layers.kv_cache import KVCache, RollingKVCache, StaticKVCache
from mutoscope.layers.recorded import Steps
from mutoscope.models.far import FAR, FARCache
from mutoscope.models.far import FrameConditions as FARConditions
from mutoscope.models.far.model import Modulations
from mutoscope.models.far.network import InProgress
from mutoscope.models.magi import MAGI, FrameConditions
from mutoscope.models.magi.network import DiffusionHead
from mutoscope.models.magvit import Magvit
from mutoscope.models.magvit.baselines import MagvitAR
from mutoscope.models.par import PAR, PARState


class RecordedMagvit:
    """A `Magvit` for `MaskedSampler`."""

    def __init__(self, model: Magvit, steps: Steps) -> None:
        self.model, self.steps = model, steps

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.model.latent_shape

    @property
    def device(self) -> torch.device:
        return self.model.device

    def logits(
        self, tokens: Int[Tensor, "b t h w"], task: str, label: Tensor | None = None, unconditional: bool = False
    ) -> Float[Tensor, "b t h w k"]:
        prefix = self.model.prefix(task, label, len(tokens), unconditional)  # (b, p)
        return self.steps.replay((prefix.shape, tokens.shape), self.model.logits_after, prefix, tokens)

    def class_logits(self, condition_tokens: Int[Tensor, "b t h w"]) -> Float[Tensor, "b classes"]:
        return self.model.class_logits(condition_tokens)  # once per clip: not worth a recording


class RecordedMagvitAR:
    """A `MagvitAR` for `AutoregressiveSampler`. The prefix before the first token is read without a recording."""

    def __init__(self, model: MagvitAR, steps: Steps) -> None:
        self.model, self.steps = model, steps
        self.caches: dict[int, KVCache] = {}

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.model.latent_shape

    @property
    def device(self) -> torch.device:
        return self.model.device

    def new_cache(self, batch_size: int) -> KVCache:
        if not self.steps.hold_memory:
            return self.model.new_cache(batch_size, static=True)
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

        logits = self.steps.replay(len(ids), step, ids, memory=_memory(cache, 1))
        cache.advance(1)
        return logits[:, -1, : self.model.config.codebook_size]


class RecordedPAR:
    """A `PAR` for `ParallelARSampler.sample(..., static=True)`: steps of one token, of the queries, of n tokens."""

    def __init__(self, model: PAR, steps: Steps) -> None:
        self.model, self.steps = model, steps
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
        if not self.steps.hold_memory:
            return self.model.new_state(batch_size, latent_shape, prefix_mask, static=True)
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

        assert now.visible is not None
        # Two states may have equal shapes, one of them the first rows of a larger one.
        memory = [*_memory(cache, n), now.table, now.visible, *([] if now.prefix_mask is None else [now.prefix_mask])]
        key = tuple(tokens.shape), opens, num_wanted, cache.keys.shape, cache.keys.stride(), now.prefix_mask is None
        logits = self.steps.replay(key, step, tokens, memory=memory)
        cache.advance(n)
        return logits


class RecordedMAGI:
    """A `MAGI` for `FrameStreamSampler`: reading one finished frame or a whole window, and the frame in progress.

    Passes over other numbers of frames are rare, and not recorded.
    """

    def __init__(self, model: MAGI, steps: Steps) -> None:
        self.model, self.steps, self.config = model, steps, model.config

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def denoiser(self) -> DiffusionHead:
        return self.model.denoiser

    def code_logits(self, z: Float[Tensor, "b n d"]) -> Float[Tensor, "b n k"]:
        return self.steps.replay(("codes", z.shape), self.model.code_logits, z)

    def to_tokens(self, frames: Num[Tensor, "b *c f h w"]) -> Num[Tensor, "b f n k"]:
        return self.model.to_tokens(frames)

    def to_frames(self, tokens: Num[Tensor, "b f n k"]) -> Num[Tensor, "b *c f h w"]:
        return self.model.to_frames(tokens)

    def reserve(self, batch_size: int, num_frames: int) -> KVCache:
        return self.model.reserve(batch_size, num_frames, static=True)

    def reserve_rolling(self, batch_size: int) -> RollingKVCache:
        return self.model.reserve_rolling(batch_size)

    def observe(
        self, cache: KVCache, tokens: Num[Tensor, "b f n k"], conditions: FrameConditions, first: int, level: int = 0
    ) -> None:
        num_frames = tokens.shape[1]
        if num_frames not in (1, cache.keys.shape[3] - 1):
            self.model.observe(cache, tokens, conditions, first, level)
            return
        cache.aim(num_frames)
        names, values = _present(conditions)

        def step(tokens: Tensor, times: Tensor, *values: Tensor) -> Tensor:
            conditions = FrameConditions(**dict(zip(names, values, strict=True)))
            return self.model.observe_step(cache, tokens, conditions, times, level)

        times = torch.arange(first, first + num_frames, device=self.device)
        key = "observe", tokens.shape, names, level, _shape(cache)
        self.steps.replay(key, step, tokens, times, *values, memory=_memory(cache, num_frames))
        cache.advance(num_frames)

    def restore(
        self,
        cache: KVCache,
        tokens: Num[Tensor, "b n k"],
        hidden: Bool[Tensor, "b n"],
        conditions: FrameConditions,
        time: int,
        blind: Bool[Tensor, " b"] | None = None,
        previous: Float[Tensor, "b n k"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        cache.aim(1)
        names, values = _present(conditions)
        optional = [tensor for tensor in (blind, previous) if tensor is not None]

        def step(tokens: Tensor, hidden: Tensor, times: Tensor, *rest: Tensor) -> Tensor:
            conditions, found = FrameConditions(**dict(zip(names, rest, strict=False))), iter(rest[len(names) :])
            masked = None if blind is None else next(found)
            before = None if previous is None else next(found)
            return self.model.restore_step(cache, tokens, hidden, conditions, times, masked, before)

        times = torch.tensor([time], device=self.device)
        key = "restore", tokens.shape, names, blind is None, previous is None, _shape(cache)
        return self.steps.replay(key, step, tokens, hidden, times, *values, *optional, memory=_memory(cache, 1))


class RecordedFAR:
    """A `FAR` for `FrameFlowSampler`: reading one finished frame, and a denoising step.

    Passes over other numbers of frames are rare, and not recorded.
    """

    def __init__(self, model: FAR, steps: Steps) -> None:
        self.model, self.steps, self.config = model, steps, model.config

    @property
    def device(self) -> torch.device:
        return self.model.device

    def reserve(self, batch_size: int, num_frames: int) -> FARCache:
        return self.model.reserve(batch_size, num_frames, static=True)

    def modulations(self, times: Float[Tensor, " steps"], conditions: FARConditions, rows: int) -> Modulations:
        return self.model.modulations(times, conditions, rows)

    def read(
        self,
        cache: FARCache,
        latents: Float[Tensor, "b c f h w"],
        conditions: FARConditions,
        first: int,
        is_coarse: bool = False,
    ) -> None:
        if latents.shape[2] > 1:
            self.model.read(cache, latents, conditions, first, is_coarse)
            return
        numbers, rotation, mask = self.model.place(cache, latents, first, is_coarse)
        assert mask is not None
        names, values = _present(conditions)

        def step(latents: Tensor, rotation: Tensor, mask: Tensor, *values: Tensor) -> Tensor:
            conditions = FARConditions(**dict(zip(names, values, strict=True)))
            return self.model.read_step(cache, latents, conditions, rotation, mask, is_coarse)

        key = "read", latents.shape, names, is_coarse, _shape(cache)
        self.steps.replay(key, step, latents, rotation, mask, *values, memory=_memory(cache, len(numbers)))
        cache.frames = cache.frames + numbers
        cache.advance(len(numbers))

    def velocity(
        self,
        cache: FARCache,
        latents: Float[Tensor, "b c 1 h w"],
        modulations: list[Float[Tensor, "b 1 _size"]],
        number: int,
    ) -> Float[Tensor, "b c 1 h w"]:
        frame = self.model.in_progress(cache, latents, number)
        assert frame.mask is not None

        def step(latents: Tensor, rotation: Tensor, mask: Tensor, *modulations: Tensor) -> Tensor:
            return self.model.velocity_step(cache, latents, [*modulations], InProgress(number, rotation, mask))

        key = "velocity", latents.shape, _shape(cache)
        memory = _memory(cache, len(frame.rotation))
        return self.steps.replay(key, step, latents, frame.rotation, frame.mask, *modulations, memory=memory)


def _present(conditions: FrameConditions | FARConditions) -> tuple[tuple[str, ...], list[Tensor]]:
    """The conditions that a frame has: their names, and their values."""
    found = {field.name: getattr(conditions, field.name) for field in fields(conditions)}
    found = {name: value for name, value in found.items() if value is not None}
    return tuple(found), list(found.values())


def _shape(cache: KVCache) -> Hashable:
    return type(cache), cache.keys.shape, cache.keys.stride(), cache.keys.dtype


def _memory(cache: KVCache, num_positions: int) -> list[Tensor]:
    """The tensors that a step of so many positions reads and writes in a cache whose shapes never change."""
    assert isinstance(cache, StaticKVCache | RollingKVCache)
    return [*cache.indices(num_positions), *(tensor for layer in cache.layers for tensor in layer)]
