"""The best of several samples for one video, as stochastic prediction is scored."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from mutoscope.errors import UserError


def best_of(
    values: Float[Tensor, "videos samples"], mode: Literal["max", "min", "mean"] = "max"
) -> Float[Tensor, "videos"]:
    """Best value of every video's samples: "max" for PSNR and SSIM, "min" for MCVD's LPIPS, "mean" for MAGVIT's.

    The best is taken of each metric for itself, not of one sample for all. Raises UserError for values that are NaN.
    """
    if values.ndim != 2 or values.shape[1] < 1:
        raise UserError(f"Values of (videos, samples) are needed, found {tuple(values.shape)}.")
    if values.isnan().any():
        raise UserError("Some samples have no value (NaN): the best of them is not defined.")
    if mode == "mean":
        return values.mean(dim=1)
    return values.amax(dim=1) if mode == "max" else values.amin(dim=1)
