"""Readers of the entries of a dataset: video files, or one image per frame."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import UInt8

from mutoscope.data.media import read_image, stacked
from mutoscope.data.sources.folder import MediaFile
from mutoscope.data.video.index import frames_in_table
from mutoscope.data.video.measure import measured_fps
from mutoscope.data.video.read import SEEK_AFTER, FrameIndex, FrameStream, index_frames, iter_frames, measure
from mutoscope.errors import UserError

MAX_CACHED_INDICES = 256
Clip = UInt8[np.ndarray, "t h w 3"]


class VideoReader(Protocol):
    """Reads the entries of a dataset."""

    def num_frames(self, file: MediaFile) -> int:
        """Frames that the entry promises. Raises UserError for an unreadable entry."""
        ...

    def read(
        self, file: MediaFile, start: int, max_frames: int, stride: int, size: tuple[int, int] | None
    ) -> tuple[Clip, int]:
        """Up to `max_frames` frames from `start` on, scaled to cover `size` (h, w; None: as stored), and the number of
        frames found in the entry so far. Raises UserError where none can be read.
        """
        ...

    def fps(self, file: MediaFile) -> float | None:
        """Frames per second of the entry; None where nothing states them. Raises UserError for an unreadable entry."""
        ...

    def extras(self, file: MediaFile, frames: Sequence[int]) -> dict[str, np.ndarray]:
        """Further fields of these frames, such as actions: float32 arrays of one row per frame."""
        ...


@dataclass
class ContainerReader:
    """Video files, through FFmpeg."""

    _indices: dict[Path, FrameIndex] = field(default_factory=dict, repr=False)

    def num_frames(self, file: MediaFile) -> int:
        """The frames that the container's own table lists as shown; where it has none, frames are counted."""
        return frames_in_table(file.path) or count_frames(file.path)

    def read(
        self, file: MediaFile, start: int, max_frames: int, stride: int, size: tuple[int, int] | None
    ) -> tuple[Clip, int]:
        reader = FrameStream(
            file.path,
            start=start,
            max_frames=max_frames,
            stride=stride,
            size=size,
            keep_aspect=True,
            index=self._index(file.path) if start >= SEEK_AFTER else None,
        )
        with reader:
            try:
                frames = list(reader)
            except UserError:
                if not reader.frames_decoded:
                    raise
                frames = []  # the file ends before `start`
        return stacked(frames, size), reader.frames_decoded

    def fps(self, file: MediaFile) -> float | None:
        return measured_fps(file.path)

    def extras(self, file: MediaFile, frames: Sequence[int]) -> dict[str, np.ndarray]:
        return {}

    def _index(self, path: Path) -> FrameIndex:
        if path not in self._indices:
            if len(self._indices) >= MAX_CACHED_INDICES:
                self._indices.pop(next(iter(self._indices)))
            self._indices[path] = index_frames(path)
        return self._indices[path]


@dataclass(frozen=True)
class StillsFile(MediaFile):
    """A video kept as one image per frame."""

    frames: tuple[Path, ...] = ()


class StillsReader:
    """Videos kept as one image per frame."""

    def num_frames(self, file: MediaFile) -> int:
        return len(_stills(file).frames)

    def read(
        self, file: MediaFile, start: int, max_frames: int, stride: int, size: tuple[int, int] | None
    ) -> tuple[Clip, int]:
        paths = _stills(file).frames
        chosen = paths[start::stride][:max_frames]
        frames = [read_image(path, size) for path in chosen]
        if len({frame.shape for frame in frames}) > 1:
            raise UserError(f"{file.name}: its images differ in size; they cannot be one video")
        return stacked(frames, size), len(paths)

    def fps(self, file: MediaFile) -> float | None:
        return None

    def extras(self, file: MediaFile, frames: Sequence[int]) -> dict[str, np.ndarray]:
        return {}


def _stills(file: MediaFile) -> StillsFile:
    if not isinstance(file, StillsFile):
        raise TypeError(f"{file} has no frames")
    return file


def count_frames(path: Path) -> int:
    """Frames of a file by its packets, or by decoding where these are unreliable.

    Raises UserError where not even the first frame decodes.
    """
    with iter_frames(path, max_frames=1) as reader:
        next(reader)
    return measure(path).num_frames
