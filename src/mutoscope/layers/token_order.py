"""The order in which several distant tokens of a clip are decoded in one step (arXiv 2412.15119)."""

import math

import torch
from jaxtyping import Int
from torch import Tensor

from mutoscope.errors import UserError


def regions_per_side(latent_shape: tuple[int, int, int], num_parallel: int) -> int:
    """M for M² = `num_parallel` regions. Raises UserError unless M is whole and divides height and width."""
    side = math.isqrt(max(num_parallel, 0))
    _, height, width = latent_shape
    if num_parallel < 1 or side**2 != num_parallel:
        raise UserError(f"The number of parallel tokens must be a square (1, 4, 9, 16 ...), found {num_parallel}.")
    if height % side or width % side:
        raise UserError(
            f"{num_parallel} parallel tokens need a grid that splits into {side}x{side} equal regions, found "
            f"{height}x{width}."
        )
    return side


def region_order(latent_shape: tuple[int, int, int], num_parallel: int) -> Int[Tensor, " n"]:
    """Raster index (time, row, column) of every token in decoding order.

    Each frame is divided into M×M regions; the order runs over frames, then over the positions inside a region, then
    over the regions, all in raster order. Neighbours in this order are distant in the frame. With `num_parallel` 1 it
    is raster order.
    """
    side = regions_per_side(latent_shape, num_parallel)
    frames, height, width = latent_shape
    raster = torch.arange(frames * height * width)
    regions = raster.view(frames, side, height // side, side, width // side)  # (t, R, a, K, b)
    return regions.permute(0, 2, 4, 1, 3).flatten()


def inverse_order(order: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Index in decoding order of every raster index."""
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
