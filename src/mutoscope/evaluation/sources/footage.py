"""The videos of one side of a comparison, whatever holds them: files, images, or episodes of a recording.

A comparison needs four things of a video: its name (which pairs it with another one), how many frames of what size and
rate it has, and the pixels of some of its frames. `Footage` is these four; `open_footage` finds out from the path
which kind of footage it holds.
"""

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from mutoscope import hub
from mutoscope.data.fit import fit_frames
from mutoscope.data.media import IMAGE_SUFFIXES, VIDEO_SUFFIXES, files_below, stacked
from mutoscope.data.sources.folder import MediaFile
from mutoscope.data.sources.readers import ContainerReader, count_frames
from mutoscope.data.video.read import iter_frames
from mutoscope.errors import UserError

Frames = UInt8[np.ndarray, "t h w 3"]
SAME_RATE = 0.02  # part by which two rates may differ and still count as one, as in `data/video/rate.py`


@dataclass(frozen=True)
class FootageInfo:
    """num_frames: frames that can be read. fps: frames per second, None for a still image. Sizes in pixels, upright."""

    num_frames: int
    fps: float | None
    height: int
    width: int

    def step(self, fps: float | None) -> float:
        """Own frames from one frame to the next at a common rate; 1 without one, and where the video is slower.

        A step within 2 % of a whole number is that number, so that 29.97 frames per second are read like 30.
        """
        if fps is None or self.fps is None or self.fps <= fps:
            return 1.0
        step = self.fps / fps
        return float(round(step)) if abs(step / round(step) - 1) <= SAME_RATE else step

    def length(self, fps: float | None) -> int:
        """Frames at a common rate."""
        return int((self.num_frames - 1) / self.step(fps)) + 1 if self.num_frames else 0


class Footage(ABC):
    """One video, image or episode. `name`: unique among those opened together, "/" between folders, no suffix."""

    name: str

    @abstractmethod
    def info(self) -> FootageInfo:
        """Length, rate and size. Raises UserError for what cannot be read."""

    @abstractmethod
    def read(self, frames: Sequence[int], size: tuple[int, int] | None = None) -> Frames:
        """The frames of these rising numbers; scaled to cover `size` (h, w), or as stored.

        Raises UserError if one of them cannot be read.
        """

    @abstractmethod
    def num_bytes(self) -> int:
        """Size on disk, which tells one version of a file from another."""


@dataclass(frozen=True)
class FileFootage(Footage):
    """A video file, or an image file: a video of one frame, or of all frames of an animated image."""

    path: Path
    name: str
    reader: ContainerReader = field(default_factory=ContainerReader, repr=False, compare=False)

    def info(self) -> FootageInfo:
        with iter_frames(self.path, max_frames=1) as frames:
            height, width, _ = next(frames).shape
            fps = frames.fps
        if self.path.suffix.lower() not in IMAGE_SUFFIXES:
            return FootageInfo(count_frames(self.path), fps, height, width)
        count = sum(1 for _ in iter_frames(self.path))
        return FootageInfo(count, fps if count > 1 else None, height, width)

    def read(self, frames: Sequence[int], size: tuple[int, int] | None = None) -> Frames:
        start, stride = frames[0], regular_stride(frames)
        read_all = stride is None  # an irregular step reads the frames between, too
        count = frames[-1] - start + 1 if read_all else len(frames)
        if self.path.suffix.lower() in IMAGE_SUFFIXES:
            stream = iter_frames(
                self.path, start=start, max_frames=count, stride=stride or 1, size=size, keep_aspect=True
            )
            found = stacked(list(stream), size)
        else:
            found, _ = self.reader.read(MediaFile(self.path, -1), start, count, stride or 1, size)
        if len(found) < count:
            raise UserError(f"{len(found)} frames from {start} on can be read, {count} are needed")
        return found[np.asarray(frames) - start] if read_all else found

    def num_bytes(self) -> int:
        return self.path.stat().st_size


def regular_stride(frames: Sequence[int]) -> int | None:
    """The distance between consecutive numbers; None if it varies."""
    steps = set(np.diff(frames).tolist())
    if len(steps) > 1:
        return None
    return steps.pop() if steps else 1


@dataclass(frozen=True)
class FootageFolder:
    """What a path holds. kind: in words, "videos" or "images". notes: sentences about files that are not compared."""

    path: Path
    kind: str
    videos: tuple[Footage, ...]
    notes: tuple[str, ...] = ()

    def is_same(self, other: "FootageFolder") -> bool:
        """Whether both are one folder or file."""
        return self.path.resolve() == other.path.resolve()


def open_footage(path: str | os.PathLike[str]) -> FootageFolder:
    """The videos below a folder, its images if it has no videos, or a single file.

    Files are listed in order of path and not opened. Raises UserError for a missing path, a model folder, and a folder
    with nothing to compare.
    """
    folder = Path(path).expanduser()
    if folder.is_file():
        kind = "images" if folder.suffix.lower() in IMAGE_SUFFIXES else "videos"
        return FootageFolder(folder, kind, (FileFootage(folder, folder.stem),))
    if not folder.is_dir():
        raise UserError(f"There is no folder or file {str(folder)!r}: check the path.")
    if (folder / hub.INDEX).is_file():
        raise UserError(f"{str(folder)!r} is a model: save its clips with mutoscope generate and name their folder.")
    videos, images = files_below(folder, VIDEO_SUFFIXES), files_below(folder, IMAGE_SUFFIXES)
    if not videos and not images:
        known = " ".join(sorted(VIDEO_SUFFIXES | IMAGE_SUFFIXES))
        raise UserError(f"{str(folder)!r} holds no videos and no images; known suffixes are {known}.")
    if not videos:
        return FootageFolder(folder, "images", named_files(folder, images))
    notes = (f"{len(images)} images beside the videos of {str(folder)!r} are not compared",) if images else ()
    return FootageFolder(folder, "videos", named_files(folder, videos), notes)


def named_files(folder: Path, paths: Sequence[Path]) -> tuple[Footage, ...]:
    """Files with their path below the folder as name, with the suffix only where two would have one name."""
    reader = ContainerReader()
    names = [path.relative_to(folder).with_suffix("").as_posix() for path in paths]
    counts = Counter(names)
    return tuple(
        FileFootage(path, name if counts[name] == 1 else path.relative_to(folder).as_posix(), reader)
        for path, name in zip(paths, names, strict=True)
    )


@dataclass(frozen=True)
class Take:
    """Some frames of one video at one size: a clip. `video`: number of the video among those of its side."""

    footage: Footage
    frames: tuple[int, ...]
    stored_size: tuple[int, int]
    size: tuple[int, int]
    video: int = 0

    def read(self) -> UInt8[np.ndarray, "t h w 3"]:
        """The clip, read as training reads it: scaled to cover the size and cropped to the middle.

        A video that is one row or column larger than an odd size only loses these: MP4 holds even sizes, so that a
        writer repeats the last row and column of others. Raises UserError if a frame cannot be read.
        """
        if is_padded(self.stored_size, self.size):
            return np.ascontiguousarray(self.footage.read(self.frames)[:, : self.size[0], : self.size[1]])
        return fit_frames(self.footage.read(self.frames, self.size), *self.size)


def is_padded(stored: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether `stored` is `size` with odd sides made even by one repeated row or column."""
    return all(found in (side, side + side % 2) for found, side in zip(stored, size, strict=True))


def digest(takes: Sequence[Take]) -> str:
    """SHA-256 of what is read: names, sizes on disk, frame numbers, and height and width."""
    rows = [[take.footage.name, take.footage.num_bytes(), *take.size, *take.frames] for take in takes]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()
