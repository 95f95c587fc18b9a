"""Rotary position embeddings on a grid of any number of axes."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def rotary_table(
    coordinates: Int[Tensor, "n axes"], pairs: tuple[int, ...], base: float = 10_000.0
) -> Float[Tensor, "n pairs 2"]:
    """(cos, sin) of every position and channel pair, in float32.

    Axis a turns `pairs[a]` pairs, pair k of them by coordinate · base^(−k / pairs[a]); the axes' pairs follow one
    another.
    """
    angles = []
    for axis, count in enumerate(pairs):
        frequencies = base ** (-torch.arange(count, dtype=torch.float32, device=coordinates.device) / max(count, 1))
        angles.append(coordinates[:, axis, None].float() * frequencies)  # (n, count)
    angle = torch.cat(angles, dim=1)
    return torch.stack([angle.cos(), angle.sin()], dim=-1)


def rotate(x: Float[Tensor, "b heads n d"], table: Float[Tensor, "*#b n pairs 2"]) -> Float[Tensor, "b heads n d"]:
    """Turns the channel pairs (2p, 2p+1) by the table's angles; float32 inside, the dtype of `x` outside.

    A row of zeros in the table (no angle has cos = sin = 0) wipes its position out.
    """
    if x.is_cpu:
        # One product of complex numbers: the same to the last bit, and several times faster, but not for compilers.
        pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())  # (b, heads, n, pairs)
        turned = pairs * torch.view_as_complex(table.contiguous())
        return torch.view_as_real(turned).flatten(-2).to(x.dtype)
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)  # (b, heads, n, pairs)
    cos, sin = table.unbind(-1)
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2).to(x.dtype)
