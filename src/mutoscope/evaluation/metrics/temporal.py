"""Statistics of clips over time: motion, flicker, frame statistics and their drift.

Two families measure change differently and have different names. `motion`, `flicker` and `frame_curves` are mean
absolute values, in grey levels of 255. `squared_statistics` and `mean_squared_motion` are mean squares, in squared grey
levels; the ablation studies and the rollout benchmark report these.

None needs a reference clip, but each means little without the same figure of real clips: a frozen clip neither
flickers nor drifts.
"""

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from mutoscope.errors import UserError
from mutoscope.evaluation.metrics.pixel import psnr_per_frame

Curve = Float[Tensor, "n t"]
LAPLACIAN = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))  # difference from the four neighbours


def motion(video: UInt8[Tensor, "n t h w 3"] | np.ndarray) -> Float[Tensor, "n"]:
    """Mean absolute difference of consecutive frames, in grey levels of 255."""
    return _levels(video, 2).diff(dim=1).abs().flatten(1).mean(dim=1)


def flicker(video: UInt8[Tensor, "n t h w 3"] | np.ndarray) -> Float[Tensor, "n"]:
    """Mean absolute difference of a frame from the mean of its two neighbours, in grey levels of 255.

    Brightness or texture that alternates raises it more than steady motion does.
    """
    x = _levels(video, 3)
    return (x[:, 1:-1] - (x[:, :-2] + x[:, 2:]) / 2).abs().flatten(1).mean(dim=1)


def frame_curves(video: UInt8[Tensor, "n t h w 3"] | np.ndarray) -> dict[str, Curve]:
    """Statistics of every frame, in grey levels of 255.

    brightness: mean. contrast: standard deviation of luma over pixels. saturation: mean range of the three channels.
    sharpness: mean absolute Laplacian of luma.
    """
    x = _levels(video, 1)  # (n, t, h, w, 3)
    luma = x.mean(dim=-1)  # (n, t, h, w)
    planes = rearrange(luma, "n t h w -> (n t) 1 h w")
    laplacian = luma.new_tensor(LAPLACIAN)[None, None]  # (1, 1, 3, 3)
    edges = F.conv2d(F.pad(planes, (1, 1, 1, 1), mode="replicate"), laplacian).abs()
    return {
        "brightness": luma.mean(dim=(2, 3)),
        "contrast": luma.std(dim=(2, 3), correction=0),
        "saturation": (x.amax(dim=-1) - x.amin(dim=-1)).mean(dim=(2, 3)),
        "sharpness": edges.mean(dim=(1, 2, 3)).reshape(luma.shape[:2]),
    }


def drift(curve: Curve) -> Float[Tensor, "n"]:
    """Change of a statistic over a clip: its least-squares slope per frame, times the frames between first and last."""
    t = curve.shape[1]
    if t < 2:
        raise UserError(f"Drift needs clips of at least 2 frames, found {t}.")
    time = torch.arange(t, dtype=curve.dtype) - (t - 1) / 2
    return (curve * time).sum(dim=1) / time.square().sum() * (t - 1)


def psnr_against_index(real: UInt8[Tensor, "n t h w 3"], fake: UInt8[Tensor, "_n _t _h _w 3"]) -> Float[Tensor, "t"]:
    """Mean over clips of the PSNR of each frame: how fast a prediction departs from the real clip."""
    return psnr_per_frame(real, fake).mean(dim=0)


def squared_statistics(clips: UInt8[Tensor, "n t h w 3"]) -> dict[str, list[float]]:
    """Means over clips for every frame index.

    mean_pixel: mean. pixel_deviation: standard deviation over pixels and channels. squared_gradient: mean squared
    difference of neighbouring pixels. squared_motion: mean squared difference from the previous frame, t - 1 entries.
    """
    video = clips.float()
    across, down = video.diff(dim=3).square().mean((0, 2, 3, 4)), video.diff(dim=2).square().mean((0, 2, 3, 4))
    return {
        "mean_pixel": video.mean((0, 2, 3, 4)).tolist(),
        "pixel_deviation": video.flatten(2).std(dim=2).mean(0).tolist(),
        "squared_gradient": ((across + down) / 2).tolist(),
        "squared_motion": video.diff(dim=1).square().mean((0, 2, 3, 4)).tolist(),
    }


def mean_squared_motion(clips: UInt8[Tensor, "n t h w 3"]) -> float:
    """Mean squared difference of consecutive frames over all clips; reports call its ratio `movement_over_real`."""
    return clips.float().diff(dim=1).square().mean().item()


def _levels(video: Tensor | np.ndarray, least: int) -> Float[Tensor, "n t h w 3"]:
    video = torch.as_tensor(video)
    if video.ndim != 5 or video.shape[1] < least:
        raise UserError(f"Clips (n, t, h, w, 3) of at least {least} frames are needed, found {tuple(video.shape)}.")
    return video.double()
