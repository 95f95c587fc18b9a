"""Keys and values of the positions decoded so far, passed to a model as an argument.

A cache keeps its precision: under autocast the new keys and values come in another one and are converted.

Shapes: b samples, n new positions, m positions in all, d the size of a head.
"""

from dataclasses import dataclass, field
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass
class KVCache:
    """Keys and values of up to `max_length` positions in every layer, allocated once; `length` of them are filled."""

    keys: Float[Tensor, "layers b heads max_length d"]
    values: Float[Tensor, "layers b heads max_length d"]
    length: int = 0

    @classmethod
    def reserve(
        cls, shape: tuple[int, int, int, int, int], device: torch.device, dtype: torch.dtype = torch.float32
    ) -> Self:
        """Allocates the cache; `shape` is (layers, batch, heads, longest sequence, size of a head)."""
        return cls(torch.empty(shape, device=device, dtype=dtype), torch.empty(shape, device=device, dtype=dtype))

    def aim(self, num_positions: int) -> None:
        """Prepares for a pass that appends this many positions in every layer."""

    def held(self, num_positions: int) -> Int[Tensor, " m"]:
        """The position in the sequence of everything that `append` returns in a pass over `num_positions` new ones."""
        return torch.arange(self.length + num_positions, device=self.keys.device)

    def now(self, num_positions: int) -> Int[Tensor, " n"]:
        """The positions in the sequence of the next `num_positions`, for which the cache has been aimed."""
        return torch.arange(self.length, self.length + num_positions, device=self.keys.device)

    def append(
        self, layer: int, k: Float[Tensor, "b heads n d"], v: Float[Tensor, "b heads n d"]
    ) -> tuple[Float[Tensor, "b heads m d"], Float[Tensor, "b heads m d"]]:
        """Appends the new positions of one layer after the filled ones; returns all of them, old and new.

        `length` changes only with `advance`, once all layers are written. Raises ValueError if the cache is full.
        """
        end = self.length + k.shape[2]
        if end > self.keys.shape[3]:
            raise ValueError(f"the cache holds {self.keys.shape[3]} positions, {end} are needed")
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def advance(self, num_positions: int) -> None:
        """Counts positions as filled that every layer has appended."""
        self.length += num_positions

    def first(self, batch_size: int) -> "KVCache":
        """The cache of the first samples alone; it shares memory with this one."""
        return KVCache(self.keys[:, :batch_size], self.values[:, :batch_size], self.length)


@dataclass
class IndexedKVCache(KVCache):
    """A cache whose steps overwrite the positions `positions`, which may differ between samples."""

    positions: Int[Tensor, "b n"] = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.int64))

    def append(
        self, layer: int, k: Float[Tensor, "b heads n d"], v: Float[Tensor, "b heads n d"]
    ) -> tuple[Float[Tensor, "b heads m d"], Float[Tensor, "b heads m d"]]:
        """Overwrites `positions` in one layer; returns all positions."""
        index = self.positions[:, None, :, None].expand_as(k)  # (b, heads, n, d)
        self.keys[layer].scatter_(2, index, k.to(self.keys.dtype))
        self.values[layer].scatter_(2, index, v.to(self.values.dtype))
        return self.keys[layer], self.values[layer]


@dataclass
class StaticKVCache(KVCache):
    """A cache whose shapes never change: attention reads all `max_length` positions, under a mask.

    `positions[n]` says where a step of n positions writes: always the same tensor, filled anew by `aim`, so that
    CUDA graphs can replay the step.
    """

    positions: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.layers = _layers(self.keys, self.values)

    @classmethod
    def reserve(
        cls, shape: tuple[int, int, int, int, int], device: torch.device, dtype: torch.dtype = torch.float32
    ) -> Self:
        """Allocates zeros: masked positions still take part in the products, and NaN would pass through the mask."""
        return cls(torch.zeros(shape, device=device, dtype=dtype), torch.zeros(shape, device=device, dtype=dtype))

    def aim(self, num_positions: int) -> None:
        """Points `positions[num_positions]` at the next positions."""
        device = self.keys.device
        if num_positions not in self.positions:
            self.positions[num_positions] = torch.empty(num_positions, dtype=torch.int64, device=device)
        torch.arange(self.length, self.length + num_positions, device=device, out=self.positions[num_positions])

    def indices(self, num_positions: int) -> list[Tensor]:
        """Tensors that say where a step of `num_positions` writes."""
        return [self.positions[num_positions]]

    def held(self, num_positions: int) -> Int[Tensor, " max_length"]:
        return torch.arange(self.keys.shape[3], device=self.keys.device)

    def now(self, num_positions: int) -> Int[Tensor, " n"]:
        return self.positions[num_positions]

    def append(
        self, layer: int, k: Float[Tensor, "b heads n d"], v: Float[Tensor, "b heads n d"]
    ) -> tuple[Float[Tensor, "b heads m d"], Float[Tensor, "b heads m d"]]:
        """Writes the positions that the cache is aimed at; returns all `max_length` positions."""
        rows, (keys, values) = self.positions[k.shape[2]], self.layers[layer]  # (n,)
        return keys.index_copy_(2, rows, k.to(keys.dtype)), values.index_copy_(2, rows, v.to(values.dtype))

    def first(self, batch_size: int) -> "StaticKVCache":
        return StaticKVCache(self.keys[:, :batch_size], self.values[:, :batch_size], self.length, self.positions)


@dataclass
class RollingKVCache(KVCache):
    """The latest `window` positions of a sequence without an end, and the first one if `keeps_first`, in any order.

    A new position overwrites the oldest, so that nothing moves and shapes never change; attention needs positions
    relative to each other. Passes add one position at a time.
    """

    window: int = 1
    keeps_first: bool = False
    slots: Int[Tensor, " max_length"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    """Position that each slot holds; -1: none."""
    slot: Int[Tensor, " 1"] = field(default_factory=lambda: torch.zeros(1, dtype=torch.int64))
    """Where the next position is written: always the same tensor, so that a recorded step can read it."""
    position: Int[Tensor, " 1"] = field(default_factory=lambda: torch.zeros(1, dtype=torch.int64))
    """The next position, in a tensor that stays the same too."""

    def __post_init__(self) -> None:
        self.layers = _layers(self.keys, self.values)

    @classmethod
    def rolling(
        cls,
        shape: tuple[int, int, int, int],
        window: int,
        keeps_first: bool,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """Allocates zeros, since NaN would pass through masks; `shape` is (layers, batch, heads, size of a head)."""
        layers, batch, heads, size = shape
        sizes = layers, batch, heads, window + keeps_first, size
        keys, values = (torch.zeros(sizes, device=device, dtype=dtype) for _ in range(2))
        slots = torch.full((sizes[3],), -1, device=device)
        slot, position = (torch.zeros(1, dtype=torch.int64, device=device) for _ in range(2))
        return cls(keys, values, 0, window, keeps_first, slots, slot, position)

    def aim(self, num_positions: int) -> None:
        """Points `slot` at the position after the filled ones. Raises ValueError for more than one position."""
        if num_positions != 1:
            raise ValueError(f"a rolling cache takes one position at a time, found {num_positions}")
        self.slot.fill_(self.slot_of(self.length))
        self.position.fill_(self.length)
        self.slots[self.slot_of(self.length)] = self.length

    def slot_of(self, position: int) -> int:
        """Where a position is written."""
        if not self.keeps_first:
            return position % self.window
        return 0 if position == 0 else 1 + (position - 1) % self.window

    def indices(self, num_positions: int) -> list[Tensor]:
        """Tensors that say where a step writes, and what it sees."""
        return [self.slots, self.slot, self.position]

    def held(self, num_positions: int) -> Int[Tensor, " max_length"]:
        return self.slots

    def now(self, num_positions: int) -> Int[Tensor, " 1"]:
        return self.position

    def append(
        self, layer: int, k: Float[Tensor, "b heads 1 d"], v: Float[Tensor, "b heads 1 d"]
    ) -> tuple[Float[Tensor, "b heads m d"], Float[Tensor, "b heads m d"]]:
        """Writes the position that the cache is aimed at; returns all slots."""
        keys, values = self.layers[layer]
        return keys.index_copy_(2, self.slot, k.to(keys.dtype)), values.index_copy_(2, self.slot, v.to(values.dtype))

    def first(self, batch_size: int) -> "RollingKVCache":
        keys, values = self.keys[:, :batch_size], self.values[:, :batch_size]
        shared = self.window, self.keeps_first, self.slots, self.slot, self.position
        return RollingKVCache(keys, values, self.length, *shared)

    def copy_of(self, position: int) -> tuple[Float[Tensor, "layers b heads d"], Float[Tensor, "layers b heads d"]]:
        """Keys and values of a position that the cache holds, in memory of their own."""
        slot = self.slot_of(position)
        return self.keys[..., slot, :].clone(), self.values[..., slot, :].clone()

    def put(
        self, position: int, keys: Float[Tensor, "layers b heads d"], values: Float[Tensor, "layers b heads d"]
    ) -> None:
        """Takes a position back that `copy_of` has returned; `length` counts it."""
        slot = self.slot_of(position)
        self.keys[..., slot, :], self.values[..., slot, :] = keys, values
        self.slots[slot] = position
        self.length = position + 1


def _layers(
    keys: Float[Tensor, "layers b heads m d"], values: Float[Tensor, "layers b heads m d"]
) -> list[tuple[Float[Tensor, "b heads m d"], Float[Tensor, "b heads m d"]]]:
    """The memory of every layer. A compiled step writes to these tensors in place; to a part of one large tensor it
    would write by copying all of it."""
    return [(k.detach(), v.detach()) for k, v in zip(keys.unbind(), values.unbind(), strict=True)]
