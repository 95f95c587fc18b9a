"""Rules that every reader of files shares: which files count, and how an image becomes RGB pixels.

Torch-free, so that a report about a folder starts fast.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from mutoscope.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

VIDEO_SUFFIXES = frozenset(
    ".mp4 .m4v .mov .mkv .webm .avi .gif .mpg .mpeg .wmv .flv .ts .m2ts .mts .3gp .ogv .y4m .hevc .h264".split()
)
IMAGE_SUFFIXES = frozenset(".png .jpg .jpeg .bmp .webp .tif .tiff".split())


def files_below(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """All files below a folder with one of these suffixes, in order of path.

    Hidden files and files in hidden folders do not count: unfinished files are written under hidden names.
    """
    return sorted(path for path in folder.rglob("*") if counts(path.relative_to(folder), suffixes) and path.is_file())


def counts(relative: Path, suffixes: Collection[str]) -> bool:
    """Whether a path below a folder has one of these suffixes and no hidden part."""
    return relative.suffix.lower() in suffixes and not any(part.startswith(".") for part in relative.parts)


def read_image(path: Path, size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "h w 3"]:
    """An image file as RGB pixels, scaled to cover `size` (h, w). Raises UserError for a broken file."""
    return covering_pixels(open_image(path), size)


def open_image(path: Path) -> "Image":
    """The first frame of an image file, upright and in RGB. Raises UserError for a broken file."""
    try:
        with path.open("rb") as file:
            return decode_image(file)
    except (OSError, ValueError, SyntaxError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} is not an image that can be read ({reason})") from None


def decode_image(file: IO[bytes]) -> "Image":
    """The first frame of an encoded image, upright and in RGB. Raises OSError, ValueError or SyntaxError."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            return upright_rgb(image)
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from None


def upright_rgb(image: "Image") -> "Image":
    """An image of any mode in 8-bit RGB, turned upright by its EXIF tag."""
    from PIL import ImageOps

    return to_rgb(ImageOps.exif_transpose(image))


def to_rgb(image: "Image") -> "Image":
    """An image of any mode in 8-bit RGB. Transparency is dropped; 16-bit grey keeps its upper eight bits."""
    from PIL import Image

    if not image.mode.startswith("I"):
        return image.convert("RGB")
    return Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")


def covering_pixels(image: "Image", size: tuple[int, int] | None) -> UInt8[np.ndarray, "h w 3"]:
    """The pixels of an RGB image, scaled with an anti-aliasing filter to cover `size` (h, w)."""
    from PIL import Image

    if size is not None:
        height, width = covering_size((image.height, image.width), size)
        if (width, height) != image.size:
            image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.array(image)


def covering_size(size: tuple[int, int], cover: tuple[int, int]) -> tuple[int, int]:
    """Smallest (h, w) of the shape of `size` that covers `cover`: one side equal, the other at least as long."""
    (height, width), (cover_height, cover_width) = size, cover
    if cover_height * width >= cover_width * height:
        return cover_height, max(cover_width, round(width * cover_height / height))
    return max(cover_height, round(height * cover_width / width)), cover_width


def stacked(frames: Sequence[np.ndarray], size: tuple[int, int] | None) -> UInt8[np.ndarray, "t h w 3"]:
    """Frames of one size as a clip, which may have no frame."""
    return np.stack(frames) if frames else np.empty((0, *(size or (0, 0)), 3), np.uint8)


def spread(count: int, wanted: int) -> list[int]:
    """At most `wanted` of the numbers below `count`, at equal distances."""
    wanted = min(count, wanted)
    return [number * count // wanted for number in range(wanted)]
