"""Structural similarity of frames (Wang et al. 2004), in the conventions of the papers that report it.

    SSIM = (2 m_x m_y + c_1)(2 s_xy + c_2) / ((m_x² + m_y² + c_1)(s_x² + s_y² + c_2)),   c_i = (k_i L)²

with local means, variances and covariance under an 11×11 Gaussian of deviation 1.5, only where the window fits into the
frame, averaged over these positions. k = (0.01, 0.03); L is the range of the data. All in float64.

The conventions differ in the compared image: MAGVIT takes luma by Rec. 709 weights in [0, 1], MCVD 8-bit luma by
Rec. 601 as PIL rounds it, others the mean over R, G and B. One pair of frames gives 0.830, 0.854 and 0.764.
"""

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mutoscope.errors import UserError

SSIMConvention = Literal["magvit", "mcvd", "rgb"]
SIZE, SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03
REC_709 = (0.2125, 0.7154, 0.0721)
REC_601 = (19595, 38470, 7471)  # of 65536, as PIL rounds 0.299, 0.587, 0.114


def ssim_per_frame(
    real: Tensor | np.ndarray, fake: Tensor | np.ndarray, convention: SSIMConvention = "magvit"
) -> Tensor:
    """SSIM of every frame: uint8, or floats in [0, 1], (..., t, h, w, 3) twice gives float64 (..., t).

    Raises UserError for clips of two shapes or frames smaller than the window.
    """
    real, fake = torch.as_tensor(real).detach().cpu(), torch.as_tensor(fake).detach().cpu()
    if real.shape != fake.shape:
        raise UserError(f"SSIM needs clips of one shape, found {tuple(real.shape)} and {tuple(fake.shape)}.")
    if min(real.shape[-3:-1]) < SIZE:
        height, width = real.shape[-3:-1]
        raise UserError(f"SSIM looks at windows of {SIZE}×{SIZE} pixels, found frames of {height}×{width}.")
    x, y = (channels(video, convention) for video in (real, fake))  # (..., t, k, h, w)
    values = ssim_map(x.flatten(0, -4), y.flatten(0, -4), gaussian_window(), 255.0 if convention == "mcvd" else 1.0)
    return values.mean(dim=(-3, -2, -1)).reshape(real.shape[:-3])


def ssim_of_clip(real: Tensor | np.ndarray, fake: Tensor | np.ndarray, convention: SSIMConvention = "magvit") -> Tensor:
    """Mean over frames, (..., t, h, w, 3) twice to (...)."""
    return ssim_per_frame(real, fake, convention).mean(dim=-1)


def channels(video: Tensor, convention: SSIMConvention) -> Float[Tensor, "*batch k h w"]:
    """What is compared: one plane of luma, or three of colour; in [0, 1], for "mcvd" in 0 ... 255."""
    if convention == "mcvd":
        levels = video.long() if video.dtype == torch.uint8 else (video.clamp(0, 1) * 255).long()
        luma = (levels * torch.tensor(REC_601)).sum(dim=-1)
        return ((luma + 2**15) >> 16).double()[..., None, :, :]
    values = video.double() / 255 if video.dtype == torch.uint8 else video.double()
    if convention == "magvit":
        return (values * torch.tensor(REC_709, dtype=torch.float64)).sum(dim=-1)[..., None, :, :]
    return values.movedim(-1, -3)


def gaussian_window(size: int = SIZE, sigma: float = SIGMA) -> Float[Tensor, "size"]:
    """One axis of the window, summing to 1."""
    offsets = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    return weights / weights.sum()


def ssim_map(
    x: Float[Tensor, "n k h w"], y: Float[Tensor, "n k h w"], window: Float[Tensor, "size"], data_range: float
) -> Float[Tensor, "n k h2 w2"]:
    """SSIM at every position where the window fits.

    As in MAGVIT, rounding cannot make a variance negative or a covariance larger than the variances allow.
    """
    mean_x, mean_y = _local_mean(x, window), _local_mean(y, window)
    var_x = (_local_mean(x * x, window) - mean_x**2).clamp(min=0)
    var_y = (_local_mean(y * y, window) - mean_y**2).clamp(min=0)
    covariance = _local_mean(x * y, window) - mean_x * mean_y
    largest = (var_x * var_y).sqrt()
    covariance = torch.minimum(torch.maximum(covariance, -largest), largest)
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    above = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return above / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))


def _local_mean(x: Tensor, window: Tensor) -> Tensor:
    planes = x.flatten(0, 1)[:, None]  # (n·k, 1, h, w)
    planes = F.conv2d(F.conv2d(planes, window[None, None, :, None]), window[None, None, None, :])
    return planes.reshape(*x.shape[:2], *planes.shape[-2:])
