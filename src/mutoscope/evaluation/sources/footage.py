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
from mutoscope.data.sources.lerobot_tables import is_lerobot
from mutoscope.data.sources.readers import ContainerReader, VideoReader
from mutoscope.data.sources.recordings import list_recordings
from mutoscope.data.video.measure import measure
from mutoscope.data.video.read import iter_frames
from mutoscope.errors import UserError

Frames = UInt8[np.ndarray, "t h w 3"]
SAME_RATE = 0.02  # part by which two rates may differ and still count as one


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
        found = measure(self.path)
        is_still = found.num_frames == 1 and self.path.suffix.lower() in IMAGE_SUFFIXES
        return FootageInfo(found.num_frames, None if is_still else found.fps, height, width)

    def read(self, frames: Sequence[int], size: tuple[int, int] | None = None) -> Frames:
        if self.path.suffix.lower() not in IMAGE_SUFFIXES:
            return read_listed(self.reader, MediaFile(self.path, -1), frames, size)
        stride = regular_stride(frames)
        stream = iter_frames(self.path, start=frames[0], stride=stride or 1, size=size, keep_aspect=True)
        chosen = set(range(len(frames))) if stride else {number - frames[0] for number in frames}
        return checked_frames(stacked([f for i, f in enumerate(stream) if i in chosen], size), frames)

    def num_bytes(self) -> int:
        return self.path.stat().st_size


@dataclass(frozen=True)
class ListedFootage(Footage):
    """An entry of a listing, such as one episode of a recording. `fps`: its rate."""

    file: MediaFile
    name: str
    reader: VideoReader = field(repr=False, compare=False)
    fps: float | None = None

    def info(self) -> FootageInfo:
        height, width, _ = read_listed(self.reader, self.file, [0])[0].shape
        return FootageInfo(self.reader.num_frames(self.file), self.fps, height, width)

    def read(self, frames: Sequence[int], size: tuple[int, int] | None = None) -> Frames:
        return read_listed(self.reader, self.file, frames, size)

    def num_bytes(self) -> int:
        return self.file.path.stat().st_size


def read_listed(
    reader: VideoReader, file: MediaFile, frames: Sequence[int], size: tuple[int, int] | None = None
) -> Frames:
    """The frames of these rising numbers; an irregular step reads those between, too."""
    start, stride = frames[0], regular_stride(frames)
    if stride is not None:
        return checked_frames(reader.read(file, start, len(frames), stride, size)[0], frames)
    found, _ = reader.read(file, start, frames[-1] - start + 1, 1, size)
    return checked_frames(found[[number - start for number in frames if number - start < len(found)]], frames)


def checked_frames(found: Frames, frames: Sequence[int]) -> Frames:
    """`found`; raises UserError if it is shorter than `frames`."""
    if len(found) < len(frames):
        raise UserError(f"{len(found)} of {len(frames)} frames from {frames[0]} on can be read")
    return found


def regular_stride(frames: Sequence[int]) -> int | None:
    """The distance between consecutive numbers; None if it varies."""
    steps = set(np.diff(frames).tolist())
    if len(steps) > 1:
        return None
    return steps.pop() if steps else 1


@dataclass(frozen=True)
class FootageFolder:
    """What a path holds. kind: "videos", "images" or "episodes", in words. notes: sentences about how it is read."""

    path: Path
    kind: str
    videos: tuple[Footage, ...]
    notes: tuple[str, ...] = ()

    def is_same(self, other: "FootageFolder") -> bool:
        """Whether both are one folder or file."""
        return self.path.resolve() == other.path.resolve()


def open_footage(path: str | os.PathLike[str]) -> FootageFolder:
    """The episodes of a LeRobot dataset, the videos below a folder, its images if it has no videos, or a single file.

    Of a LeRobot dataset the first camera is read. Files are listed in order of path and not opened. Raises UserError
    for a missing path, a model folder, and a folder with nothing to compare.
    """
    folder = Path(path).expanduser()
    if folder.is_file():
        kind = "images" if folder.suffix.lower() in IMAGE_SUFFIXES else "videos"
        return FootageFolder(folder, kind, (FileFootage(folder, folder.stem),))
    if os.fspath(path) in hub.bundled() and not folder.is_dir():
        raise UserError(f"{path!r} is a model: save its clips with mutoscope generate and name their folder.")
    if not folder.is_dir():
        raise UserError(f"There is no folder or file {str(folder)!r}: check the path.")
    if (folder / hub.INDEX).is_file():
        raise UserError(f"{str(folder)!r} is a model: save its clips with mutoscope generate and name their folder.")
    if is_lerobot(folder):
        return open_episodes(folder)
    videos, images = files_below(folder, VIDEO_SUFFIXES), files_below(folder, IMAGE_SUFFIXES)
    if not videos and not images:
        known = " ".join(sorted(VIDEO_SUFFIXES | IMAGE_SUFFIXES))
        raise UserError(f"{str(folder)!r} holds no videos and no images; known suffixes are {known}.")
    if not videos:
        return FootageFolder(folder, "images", named_files(folder, images))
    notes = (f"{len(images)} images beside the videos of {str(folder)!r} are not compared",) if images else ()
    return FootageFolder(folder, "videos", named_files(folder, videos), notes)


def open_episodes(folder: Path) -> FootageFolder:
    """The episodes of a LeRobot dataset, named by their number."""
    listing = list_recordings(folder)
    episodes = tuple(ListedFootage(file, file.part, listing.reader, listing.fps) for file in listing.files)
    return FootageFolder(folder, "episodes", episodes, (f"{folder}: {listing.format}", *listing.notes))


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
