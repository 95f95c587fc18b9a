"""Crop and resize frames to the size that a model or a comparison needs."""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8

Frames = UInt8[np.ndarray, "_t _h _w 3"]  # an underscore: sizes of different videos are independent


def fit_frames(frames: Frames, height: int, width: int) -> UInt8[np.ndarray, "t height width 3"]:
    """Crop frames to the middle at the requested aspect ratio and resize them with an anti-aliasing filter."""
    _, h, w, _ = frames.shape
    if (h, w) == (height, width):
        return np.ascontiguousarray(frames)
    crop_h, crop_w = min(h, round(w * height / width)), min(w, round(h * width / height))
    crop_h, crop_w = max(crop_h, 1), max(crop_w, 1)
    top, left = (h - crop_h) // 2, (w - crop_w) // 2
    video = torch.from_numpy(np.ascontiguousarray(frames[:, top : top + crop_h, left : left + crop_w]))
    video = F.interpolate(video.permute(0, 3, 1, 2).float(), (height, width), mode="bilinear", antialias=True)
    return video.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
