"""The real side of a protocol: a dataset in its own format, a plain folder of videos, or the shapes dataset."""

import os
import warnings
from itertools import chain
from pathlib import Path

from mutoscope.data.sources.datasets.catalog import list_dataset, present_splits, recognise
from mutoscope.data.sources.datasets.listing import Listing
from mutoscope.data.sources.folder import clip_span
from mutoscope.errors import UserError
from mutoscope.evaluation.protocols.published import SHAPES, VideoProtocol
from mutoscope.evaluation.sources.shapes_clips import shapes_listing
from mutoscope.evaluation.sources.windows import ClipListing, list_videos, long_enough


def open_reference(
    protocol: VideoProtocol,
    folder: str | os.PathLike[str] | None,
    split: str | None = None,
    num_clips: int | None = None,
) -> ClipListing:
    """The real videos of a protocol that are long enough for it.

    A folder laid out as a dataset (see `docs/datasets.md`) is read as one, by default in the protocol's split; any
    other folder is searched for videos. The shapes dataset needs no folder and gives twice as many clips as are
    requested, the second half for real against real.
    Raises UserError for a folder of another dataset than the protocol's, or without a video that is long enough.
    """
    if protocol.dataset == SHAPES:
        if folder is not None or split is not None:
            raise UserError(f"Protocol {protocol.name!r} compares with the shapes dataset: omit --reference.")
        return shapes_listing(2 * (num_clips or protocol.num_real or 2))
    folder = Path(wanted_folder(protocol, folder)).expanduser()
    kind = recognise(folder)
    if kind is None:
        if split is not None:
            raise UserError(f"{str(folder)!r} is a plain folder of videos, which has no split {split!r}: omit --split.")
        return list_videos(folder, protocol.num_frames, protocol.frame_stride)
    if protocol.dataset not in (kind, "any"):
        raise UserError(
            f"Protocol {protocol.name!r} is about {protocol.dataset}; {str(folder)!r} is laid out as {kind}."
        )
    return list_splits(protocol, kind, folder, (split,) if split else protocol.splits)


def wanted_folder(protocol: VideoProtocol, folder: str | os.PathLike[str] | None) -> str | os.PathLike[str]:
    """The folder; raises UserError if it is None."""
    if folder is None:
        raise UserError(f"Protocol {protocol.name!r} needs the folder of the real videos: --reference FOLDER.")
    return folder


def list_splits(protocol: VideoProtocol, kind: str, folder: Path, splits: tuple[str, ...]) -> ClipListing:
    """Videos of some splits of a dataset, in turn; files that its lists name and the disk lacks are noted."""
    if not splits:
        raise UserError(
            f"{str(folder)!r} is laid out as {kind}: name the split of the real side, --split "
            f"{' or '.join(present_splits(kind, folder))}."
        )
    parts = [_listed(kind, folder, split) for split in splits]
    missing = [f"{Path(gone.path).name}: {gone.reason}" for part in parts for gone in part.missing]
    notes = (f"read as {kind}, {' and '.join(splits)}", *chain.from_iterable(part.notes for part in parts[:1]))
    listing = ClipListing(folder, (), (), tuple(missing), tuple(parts[0].classes), parts[0].reader, notes)
    files = [file for part in parts for file in part.files]
    return long_enough(listing, files, clip_span(protocol.num_frames, protocol.frame_stride))


def _listed(kind: str, folder: Path, split: str) -> Listing:
    """A split with at least one file. The report names missing files, so the warning about them is suppressed here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list_dataset(kind, folder, split).checked()
