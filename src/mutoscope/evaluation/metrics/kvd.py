"""Kernel video distance: unbiased squared maximum mean discrepancy with a cubic kernel (TATS, arXiv 2204.03638).

    k(x, y) = (x·y / d + 1)³
    KVD = mean k(x, x') over x ≠ x' + mean k(y, y') over y ≠ y' - 2 mean k(x, y)

Unbiased, so unlike FVD it does not grow when there are few clips, and it may fall below zero for equal sets.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mutoscope.errors import UserError

BLOCK = 1024  # rows and columns of a kernel matrix that are held at once


def kvd(x: Float[Tensor, "n d"] | np.ndarray, y: Float[Tensor, "m _d"] | np.ndarray) -> float:
    """Distance between two sets of feature rows, in float64; memory does not grow with pairs of them.

    Raises UserError for fewer than two rows on a side, two widths, or values that are not finite.
    """
    x, y = (torch.as_tensor(rows).detach().to("cpu", torch.float64) for rows in (x, y))
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise UserError(f"KVD needs rows of one width, found {tuple(x.shape)} and {tuple(y.shape)}.")
    if min(len(x), len(y)) < 2:
        raise UserError(f"KVD needs at least 2 clips on each side, found {len(x)} and {len(y)}: evaluate more clips.")
    if not (x.isfinite().all() and y.isfinite().all()):
        raise UserError("Features of some clips are not finite (NaN or infinite): check their source.")
    within = [(_kernel_sum(z, z) - _diagonal_sum(z)) / (len(z) * (len(z) - 1)) for z in (x, y)]
    return (within[0] + within[1] - 2 * _kernel_sum(x, y) / (len(x) * len(y))).item()


def _kernel_sum(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, ""]:
    width = y.shape[1]
    sums = [_kernel(rows @ others.T, width).sum() for rows in x.split(BLOCK) for others in y.split(BLOCK)]
    return torch.stack(sums).sum()


def _diagonal_sum(x: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    return _kernel(x.square().sum(dim=1), x.shape[1]).sum()


def _kernel(products: Tensor, width: int) -> Tensor:
    return (products / width + 1) ** 3
