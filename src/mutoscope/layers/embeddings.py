"""Fixed sine and cosine features of numbers and of grid positions, and the initial values of learned vectors."""

import math

import torch
from jaxtyping import Float, Num
from torch import Tensor

INITIAL_STD = 0.02  # of learned vectors and tables: MAR (arXiv 2406.11838) and NOVA (arXiv 2412.14169), released code


def init_normal(*shape: int) -> Float[Tensor, "..."]:
    """Initial values of a learned vector or table: N(0, 0.02²), from the global generator."""
    return INITIAL_STD * torch.randn(shape)


def frequencies(count: int, device: torch.device, base: float = 10_000.0) -> Float[Tensor, " count"]:
    """base^(−k / count) for k from 0, in float32."""
    exponents = torch.arange(count, dtype=torch.float32, device=device)
    return torch.exp(exponents * (-math.log(base) / count))


def sin_cos(values: Num[Tensor, "*s"], size: int) -> Float[Tensor, "*s size"]:
    """[sin(v f), cos(v f)] with size/2 frequencies."""
    angle = values.float()[..., None] * frequencies(size // 2, values.device)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def timestep_features(times: Num[Tensor, "*s"], size: int = 256) -> Float[Tensor, "*s size"]:
    """[cos(t f), sin(t f)]: the features of a diffusion time in 0…1000, cosine first as in DDPM's code."""
    angle = times.float()[..., None] * frequencies(size // 2, times.device)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def grid_sin_cos(grid: tuple[int, int], size: int, device: torch.device) -> Float[Tensor, "n size"]:
    """Features of every position of a (rows, columns) grid in raster order: first of its column, then of its row."""
    rows, columns = (torch.arange(count, device=device) for count in grid)
    column = sin_cos(columns, size // 2).expand(grid[0], -1, -1)  # (h, w, size/2)
    row = sin_cos(rows, size // 2)[:, None].expand(-1, grid[1], -1)  # (h, w, size/2)
    return torch.cat([column, row], dim=-1).flatten(0, 1)  # (h*w, size)
