"""The real side of a protocol: a data set in its own format, a plain folder of videos, or the built-in world."""

import os
import warnings
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from mutoscope.data.media import covering_pixels
from mutoscope.data.sources.datasets.catalog import list_dataset, present_splits, recognise
from mutoscope.data.sources.datasets.listing import Listing as DatasetListing
from mutoscope.data.sources.folder import MediaFile, clip_span
from mutoscope.data.sources.readers import Clip
from mutoscope.data.sources.shapes.world import HELD_BACK_SEED, ShapesConfig, ShapesWorld
from mutoscope.errors import UserError
from mutoscope.evaluation.protocols.published import SHAPES, VideoProtocol
from mutoscope.evaluation.sources.windows import Listing, list_videos, long_enough


def open_reference(
    protocol: VideoProtocol,
    folder: str | os.PathLike[str] | None,
    split: str | None = None,
    num_clips: int | None = None,
) -> Listing:
    """The real videos of a protocol that are long enough for it.

    A folder laid out as a data set (see `docs/datasets.md`) is read as one, its `split` being the protocol's unless
    named; any other folder is searched for videos. The built-in world needs no folder, and gives twice as many clips as
    are wanted, the second half for real-against-real.
    Raises UserError for a folder of another data set than the protocol's, and where nothing is long enough.
    """
    if protocol.dataset == SHAPES:
        if folder is not None or split is not None:
            raise UserError(f"Protocol {protocol.name!r} compares with the built-in world: leave --reference out.")
        return world_listing(2 * (num_clips or protocol.num_real or 2))
    folder = Path(wanted_folder(protocol, folder)).expanduser()
    kind = recognise(folder)
    if kind is None:
        if split is not None:
            raise UserError(f"{str(folder)!r} is a plain folder of videos, which has no split {split!r}: leave it out.")
        return list_videos(folder, protocol.num_frames, protocol.frame_stride)
    if protocol.dataset not in (kind, "any"):
        raise UserError(
            f"Protocol {protocol.name!r} is about {protocol.dataset}; {str(folder)!r} is laid out as {kind}."
        )
    return list_splits(protocol, kind, folder, (split,) if split else protocol.splits)


def wanted_folder(protocol: VideoProtocol, folder: str | os.PathLike[str] | None) -> str | os.PathLike[str]:
    """Raises UserError where a protocol needs real videos and none are named."""
    if folder is None:
        raise UserError(f"Protocol {protocol.name!r} needs the folder of the real videos: --reference FOLDER.")
    return folder


def list_splits(protocol: VideoProtocol, kind: str, folder: Path, splits: tuple[str, ...]) -> Listing:
    """Videos of some splits of a data set, one after the other; what its lists name and the disk lacks is told."""
    if not splits:
        raise UserError(
            f"{str(folder)!r} is laid out as {kind}: say which split is the real side, --split "
            f"{' or '.join(present_splits(kind, folder))}."
        )
    parts = [_listed(kind, folder, split) for split in splits]
    missing = [f"{Path(gone.path).name}: {gone.reason}" for part in parts for gone in part.missing]
    notes = (f"read as {kind}, {' and '.join(splits)}", *chain.from_iterable(part.notes for part in parts[:1]))
    listing = Listing(folder, (), (), tuple(missing), tuple(parts[0].classes), parts[0].reader, notes)
    files = [file for part in parts for file in part.files]
    return long_enough(listing, files, clip_span(protocol.num_frames, protocol.frame_stride))


def _listed(kind: str, folder: Path, split: str) -> DatasetListing:
    """A split of which something is there. Its warning is left to the report, which names what is missing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list_dataset(kind, folder, split).checked()


# -------------------------------------------------------------------------------------------------- built-in world


@dataclass(frozen=True)
class WorldReader:
    """Clips of the built-in world as entries of a data set, rendered when they are read; `part` is the number."""

    config: ShapesConfig = ShapesConfig()  # noqa: RUF009
    seed: int = HELD_BACK_SEED

    def num_frames(self, file: MediaFile) -> int:
        return self.config.num_frames

    def read(
        self, file: MediaFile, start: int, max_frames: int, stride: int, size: tuple[int, int] | None
    ) -> tuple[Clip, int]:
        from PIL import Image

        frames = ShapesWorld(self.config, self.seed).clip(int(file.part)).frames[start::stride][:max_frames]
        if size is not None:
            frames = np.stack([covering_pixels(Image.fromarray(frame), size) for frame in frames])
        return frames, self.config.num_frames

    def extras(self, file: MediaFile, frames: object) -> dict[str, np.ndarray]:
        return {}


def world_listing(count: int, start: int = 0, seed: int = HELD_BACK_SEED) -> Listing:
    """Clips start ... start + count - 1 of the world's seed. Their classes are known once they are rendered."""
    reader = WorldReader(seed=seed)
    place = Path(f"shapes-{seed}")
    files = tuple(MediaFile(place, -1, part=str(number)) for number in range(start, start + count))
    classes = ShapesWorld(reader.config).class_names
    return Listing(place, files, (reader.config.num_frames,) * count, classes=classes, reader=reader)
