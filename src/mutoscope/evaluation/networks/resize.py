"""Bilinear resizing in the variants that published evaluations use, none of which filters against aliasing.

They differ in a pixel's position: at its centre ("half_pixel"), at its corner ("legacy", TensorFlow 1's default), or
with the outermost pixels of both images aligned ("aligned"). From 64 to 224 pixels the first two differ by up
to 0.44 on the [-1, 1] scale.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Centres = Literal["half_pixel", "legacy", "aligned"]


def bilinear(
    frames: Float[Tensor, "n c h w"], height: int, width: int, centres: Centres = "half_pixel"
) -> Float[Tensor, "n c height width"]:
    """Frames at another size, whatever their range of values."""
    if centres == "legacy":
        return _legacy_axis(_legacy_axis(frames, width, dim=-1), height, dim=-2)
    return F.interpolate(frames, (height, width), mode="bilinear", align_corners=centres == "aligned")


def cover_and_crop(frames: Float[Tensor, "n c h w"], side: int) -> Float[Tensor, "n c side side"]:
    """The shorter side to `side`, the longer one rounded up, then the middle square (VideoGPT)."""
    h, w = frames.shape[-2:]
    scale = side / min(h, w)
    height, width = (side, math.ceil(w * scale)) if h < w else (math.ceil(h * scale), side)
    frames = bilinear(frames, height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return frames[..., top : top + side, left : left + side]


def _legacy_axis(frames: Tensor, size: int, dim: int) -> Tensor:
    """One axis of TensorFlow 1's `resize_bilinear`: target pixel i reads the source at i · in / out."""
    length = frames.shape[dim]
    source = torch.arange(size, dtype=torch.float32, device=frames.device) * (length / size)
    low = source.floor().long().clamp(max=length - 1)
    share = (source - low).to(frames.dtype)
    if dim == -2:
        share = share[:, None]
    first = frames.index_select(dim, low)
    return torch.lerp(first, frames.index_select(dim, (low + 1).clamp(max=length - 1)), share)
