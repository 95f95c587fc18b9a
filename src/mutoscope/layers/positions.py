"""Rotary position embeddings on a grid of any number of axes."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def rotary_table(
    coordinates: Int[Tensor, "n axes"], pairs: tuple[int, ...], base: float = 10_000.0
) -> Float[Tensor, "n pairs 2"]:
    """(cos, sin) of the rotation of every position and channel pair, in float32 (arXiv 2104.09864).

    `pairs[a]`: number of channel pairs that axis a rotates; its pair k rotates by coordinate · base^(−k / pairs[a])
    radians. The pairs of the axes follow each other.
    """
    angles = []
    for axis, count in enumerate(pairs):
        frequencies = base ** (-torch.arange(count, dtype=torch.float32, device=coordinates.device) / max(count, 1))
        angles.append(coordinates[:, axis, None].float() * frequencies)  # (n, count)
    angle = torch.cat(angles, dim=1)  # (n, pairs)
    return torch.stack([angle.cos(), angle.sin()], dim=-1)


def rotate(x: Float[Tensor, "b heads n d"], table: Float[Tensor, "*#b n pairs 2"]) -> Float[Tensor, "b heads n d"]:
    """Rotates the channel pairs (2p, 2p+1) by the table's angles; computes in float32, returns the dtype of `x`.

    A row of zeros in the table, which is no rotation, sets its position to zero.
    """
    if x.is_cpu and not torch.compiler.is_compiling():
        # A product of complex numbers has the same bits and is several times faster, but compilers do not support it.
        pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())  # (b, heads, n, pairs)
        rotated = pairs * torch.view_as_complex(table.contiguous())
        return torch.view_as_real(rotated).flatten(-2).to(x.dtype)  # (b, heads, n, d)
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)  # (b, heads, n, pairs)
    cos, sin = table.unbind(-1)
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2).to(x.dtype)
