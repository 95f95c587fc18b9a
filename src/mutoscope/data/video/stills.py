"""Still and animated images as videos, by Pillow: PNG, JPEG, WebP, TIFF, AVIF."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mutoscope.data.media import check_pixels, is_see_through, transparency_note, upright_rgb
from mutoscope.errors import UserError, reason

if TYPE_CHECKING:
    from PIL.Image import Image

STILL_SECONDS = 1.0  # of a still image, and of each page of a TIFF file
# Browsers show a frame of an animation that states less than 11 ms for 100 ms, since most such files mean no rate.
SHORTEST_SECONDS, INSTEAD_SECONDS = 0.011, 0.1
ANIMATED_FORMATS = frozenset(["PNG", "WEBP", "GIF", "AVIF"])
REDUCED_PAGE = 254  # TIFF tag NewSubfileType, bit 0: a smaller copy of another page


@dataclass(frozen=True)
class StillFrame:
    """One frame of an image file: upright RGB, and for how many seconds it is shown."""

    image: "Image"
    seconds: float


def still_frames(path: Path, notes: list[str] | None = None) -> Iterator[StillFrame]:
    """The frames of an image file: one of a still image, all of an animation, all pages of a TIFF file.

    notes: receives sentences about transparent pixels and about pages without a rate. Raises UserError for a broken
    file, and for values that cannot be pixels (`media.to_rgb`).
    """
    found: dict[str, None] = {}
    with _broken_refused(path):
        for image, seconds in _loaded(path):
            if is_see_through(image):
                found.setdefault(transparency_note(path))
            if image.format == "TIFF" and image.tell():
                found.setdefault(f"{path} has several pages and states no rate; they are read as one frame per second")
            if notes is not None:
                notes += [note for note in found if note not in notes]
            yield StillFrame(upright_rgb(image), seconds)


def still_lengths(path: Path) -> list[float]:
    """Seconds of every frame of an image file. Raises UserError for a broken file."""
    with _broken_refused(path):
        return [seconds for _, seconds in _loaded(path)]


def _loaded(path: Path) -> "Iterator[tuple[Image, float]]":
    """An image at each of its frames in turn, and for how many seconds the frame is shown."""
    from PIL import Image

    with Image.open(path) as image:
        check_pixels(image)
        for number in _frame_numbers(image):
            image.seek(number)
            check_pixels(image)
            image.load()  # WebP knows the frame's duration only after this
            yield image, _seconds(image)


@contextmanager
def _broken_refused(path: Path) -> Iterator[None]:
    from PIL import Image

    try:
        yield
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is not an image that can be read ({reason(error)})") from None


def _frame_numbers(image: "Image") -> list[int]:
    """Frames that are shown one after the other; of other formats (a photo with its depth map) the first one."""
    count = getattr(image, "n_frames", 1)
    if image.format in ANIMATED_FORMATS:
        hidden = 1 if count > 1 and getattr(image, "default_image", False) else 0  # APNG for readers without animation
        return list(range(hidden, count))
    if image.format == "TIFF":
        return [number for number in range(count) if number == 0 or not _is_reduced(image, number)]
    return [0]


def _is_reduced(image: "Image", number: int) -> bool:
    image.seek(number)
    return bool(image.getexif().get(REDUCED_PAGE, 0) & 1)


def _seconds(image: "Image") -> float:
    """How long the current frame of an animation is shown."""
    if image.format not in ANIMATED_FORMATS or getattr(image, "n_frames", 1) == 1:
        return STILL_SECONDS
    seconds = float(image.info.get("duration", 0)) / 1000
    return seconds if seconds >= SHORTEST_SECONDS else INSTEAD_SECONDS
