"""Recordings: episodes of video with captions and actions, whatever their format.

Row t of an episode's actions is done in frame t and leads to frame t + 1; the last row leads nowhere. Torch-free.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import cast, get_args

import numpy as np
from jaxtyping import Float32, UInt8

from mutoscope.actions import ActionSpec, Kind
from mutoscope.data.media import IMAGE_SUFFIXES, VIDEO_SUFFIXES, files_below, spread
from mutoscope.data.sources.datasets.bair import Camera
from mutoscope.data.sources.datasets.catalog import list_dataset, present_splits, recognise
from mutoscope.data.sources.datasets.listing import Listing
from mutoscope.data.sources.folder import FileProblem, MediaFile
from mutoscope.data.sources.folder_recordings import list_folder
from mutoscope.data.sources.lerobot import list_lerobot
from mutoscope.data.sources.lerobot_tables import is_lerobot
from mutoscope.data.sources.readers import VideoReader
from mutoscope.errors import UserError

DEFAULT_FPS = 25.0  # where neither the dataset nor its files state a rate
RATED_EPISODES = 48  # at equal distances, whose rates are looked up


class Episode:
    """One episode. Frames are read when they are requested, by seeking; nothing is kept."""

    def __init__(self, file: MediaFile, reader: VideoReader, label: str | None, fps: float | None):
        self._file, self._reader, self._fps = file, reader, fps
        self.caption: str = file.caption
        """"" without a caption."""
        self.label: str | None = label
        """Name of the class; None without classes."""
        self.path: Path = file.path
        """The file of the frames, which may hold other episodes too."""
        self.name: str = file.name

    def __repr__(self) -> str:
        return f"Episode({self.name!r}, {self.num_frames} frames, caption={self.caption!r})"

    @cached_property
    def num_frames(self) -> int:
        """Frames of the episode. Raises UserError where its file cannot be read."""
        return self._reader.num_frames(self._file)

    @cached_property
    def fps(self) -> float:
        """Frames per second."""
        return self._fps or self._reader.fps(self._file) or DEFAULT_FPS

    @property
    def actions(self) -> Float32[np.ndarray, "t a"] | None:
        """One row per frame in the recording's own units, NaN where unknown; None without actions."""
        return self._reader.extras(self._file, range(self.num_frames)).get("actions")

    def read(self, start: int = 0, stop: int | None = None) -> UInt8[np.ndarray, "t h w 3"]:
        """Frames start ... stop - 1 (all by default), upright and at their own size.

        Negative numbers count from the end, as in slices. Raises UserError where the frames cannot be read.
        """
        first, end, _ = slice(start, stop).indices(self.num_frames)
        count = max(1, end - first)
        frames, _ = self._reader.read(self._file, min(first, self.num_frames - 1), count, 1, None)
        if len(frames) < end - first:
            raise UserError(f"{self.name} gives {len(frames)} of the {end - first} frames from {first} on.")
        return frames[: max(0, end - first)]


class Recordings:
    """Episodes in order: `len(recordings)`, `recordings[i]`, and iteration."""

    def __init__(self, listing: Listing):
        self.listing = listing
        self.format: str = listing.format
        """lerobot v3.0, lerobot v2.1, folder, bair ..."""
        self.cameras: list[str] = list(listing.cameras)
        """Names of the cameras; empty where the format knows none."""
        self.camera: str = listing.camera
        """The camera that is read; "" where the format knows none."""
        self.action_names: list[str] = list(listing.actions.names) if listing.actions else []
        """Name of each number of an action; empty without actions."""
        self.class_names: list[str] = list(listing.classes)
        """Names of the classes; empty without classes."""
        self.notes: tuple[str, ...] = listing.notes
        """Sentences about how the recordings are read."""

    def __repr__(self) -> str:
        actions = f", actions={self.action_names}" if self.action_names else ""
        return f"Recordings({str(self.listing.folder)!r}, {self.format}, {len(self)} episodes{actions})"

    def __len__(self) -> int:
        return len(self.listing.files)

    def __getitem__(self, index: int) -> Episode:
        file = self.listing.files[index]
        label = self.class_names[file.label] if 0 <= file.label < len(self.class_names) else None
        return Episode(file, self.listing.reader, label, self.listing.fps)

    def __iter__(self) -> Iterator[Episode]:
        return (self[index] for index in range(len(self)))

    @cached_property
    def fps(self) -> float:
        """Frames per second: the stated rate, else the median over at most 48 episodes."""
        if self.listing.fps:
            return self.listing.fps
        rates = []
        for index in spread(len(self), RATED_EPISODES):
            try:
                rates.append(self[index].fps)
            except UserError:
                continue
        return median(rates) if rates else DEFAULT_FPS

    @cached_property
    def actions(self) -> ActionSpec | None:
        """Names, kind and scaling of the actions, measured over the episodes; None without actions."""
        return self.listing.action_spec()

    @property
    def action_kind(self) -> Kind | None:
        """buttons where every number is 0 or 1, else continuous; None without actions."""
        return None if self.actions is None else self.actions.kind


def open_recordings(path: str | Path, camera: str | None = None) -> Recordings:
    """The recordings below a path: a LeRobot dataset, a folder of videos, one video, or a dataset in its own layout.

    camera: of a LeRobot dataset, the key of its feature or the key's last part (default: the first camera).
    Episodes that are not whole, as in a dataset being written, are skipped with one warning that counts them.
    Raises UserError where nothing can be read, for an unknown camera, or where files contradict each other.
    """
    listing = list_recordings(Path(path).expanduser(), camera)
    return Recordings((listing if listing.lengths_known else _readable(listing)).checked())


def list_recordings(path: Path, camera: str | None = None) -> Listing:
    """The episodes below a path; see `open_recordings`. Raises UserError where there are none."""
    if not path.exists():
        raise UserError(f"there is no folder {path}; check the path")
    if is_lerobot(path):
        return list_lerobot(path, camera)
    kind = recognise(path)
    if camera is not None and kind != "bair":
        raise UserError(f"{path} has no cameras by name: omit the camera ({camera!r}).")
    if kind is not None:
        return _list_dataset(path, kind, camera)
    if path.is_dir() and not files_below(path, VIDEO_SUFFIXES) and files_below(path, IMAGE_SUFFIXES):
        raise UserError(f"{path} holds images and no videos: name a folder of videos or a LeRobot dataset.")
    return list_folder(path)


def _readable(listing: Listing) -> Listing:
    """The listing without entries that cannot be opened, which are missing."""
    files: list[MediaFile] = []
    problems: list[FileProblem] = []
    for file in listing.files:
        try:
            listing.reader.num_frames(file)
            files.append(file)
        except UserError as error:
            problems.append(FileProblem(file.name, str(error)))
    return replace(listing, files=files, missing=[*listing.missing, *problems])


def _list_dataset(path: Path, kind: str, camera: str | None) -> Listing:
    """The first split that a copy of a dataset holds."""
    cameras = get_args(Camera)
    if camera is not None and camera not in cameras:
        raise UserError(f"{path} has no camera called {camera!r}; its cameras are {', '.join(cameras)}.")
    splits = present_splits(kind, path)
    if not splits:
        raise UserError(f"{path} looks like {kind}, but holds none of its splits; docs/datasets.md shows the layout.")
    chosen = cast(Camera, camera or cameras[0])
    return list_dataset(kind, path, splits[0], camera=chosen, with_actions=kind == "bair")


__all__ = ["Episode", "Recordings", "list_recordings", "open_recordings"]
