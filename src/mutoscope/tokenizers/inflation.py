"""Initialisation of 3D networks for video from 2D networks for images (arXiv 2212.05199, §3.1 and Tab. 7).

The 2D-VQ and its discriminator have the layout of their 3D counterparts, so their parameters map one to one.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mutoscope.errors import UserError

Inflation = Literal["central", "average"]


def inflate_kernel(
    kernel: Float[Tensor, "c_out c_in 1 h w"], size: int, method: Inflation
) -> Float[Tensor, "c_out c_in size h w"]:
    """Extends a 2D kernel to `size` cells in time.

    "central": zeros but for cell size // 2, so that the 3D network first treats frames separately.
    "average": the 2D kernel times 1 / `size` in every cell (a product, not a quotient: bits as in the official code).
    """
    if method == "average":
        return kernel.expand(-1, -1, size, -1, -1) * (1.0 / size)
    inflated = kernel.new_zeros(*kernel.shape[:2], size, *kernel.shape[3:])
    inflated[:, :, size // 2] = kernel[:, :, 0]
    return inflated


@torch.no_grad()
def inflate(source: nn.Module, target: nn.Module, method: Inflation = "central") -> None:
    """Sets the parameters of `target` (3D) from those of `source` (its 2D counterpart); equal shapes are copied.

    Works for tokenizers and discriminators. Raises UserError if the networks are no counterparts.
    """
    if method not in ("central", "average"):
        raise UserError(f"Inflation is central or average, found {method!r}.")
    found, expected = source.state_dict(), target.state_dict()
    if found.keys() != expected.keys():
        name = min(found.keys() ^ expected.keys())
        raise UserError(f"The 2D and the 3D network have different layouts: only one of them has {name!r}.")
    inflated = {}
    for name, value in found.items():
        shape = expected[name].shape
        if value.ndim == 5 and value.shape[2] == 1 and shape[2] > 1:
            value = inflate_kernel(value, shape[2], method)
        if value.shape != shape:
            raise UserError(f"{name!r} has shape {tuple(value.shape)} in 2D, which does not fit {tuple(shape)} in 3D.")
        inflated[name] = value
    target.load_state_dict(inflated)
