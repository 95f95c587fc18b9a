"""Frames of one entry of a data set, whatever it is stored as."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import UInt8

from mutoscope.data.sources.folder import MediaFile
from mutoscope.data.video.decode import covering_size
from mutoscope.data.video.read import SEEK_AFTER, FrameIndex, FrameStream, index_frames, iter_frames, probe
from mutoscope.errors import UserError

MAX_CACHED_INDICES = 256
Clip = UInt8[np.ndarray, "t h w 3"]


class VideoReader(Protocol):
    """How the entries of a data set are read."""

    def num_frames(self, file: MediaFile) -> int:
        """Frames that the entry promises. Raises UserError where it cannot be read at all."""
        ...

    def read(
        self, file: MediaFile, start: int, max_frames: int, stride: int, size: tuple[int, int] | None
    ) -> tuple[Clip, int]:
        """Up to `max_frames` frames from `start` on, each scaled to cover `size` (h, w; None: as they are), and how
        many frames the entry was seen to hold. Raises UserError where none can be read.
        """
        ...

    def extras(self, file: MediaFile, frames: Sequence[int]) -> dict[str, np.ndarray]:
        """What else is known of these frames, such as actions: arrays of one row per frame."""
        ...


@dataclass
class ContainerReader:
    """Video files, through FFmpeg."""

    _indices: dict[Path, FrameIndex] = field(default_factory=dict, repr=False)

    def num_frames(self, file: MediaFile) -> int:
        """By the header; where it says nothing, counted."""
        return probe(file.path).num_frames or count_frames(file.path)

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

    def extras(self, file: MediaFile, frames: Sequence[int]) -> dict[str, np.ndarray]:
        return {}


def stacked(frames: Sequence[np.ndarray], size: tuple[int, int] | None) -> Clip:
    """Frames of one size as a clip, which may have none."""
    return np.stack(frames) if frames else np.empty((0, *(size or (0, 0)), 3), np.uint8)


def _stills(file: MediaFile) -> StillsFile:
    if not isinstance(file, StillsFile):
        raise TypeError(f"{file} has no frames")
    return file


def read_image(path: Path, size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "h w 3"]:
    """An image as RGB, scaled with an anti-aliasing filter to cover `size` (h, w).

    Raises UserError for a broken one.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            return fitted(image.convert("RGB"), size)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} is not an image that can be read ({reason})") from None


def fitted(image: Any, size: tuple[int, int] | None) -> UInt8[np.ndarray, "h w 3"]:
    """The pixels of an RGB image, scaled to cover `size` (h, w)."""
    from PIL import Image

    if size is not None:
        height, width = covering_size((image.height, image.width), size)
        if (width, height) != image.size:
            image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.array(image)


def count_frames(path: Path) -> int:
    """Frames of a file whose header does not say: by its packets, or by decoding where these do not tell.

    Raises UserError where not even the first frame decodes.
    """
    with iter_frames(path, max_frames=1) as reader:
        next(reader)
    index = index_frames(path)
    if index.reliable:
        return index.num_packets
    with iter_frames(path, stride=2**62) as reader:  # decodes all, converts one
        list(reader)
        return reader.frames_decoded
