"""Crop and resize frames to the size that a model or a comparison needs."""

import numpy as np
from jaxtyping import UInt8

from mutoscope.data.media import covering_size, resized, stacked

Frames = UInt8[np.ndarray, "_t _h _w 3"]  # an underscore: sizes of different videos are independent

MIDDLE = 0.5


def fit_frames(frames: Frames, height: int, width: int, share: float = MIDDLE) -> UInt8[np.ndarray, "t height width 3"]:
    """Frames scaled to cover height x width, then cropped to it, as clips for training are read.

    share: position of the crop from 0, the top or left edge, to 1, the bottom or right edge.
    """
    cover = covering_size(frames.shape[1:3], (height, width))
    covering = stacked([resized(frame, cover) for frame in frames], cover)
    return np.ascontiguousarray(crop(covering, height, width, share))


def crop(frames: Frames, height: int, width: int, share: float = MIDDLE) -> UInt8[np.ndarray, "t height width 3"]:
    """The part of height x width at `share` of the largest offset in both directions."""
    top, left = offset(frames.shape[1] - height, share), offset(frames.shape[2] - width, share)
    return frames[:, top : top + height, left : left + width]


def offset(room: int, share: float) -> int:
    """A crop's offset in whole pixels: `share` of `room`, rounded down."""
    return int(room * share + 1e-9)  # shares such as 1/3 are a little too small as floats
