"""Clips as people have them in Python: arrays, tensors, images, lists of frames and files become uint8 frames."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL.Image import Image
from torch import Tensor

from mutoscope.data.fit import Frames
from mutoscope.data.media import upright_rgb
from mutoscope.data.video.read import Video, read_video
from mutoscope.data.video.write import VideoClip
from mutoscope.errors import UserError

Frame = np.ndarray | Tensor | Image
"""One frame: uint8 (h, w, 3), or (3, h, w) of a tensor, or an image in any mode."""
ClipLike = Frame | VideoClip | Video | str | Path | Sequence[Frame]
"""One clip: uint8 (t, h, w, 3), or (t, 3, h, w) of a tensor; one frame; a list of frames; a video or image file."""

ACCEPTED = "uint8 frames (t, h, w, 3), one frame (h, w, 3), an image, a VideoClip, a list of frames, or a path"


def as_frames(clip: ClipLike, name: str = "video", max_frames: int | None = None) -> Frames:
    """The frames of one clip. `max_frames`: of a file, the first ones only.

    Floats are refused, because their range is unknown: [0, 1], [-1, 1] or [0, 255].
    Raises UserError, beginning with `name`, for anything else than a `ClipLike`, and for files that cannot be read.
    """
    match clip:
        case VideoClip() | Video():
            return clip.frames
        case str() | Path():
            return read_video(Path(clip).expanduser(), max_frames=max_frames).frames
        case Image():
            return np.array(upright_rgb(clip))[None]
        case Tensor():
            return _from_array(_channels_last(clip.detach().cpu()).numpy(), name)
        case np.ndarray():
            return _from_array(clip, name)
        case list() | tuple():
            return _stacked(clip, name)
    raise UserError(f"{name} must be {ACCEPTED}, found {type(clip).__name__}.")


def video_of(clip: ClipLike, fps: float, name: str = "video") -> Video | VideoClip:
    """One clip with its rate: that of a `VideoClip`, `Video` or file, else `fps`. Raises UserError as `as_frames`."""
    match clip:
        case VideoClip() | Video():
            return clip
        case str() | Path():
            return read_video(Path(clip).expanduser())
    return VideoClip(as_frames(clip, name), fps)


def is_one_array(value: object) -> bool:
    """Whether an array or a tensor is one clip or one frame, and not one value or clip per sample."""
    if not isinstance(value, np.ndarray | Tensor):
        return False
    return value.ndim == 4 or (value.ndim == 3 and str(value.dtype).endswith("uint8"))


def _channels_last(tensor: Tensor) -> Tensor:
    """Tensors often have their channels before rows and columns; a last axis of 3 wins."""
    if tensor.ndim in (3, 4) and tensor.shape[-1] != 3 and tensor.shape[-3] == 3:
        return tensor.movedim(-3, -1)
    return tensor


def _from_array(array: np.ndarray, name: str) -> Frames:
    if np.issubdtype(array.dtype, np.floating):
        raise UserError(
            f"{name} must hold uint8 values from 0 to 255, found {array.dtype}, whose range is not known: convert it, "
            "for example (255 * frames).round().astype('uint8') for values in [0, 1]."
        )
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or array.shape[-1] != 3 or 0 in array.shape:
        raise UserError(f"{name} must be {ACCEPTED}, found {array.dtype} of the shape {array.shape}.")
    return np.ascontiguousarray(array if array.ndim == 4 else array[None])


def _stacked(frames: Sequence[Frame], name: str) -> Frames:
    """A list of frames, or of clips to be joined, as one clip."""
    if not frames:
        raise UserError(f"{name} is an empty list: give at least one frame.")
    parts = [as_frames(frame, f"{name}[{i}]") for i, frame in enumerate(frames)]
    sizes = {part.shape[1:3] for part in parts}
    if len(sizes) > 1:
        listed = ", ".join(f"{height}×{width}" for height, width in sorted(sizes))
        raise UserError(f"The frames of {name} must have one size, found {listed}.")
    return np.concatenate(parts)
