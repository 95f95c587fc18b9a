"""Frames as images for the network, and messages that hold a header and bytes."""

import io
import json
from collections.abc import Mapping
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from mutoscope.model_index import Json

ImageFormat = Literal["webp", "png", "jpeg"]
# Per frame of 96×128: WebP 2 ms and 3 KB, PNG 1 ms and 20 KB and exact
OPTIONS: Mapping[ImageFormat, Mapping[str, int]] = {
    "webp": {"quality": 88, "method": 0},
    "png": {"compress_level": 1},
    "jpeg": {"quality": 90},
}
HEADER_BYTES = 4  # length of the header, big-endian


def encoded(frame: UInt8[np.ndarray, "h w 3"], form: ImageFormat) -> bytes:
    """One frame as the bytes of an image file."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, form.upper(), **OPTIONS[form])
    return buffer.getvalue()


def side_by_side(frames: UInt8[np.ndarray, "t h w 3"]) -> UInt8[np.ndarray, "h t*w 3"]:
    """The frames of a clip in one row."""
    return np.concatenate(list(frames), axis=1)


def message(header: Mapping[str, Json], content: bytes = b"") -> bytes:
    """Length of the header, the header as JSON, and the content."""
    text = json.dumps(header, separators=(",", ":")).encode()
    return len(text).to_bytes(HEADER_BYTES, "big") + text + content
