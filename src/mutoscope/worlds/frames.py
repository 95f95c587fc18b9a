"""Frames of an environment at the size of a recording: the aspect is kept, what is too much is cut off evenly."""

import numpy as np
from jaxtyping import UInt8
from PIL import Image


def covering_box(height: int, width: int, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The largest centred part (left, top, right, bottom) of a frame with the aspect of `size` (height, width)."""
    scale = min(height / size[0], width / size[1])
    kept_height, kept_width = size[0] * scale, size[1] * scale
    left, top = (width - kept_width) / 2, (height - kept_height) / 2
    return left, top, left + kept_width, top + kept_height


def shrunk(frame: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "h2 w2 3"]:
    """A frame at `size` (height, width). Shrinking averages areas, which keeps thin lines and small objects."""
    if frame.shape[:2] == size:
        return np.ascontiguousarray(frame)
    box = covering_box(*frame.shape[:2], size)
    smaller = box[3] - box[1] >= size[0]
    sampling = Image.Resampling.BOX if smaller else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(frame).resize((size[1], size[0]), sampling, box=box))


def size_for(shape: tuple[int, int], height: int | None, width: int | None) -> tuple[int, int]:
    """Frame size (height, width) where one side or none is stated: the other keeps the aspect, in even numbers."""
    if height is None and width is None:
        return _even(shape[0]), _even(shape[1])
    if height is None:
        assert width is not None
        return _even(round(width * shape[0] / shape[1])), width
    return height, _even(round(height * shape[1] / shape[0])) if width is None else width


def _even(side: int) -> int:
    """Videos with halved colours hold even sizes only."""
    return max(2, side // 2 * 2)
