"""Reads one uploaded file, in a process of its own whose time and memory are limited.

    python -m mutoscope.playground.reading FILE MAX_FRAMES SIDE MAX_PIXELS MAX_SECONDS CPU_SECONDS MEMORY_BYTES

Writes uint8 frames as .npy to standard output, or one sentence to standard error (status 2). The file may hang or
crash its decoder: that ends this process and nothing else.
"""

import io
import resource
import sys
import warnings
from pathlib import Path

import numpy as np

from mutoscope.errors import UserError


def limit_process(cpu_seconds: int, memory_bytes: int) -> None:
    """From now on, this process ends when it uses more."""
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def read_upload(path: Path, max_frames: int, side: int, max_pixels: int, max_seconds: float) -> np.ndarray:
    """The first frames, whose shorter side is at most `side`. Raises UserError for what is no picture or video."""
    from mutoscope.data.media import covering_size
    from mutoscope.data.video.read import iter_frames, probe, read_video

    check_size(declared_size(path), max_pixels)  # FFmpeg calls it an invalid argument
    info = probe(path)
    check_size((info.width, info.height), max_pixels)
    if info.seconds is not None and info.seconds > max_seconds:
        raise UserError(f"The video is too long: {info.seconds:.0f} seconds, at most {max_seconds:.0f}.")
    with iter_frames(path, max_frames=1) as first:
        height, width = next(iter(first)).shape[:2]
    size = None
    if min(height, width) > side:
        size = covering_size((height, width), (side, side))
    return read_video(path, max_frames=max_frames, size=size).frames


def declared_size(path: Path) -> tuple[int, int]:
    """Width and height in the header of an image; (0, 0) for other files. Raises UserError for a bomb."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the caller checks the size
            with Image.open(path) as image:
                return image.size
    except Image.DecompressionBombError:
        raise UserError("The frames are too large to be read.") from None
    except (OSError, ValueError, SyntaxError, MemoryError):
        return 0, 0


def check_size(size: tuple[int, int], max_pixels: int) -> None:
    """Raises UserError for frames of more pixels."""
    width, height = size
    if width * height > max_pixels:
        raise UserError(f"The frames are too large: {width}×{height}, at most {max_pixels:,} pixels.")


def main(arguments: list[str]) -> int:
    path, max_frames, side, max_pixels, max_seconds, cpu_seconds, memory_bytes = arguments
    limit_process(int(cpu_seconds), int(memory_bytes))
    warnings.simplefilter("ignore")  # a client reads standard error, which holds one sentence of ours
    try:
        frames = read_upload(Path(path), int(max_frames), int(side), int(max_pixels), float(max_seconds))
    except UserError as error:
        print(str(error).replace(path, "The file"), file=sys.stderr)
        return 2
    except MemoryError:
        print("The file needs too much memory to be read.", file=sys.stderr)
        return 2
    buffer = io.BytesIO()
    np.save(buffer, frames)
    sys.stdout.buffer.write(buffer.getvalue())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
