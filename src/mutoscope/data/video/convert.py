"""From a decoded frame to upright RGB pixels, and what a viewer would see otherwise.

Every conversion by FFmpeg's swscale interpolates colour differences fully: without the flags below it computes one
colour for every two pixels of a row, and loses 10 to 30 dB against a computation in floats.
"""

import struct
from typing import TYPE_CHECKING, cast

import numpy as np
from jaxtyping import UInt8

from mutoscope.data.media import covering_size, resized, transparency_note
from mutoscope.data.orientation import Orientation, is_oblique, of_display_matrix
from mutoscope.errors import UserError, reason

if TYPE_CHECKING:
    from collections.abc import Mapping
    from fractions import Fraction
    from pathlib import Path

    from av.buffer import Buffer
    from av.video.frame import VideoFrame
    from av.video.reformatter import Interpolation
    from av.video.stream import VideoStream

HDR_TRANSFERS = {16: "PQ", 18: "HLG"}
RESERVED_MATRIX, BT601 = 3, 5  # codes of colour matrices in ITU-T H.273; FFmpeg refuses to convert the former
# From this factor on, scaling and conversion are one step: as good as two within 1 to 3 dB (above 44 dB both), and the
# full-size RGB frame, which costs more than decoding, is never computed.
DIRECT_SHRINKING = 2


def full_chroma(filter_name: str) -> "Interpolation":
    """Flags of an exact conversion with this filter: "BILINEAR" where frames shrink, "BICUBIC" at full size."""
    from av.video.reformatter import Interpolation

    exact = Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP | Interpolation.ACCURATE_RND
    return Interpolation[filter_name] | exact


def rgb_array(
    frame: "VideoFrame",
    orientation: Orientation,
    upright_size: tuple[int, int],
    size: tuple[int, int] | None,
    keep_aspect: bool,
) -> UInt8[np.ndarray, "h w 3"]:
    """Upright pixels. upright_size: (h, w) of the stream's first frame, which all frames take; size: as `read_video`.

    Raises UserError for a colour format that cannot be converted.
    """
    height, width = upright_size
    if size is not None:
        height, width = covering_size(upright_size, size) if keep_aspect else size
    stored = orientation.size(height, width)
    shrinks = frame.height >= DIRECT_SHRINKING * stored[0] and frame.width >= DIRECT_SHRINKING * stored[1]
    if shrinks:
        return orientation.applied(_converted(frame, stored, "BILINEAR"))
    whole = _converted(frame, (frame.height, frame.width), "BICUBIC")
    return orientation.applied(resized(whole, stored))


def _converted(frame: "VideoFrame", size: tuple[int, int], filter_name: str) -> UInt8[np.ndarray, "h w 3"]:
    matrix = BT601 if frame.colorspace == RESERVED_MATRIX else None  # as for files that state none
    try:
        return frame.to_ndarray(
            format="rgb24",
            width=size[1],
            height=size[0],
            src_colorspace=matrix,
            interpolation=full_chroma(filter_name),
            threads=1,
        )
    except (OSError, ValueError) as error:  # PyAV's errors are one of the two
        found = f"{frame.format.name}, colour matrix {int(frame.colorspace)}"
        raise UserError(f"frames of this kind ({found}) cannot be converted to RGB: {reason(error)}") from None


# --------------------------------------------------------------------------------------------------- orientation


def display_matrix(frame: "VideoFrame") -> tuple[int, ...] | None:
    """The nine numbers by which a frame has to be turned or mirrored; None where it states none."""
    side_data = cast("Mapping[str, Buffer]", frame.side_data)  # PyAV's stubs know one kind only
    matrix = side_data.get("DISPLAYMATRIX")
    return None if matrix is None else struct.unpack("=9i", bytes(matrix)[:36])


def orientation_of(frame: "VideoFrame") -> Orientation | None:
    """The orientation that a frame states, by the container's matrix or in H.264 and HEVC by its own message."""
    matrix = display_matrix(frame)
    return None if matrix is None else of_display_matrix(matrix)


# --------------------------------------------------------------------------------------------------------- notes


def frame_notes(stream: "VideoStream", frame: "VideoFrame", path: "Path") -> list[str]:
    """Differences between a viewer's image and the array, as the first frame shows them."""
    notes = []
    aspect: Fraction | None = stream.codec_context.sample_aspect_ratio
    if aspect and aspect != 1:
        ratio = f"{aspect.numerator}:{aspect.denominator}"
        notes.append(f"{path} has non-square pixels ({ratio}); frames are kept as stored, as datasets do")
    if frame.color_trc in HDR_TRANSFERS:
        notes.append(f"{path} is high dynamic range ({HDR_TRANSFERS[frame.color_trc]}); converted without tone mapping")
    matrix = display_matrix(frame)
    if matrix is not None and is_oblique(matrix):
        notes.append(f"{path} states a rotation of {frame.rotation} degrees; the nearest quarter turn is applied")
    if stream.metadata.get("alpha_mode") == "1" or _is_see_through(frame):
        notes.append(transparency_note(path))
    return notes


INTERLACED = "is interlaced: frames hold two moments in alternate rows, kept as stored; deinterlace it for training"
"""The note about a file with interlaced frames, after its name."""


def _is_see_through(frame: "VideoFrame") -> bool:
    """Whether any pixel of a frame is less than opaque."""
    if not any(component.is_alpha for component in frame.format.components):
        return False
    return int(frame.to_ndarray(format="rgba", threads=1)[..., 3].min()) < 255
