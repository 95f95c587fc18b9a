"""Rules that every reader of files shares: which files count, how an image becomes RGB pixels, how frames are scaled.

Torch-free, so that a report about a folder starts fast.
"""

import io
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from mutoscope.data.orientation import EXIF_ORIENTATIONS, UPRIGHT
from mutoscope.errors import UserError, reason
from mutoscope.writing import write_whole

if TYPE_CHECKING:
    from PIL.Image import Image

VIDEO_SUFFIXES = frozenset(
    ".mp4 .m4v .mov .mkv .webm .avi .gif .mpg .mpeg .wmv .flv .ts .m2ts .mts .3gp .ogv .y4m .hevc .h264".split()
)
IMAGE_SUFFIXES = frozenset(".png .jpg .jpeg .bmp .webp .tif .tiff .avif".split())

EXIF_ORIENTATION = 0x0112
HIGHEST_16_BIT = 65535
MAX_PIXELS = 2**26  # of an image: 67 million, 800 MB while it is converted

# ---------------------------------------------------------------------------------------------- which files count


def files_below(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """All files below a folder with one of these suffixes, in order of path; see `visible_files` for which count."""
    return [path for path in visible_files(folder) if path.suffix.lower() in suffixes]


def visible_files(folder: Path) -> list[Path]:
    """All files below a folder, in order of path.

    Hidden files and files in hidden folders do not count: unfinished files are written under hidden names. Links to
    files and folders are followed once: a file that several paths below one top-level folder (a class) lead to counts
    once, under a path without links if it has one. A link to a folder that contains the link, or to nothing, does not
    count.
    """
    root = os.path.realpath(folder)
    files, folders = _sorted_out(folder, root)
    found = _each_once(files)
    for below in folders:
        found += _files_once(below)
    return sorted(found)


def visible_matches(folder: Path, pattern: str) -> Iterator[Path]:
    """Paths below a folder that match a glob pattern of one or more levels, in any order, without hidden parts.

    Links are followed, and those to nothing do not count.
    """
    for path in folder.glob(pattern):
        if path.exists() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            yield path


@dataclass(frozen=True, order=True)
class _Entry:
    """A file or folder: how many links its path leads through, the path as found, and the path without links."""

    links: int
    path: Path
    real: str


def _files_once(top: _Entry) -> list[Path]:
    """The files below a folder. Every folder is visited once, those without links in their paths first."""
    files: list[_Entry] = []
    visited: set[str] = set()
    waiting = [top]
    while waiting:
        folder = heappop(waiting)
        if folder.real in visited:
            continue
        visited.add(folder.real)
        here, folders = _sorted_out(folder.path, folder.real, folder.links)
        files += here
        for below in folders:
            heappush(waiting, below)
    return _each_once(files)


def _each_once(files: Sequence[_Entry]) -> list[Path]:
    """One path of each file, that with the fewest links."""
    best: dict[str, Path] = {}
    for entry in sorted(files):
        best.setdefault(entry.real, entry.path)
    return list(best.values())


def _sorted_out(folder: Path, real: str, links: int = 0) -> tuple[list[_Entry], list[_Entry]]:
    """Visible files and folders in a folder. A folder that may not be read holds nothing."""
    try:
        names = [name for name in os.listdir(real) if not name.startswith(".")]
    except OSError:
        return [], []
    files, folders = [], []
    for name in names:
        path = os.path.join(real, name)
        is_link = os.path.islink(path)
        target = os.path.realpath(path) if is_link else path
        entry = _Entry(links + is_link, folder / name, target)
        if os.path.isfile(target):
            files.append(entry)
        elif os.path.isdir(target) and not _contains(target, real):
            folders.append(entry)
    return files, folders


def _contains(folder: str, other: str) -> bool:
    """Whether a folder is another one or contains it; both paths are free of links."""
    return (other + os.sep).startswith(folder.rstrip(os.sep) + os.sep)


# --------------------------------------------------------------------------------------------------------- images


def read_image(path: Path, size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "h w 3"]:
    """An image file as RGB pixels, scaled to cover `size` (h, w). Raises UserError for a broken file."""
    return covering_pixels(open_image(path), size)


def open_image(path: Path, notes: list[str] | None = None) -> "Image":
    """The first frame of an image file, upright and in RGB. Raises UserError for a broken file.

    notes: receives a sentence where the image has transparent pixels.
    """
    try:
        with path.open("rb") as file:
            return decode_image(file, path, notes)
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"{path} is not an image that can be read ({reason(error)})") from None


def write_png(path: Path, pixels: UInt8[np.ndarray, "h w 3"]) -> None:
    """Writes an image whole or not at all. Raises UserError where the system refuses."""
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(content, format="PNG")
    write_whole(path, content.getvalue())


def decode_image(file: IO[bytes], name: Path | str = "The image", notes: list[str] | None = None) -> "Image":
    """The first frame of an encoded image, upright and in RGB. Raises OSError, ValueError or SyntaxError.

    name: of the image in the sentence that `notes` receives where it has transparent pixels.
    """
    from PIL import Image

    try:
        with Image.open(file) as image:
            check_pixels(image)
            if notes is not None and is_see_through(image):
                notes.append(transparency_note(name))
            return upright_rgb(image)
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from None


def check_pixels(image: "Image") -> None:
    """Raises ValueError for an image whose header declares more pixels than are read; none is decoded."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ValueError(f"it has {width}×{height} pixels, {width * height:,}; at most {MAX_PIXELS:,} are read")


def upright_rgb(image: "Image") -> "Image":
    """An image of any mode in 8-bit RGB, turned or mirrored as its EXIF tag says. Raises ValueError as `to_rgb`."""
    from PIL import Image

    image.load()  # of TIFF, Pillow applies the tag itself while loading, and removes it
    orientation = EXIF_ORIENTATIONS.get(image.getexif().get(EXIF_ORIENTATION, 1), UPRIGHT)
    rgb = to_rgb(image)
    return rgb if orientation == UPRIGHT else Image.fromarray(orientation.applied(np.asarray(rgb)))


def to_rgb(image: "Image") -> "Image":
    """An image of any mode in 8-bit RGB.

    Transparency is dropped, as training scripts do: pixels keep their colour however transparent they are. 16-bit grey
    keeps its upper eight bits. Floats between 0 and 1 are scaled by 255, others up to 255 are rounded.
    Raises ValueError for numbers outside these ranges and for NaN or infinity.
    """
    from PIL import Image

    if image.mode.startswith("I"):
        return Image.fromarray(_from_integers(np.asarray(image))).convert("RGB")
    if image.mode == "F":
        return Image.fromarray(_from_floats(np.asarray(image))).convert("RGB")
    if image.mode in ("P", "PA") and has_transparency(image):
        image = image.convert("RGBA")  # directly to RGB, Pillow warns about transparent palettes
    if image.mode in ("La", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])  # colours multiplied by alpha
    return image.convert("RGB")


def _from_integers(values: np.ndarray) -> UInt8[np.ndarray, "h w"]:
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > HIGHEST_16_BIT:
        raise ValueError(f"its grey values go from {low} to {high}; 8 or 16 bits, 0 to {HIGHEST_16_BIT}, can be read")
    return (values >> 8).astype(np.uint8)


def _from_floats(values: np.ndarray) -> UInt8[np.ndarray, "h w"]:
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are not finite (NaN or infinity)")
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 255:
        raise ValueError(f"its values go from {low:g} to {high:g}; floats from 0 to 1, or from 0 to 255, can be read")
    return (values * (255 if high <= 1 else 1)).round().astype(np.uint8)


def has_transparency(image: "Image") -> bool:
    """Whether an image has an alpha channel, a transparent palette entry or a transparent colour."""
    return image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info


def transparency_note(name: Path | str) -> str:
    """The sentence that reports call a transparent image or video by."""
    return f"{name} has transparent pixels; they keep their colour, and transparency is dropped"


def is_see_through(image: "Image") -> bool:
    """Whether any pixel of an image is less than opaque."""
    if not has_transparency(image):
        return False
    return int(np.asarray(image.convert("RGBA").getchannel("A")).min()) < 255


# -------------------------------------------------------------------------------------------------------- scaling


def covering_pixels(image: "Image", size: tuple[int, int] | None) -> UInt8[np.ndarray, "h w 3"]:
    """The pixels of an RGB image, scaled as `resized` does to cover `size` (h, w)."""
    pixels = np.array(image)
    return pixels if size is None else resized(pixels, covering_size(pixels.shape[:2], size))


def resized(frame: UInt8[np.ndarray, "_h _w 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    """A frame scaled to (h, w) by the filter that all clips share: bilinear, with anti-aliasing when it shrinks."""
    from PIL import Image

    if frame.shape[:2] == tuple(size):
        return frame
    height, width = size
    return np.array(Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR))


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
