"""Keys and values of the positions decoded so far, passed to a model as an argument."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass
class KVCache:
    """Memory for `max_length` positions in every layer, reserved once; `length` of them are filled."""

    keys: Float[Tensor, "layers b heads max_length d"]
    values: Float[Tensor, "layers b heads max_length d"]
    length: int = 0

    @classmethod
    def reserve(
        cls, shape: tuple[int, int, int, int, int], device: torch.device, dtype: torch.dtype = torch.float32
    ) -> "KVCache":
        """`shape`: layers, batch, heads, longest sequence, size of a head."""
        return cls(torch.empty(shape, device=device, dtype=dtype), torch.empty(shape, device=device, dtype=dtype))

    def append(
        self, layer: int, k: Float[Tensor, "b heads n d"], v: Float[Tensor, "b heads n d"]
    ) -> tuple[Float[Tensor, "b heads m d"], Float[Tensor, "b heads m d"]]:
        """Writes the new positions of one layer behind the filled ones; returns all of them, old and new.

        `length` moves on with `advance`, once all layers are written.
        """
        end = self.length + k.shape[2]
        if end > self.keys.shape[3]:
            raise ValueError(f"the cache holds {self.keys.shape[3]} positions, {end} are needed")
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def advance(self, num_positions: int) -> None:
        self.length += num_positions

    def first(self, batch_size: int) -> "KVCache":
        """The memory of the first samples alone, shared with this cache."""
        return KVCache(self.keys[:, :batch_size], self.values[:, :batch_size], self.length)


@dataclass
class PlacedKVCache(KVCache):
    """Keys and values by place: what is appended replaces what stood at `places`, which may differ between samples."""

    places: Int[Tensor, "b n"] = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.int64))

    def append(
        self, layer: int, k: Float[Tensor, "b heads n d"], v: Float[Tensor, "b heads n d"]
    ) -> tuple[Float[Tensor, "b heads m d"], Float[Tensor, "b heads m d"]]:
        """Writes one layer at `places`; returns all places."""
        index = self.places[:, None, :, None].expand_as(k)
        self.keys[layer].scatter_(2, index, k)
        self.values[layer].scatter_(2, index, v)
        return self.keys[layer], self.values[layer]


@dataclass
class StaticKVCache(KVCache):
    """The same with shapes that never change: attention reads all of the memory, under a mask.

    Where a step of n positions writes is told by a tensor, `places[n]`, always the same one, so that a compiler or a
    CUDA graph can take a step as it is.
    """

    places: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def reserve(
        cls, shape: tuple[int, int, int, int, int], device: torch.device, dtype: torch.dtype = torch.float32
    ) -> "StaticKVCache":
        """Filled with zeros: what is masked still takes part in the products."""
        return cls(torch.zeros(shape, device=device, dtype=dtype), torch.zeros(shape, device=device, dtype=dtype))

    def aim(self, num_positions: int) -> None:
        """Points `places[num_positions]` at the next positions."""
        device = self.keys.device
        if num_positions not in self.places:
            self.places[num_positions] = torch.empty(num_positions, dtype=torch.int64, device=device)
        torch.arange(self.length, self.length + num_positions, device=device, out=self.places[num_positions])

    def append(
        self, layer: int, k: Float[Tensor, "b heads n d"], v: Float[Tensor, "b heads n d"]
    ) -> tuple[Float[Tensor, "b heads m d"], Float[Tensor, "b heads m d"]]:
        """Writes the positions that the cache is aimed at; returns all of the memory."""
        rows = self.places[k.shape[2]]
        self.keys[layer].index_copy_(2, rows, k)
        self.values[layer].index_copy_(2, rows, v)
        return self.keys[layer], self.values[layer]

    def first(self, batch_size: int) -> "StaticKVCache":
        return StaticKVCache(self.keys[:, :batch_size], self.values[:, :batch_size], self.length, self.places)
