"""PSNR between clips, in the two conventions that papers use without saying which.

Both take data in [0, 1], so that the peak is 1: uint8 is divided by 255, floats are used as they are. Differences are
taken in float64. Equal frames have an infinite PSNR; averages keep it instead of clipping it.
"""

import numpy as np
import torch
from torch import Tensor

from mutoscope.errors import UserError


def psnr_per_frame(real: Tensor | np.ndarray, fake: Tensor | np.ndarray) -> Tensor:
    """PSNR in dB of every frame: (..., t, h, w, c) twice gives float64 (..., t)."""
    return _psnr(_squared_error(real, fake).mean(dim=(-3, -2, -1)))


def psnr_mean_of_frames(real: Tensor | np.ndarray, fake: Tensor | np.ndarray) -> Tensor:
    """Mean over a clip's frames of the frames' PSNR, (..., t, h, w, c) to (...). MAGVIT's convention.

    Frames that happen to be equal make it infinite.
    """
    return psnr_per_frame(real, fake).mean(dim=-1)


def psnr_of_clip(real: Tensor | np.ndarray, fake: Tensor | np.ndarray) -> Tensor:
    """PSNR of the squared error averaged over a whole clip, (..., t, h, w, c) to (...). MCVD's convention.

    Never above the mean over frames (Jensen), and finite unless the whole clip is equal.
    """
    return _psnr(_squared_error(real, fake).mean(dim=(-4, -3, -2, -1)))


def psnr_of_region(real: Tensor | np.ndarray, fake: Tensor | np.ndarray, region: Tensor) -> Tensor:
    """`psnr_of_clip` over the pixels where `region` (t, h, w) is True."""
    return _psnr(_squared_error(real, fake)[..., region, :].mean(dim=(-2, -1)))


def _squared_error(real: Tensor | np.ndarray, fake: Tensor | np.ndarray) -> Tensor:
    real, fake = _unit_range(real), _unit_range(fake)
    if real.shape != fake.shape:
        raise UserError(f"PSNR needs clips of one shape, found {tuple(real.shape)} and {tuple(fake.shape)}.")
    return (real - fake).square()


def _unit_range(video: Tensor | np.ndarray) -> Tensor:
    video = torch.as_tensor(video).detach().cpu()
    return video.double() / 255 if video.dtype == torch.uint8 else video.double()


def _psnr(mean_squared_error: Tensor) -> Tensor:
    return -10 * mean_squared_error.log10()
