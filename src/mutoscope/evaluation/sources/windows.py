"""Clips of a folder of videos or a dataset: where in a video a clip starts and which crop of the frame it shows.

Papers differ more in this than in the feature network: the first 16 frames, a random window, k windows at even
distances over the video, or every window.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from mutoscope.data.fit import crop
from mutoscope.data.sources.folder import MediaFile, clip_span, find_videos
from mutoscope.data.sources.folder import spread as every_kth
from mutoscope.data.sources.readers import ContainerReader, VideoReader, count_frames
from mutoscope.errors import UserError

Place = Literal["first", "random", "uniform", "all"]


@dataclass(frozen=True)
class WindowRule:
    """Which clips of a video count.

    place: the "first" frames; a "random" start; `count` starts, "uniform" over the video; "all" starts.
    crops: number of crops, at even distances along the longer side of the frame (1: the middle); 0: a random crop.
    """

    place: Place = "first"
    count: int = 1
    crops: int = 1


@dataclass(frozen=True)
class Window:
    """One clip: an entry, its first frame, and the offset of the crop as a share (0 to 1) of the largest offset."""

    file: MediaFile
    start: int = 0
    share: float = 0.5


@dataclass(frozen=True)
class ClipListing:
    """The readable, long enough videos of a folder or of splits of a dataset, in order.

    skipped: why other videos are omitted. classes: names of the files' labels. notes: how the split was made.
    """

    folder: Path
    files: tuple[MediaFile, ...]
    num_frames: tuple[int, ...]
    skipped: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    reader: VideoReader = field(default_factory=ContainerReader)
    notes: tuple[str, ...] = ()

    def name(self, file: MediaFile) -> str:
        """Path below the folder without suffix; equal names pair a generated video with a real one."""
        return file.path.relative_to(self.folder).with_suffix("").as_posix()

    def usable(self, num_frames: int) -> str:
        """How many videos are usable, in words."""
        skipped = f" ({len(self.skipped)} omitted; {self.skipped[0]})" if self.skipped else ""
        return f"{len(self.files):,} usable videos of {num_frames} frames{skipped}"

    def too_few(self, num_frames: int, wanted: int) -> str:
        """Message of the error that the listing holds fewer videos than `wanted`."""
        return (
            f"{str(self.folder)!r} holds {self.usable(num_frames)}, {wanted:,} are needed: add videos or request fewer "
            "with --num-clips (figures of different counts do not compare)."
        )

    def read(self, window: Window, num_frames: int, stride: int, size: tuple[int, int] | None) -> Tensor:
        """See `read_window`."""
        return read_window(window, num_frames, stride, size, self.reader)


def list_videos(folder: Path | str, num_frames: int, stride: int = 1, wanted: int | None = None) -> ClipListing:
    """The videos below a folder, at most the first `wanted`. Raises UserError if no video is long enough."""
    folder = Path(folder).expanduser()
    files, classes = find_videos(folder)
    listing = ClipListing(folder, (), (), classes=tuple(classes))
    return long_enough(listing, files, clip_span(num_frames, stride), wanted)


def list_samples(folder: Path | str, num_frames: int) -> ClipListing:
    """Generated videos below a folder. Raises UserError if one is too short: a comparison has one length."""
    listing = list_videos(folder, num_frames)
    if short := [note for note in listing.skipped if note.endswith("are needed")]:
        raise UserError(
            f"{len(short)} of the generated videos of {str(listing.folder)!r} are too short; {short[0]}. Clips of one "
            "comparison have the same length: generate them again, or move these away."
        )
    return listing


def long_enough(listing: ClipListing, files: Iterable[MediaFile], span: int, wanted: int | None = None) -> ClipListing:
    """The listing with the files that hold at least `span` frames, at most the first `wanted`, and why others do not.

    Raises UserError if no file does.
    """
    found, counts, skipped = [], [], list(listing.skipped)
    for file in files:
        if len(found) == wanted:
            break
        label = Path(file.name).name
        try:
            count = frames_of(file, listing.reader)
        except UserError as error:
            skipped.append(f"{label}: {error}")
            continue
        if count < span:
            skipped.append(f"{label}: {count} frames, {span} are needed")
            continue
        found.append(file)
        counts.append(count)
    if not found:
        why = f": {len(skipped)} omitted; {skipped[0]}" if skipped else ""
        raise UserError(f"No video of {str(listing.folder)!r} gives a clip{why}.")
    return replace(listing, files=tuple(found), num_frames=tuple(counts), skipped=tuple(skipped))


def frames_of(file: MediaFile, reader: VideoReader) -> int:
    """Number of frames of an entry; those of a container are counted, since headers may promise more."""
    return count_frames(file.path) if isinstance(reader, ContainerReader) else reader.num_frames(file)


def windows(listing: ClipListing, rule: WindowRule, span: int, total: int | None = None, seed: int = 0) -> list[Window]:
    """The clips to measure, at most `total`; only random windows use a video more than once to reach it.

    Random windows take the videos in random order, each once before any is taken again. Of other windows every k-th
    is taken, since videos are sorted by class.
    """
    if rule.place == "random":
        return _random_windows(listing, rule, span, total or len(listing.files), seed)
    found = [
        Window(file, start, share)
        for file, count in zip(listing.files, listing.num_frames, strict=True)
        for start in _starts(rule, count - span)
        for share in even_shares(rule.crops)
    ]
    return found if total is None else [found[i] for i in every_kth(len(found), total)]


def _starts(rule: WindowRule, last: int) -> Sequence[int]:
    if rule.place == "first":
        return [0]
    if rule.place == "all":
        return range(last + 1)
    return [round(share * last) for share in even_shares(rule.count)]


def even_shares(count: int) -> list[float]:
    """Numbers from 0 to 1 at even distances; 0.5 for a count of one."""
    return [0.5] if count == 1 else [i / (count - 1) for i in range(count)]


def _random_windows(listing: ClipListing, rule: WindowRule, span: int, total: int, seed: int) -> list[Window]:
    generator = torch.Generator().manual_seed(seed)
    shares, found = even_shares(rule.crops or 1), []
    while len(found) < total:
        for number in torch.randperm(len(listing.files), generator=generator).tolist():
            start, share = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
            room = listing.num_frames[number] - span
            offset = share if rule.crops == 0 else shares[int(share * len(shares))]
            found.append(Window(listing.files[number], int(start * (room + 1)), offset))
    return found[:total]


def cycled(windows: Sequence[Window], count: int, seed: int) -> tuple[Window, ...]:
    """`count` windows in random order, each once before any is taken again."""

    def endless() -> Iterator[Window]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            yield from (windows[i] for i in torch.randperm(len(windows), generator=generator).tolist())

    return tuple(islice(endless(), count))


def read_window(
    window: Window, num_frames: int, stride: int, size: tuple[int, int] | None, reader: VideoReader | None = None
) -> UInt8[Tensor, "t h w 3"]:
    """Frames of one clip, scaled to cover `size` and cropped to it: the pixels that training on the file sees.

    Without a size, frames keep theirs; without a reader, the entry is a video file. Raises UserError if fewer frames
    decode than requested.
    """
    frames, _ = (reader or ContainerReader()).read(window.file, window.start, num_frames, stride, size)
    if len(frames) < num_frames:
        raise UserError(f"{len(frames)} frames from {window.start} on, {num_frames} are needed")
    return torch.from_numpy(np.ascontiguousarray(frames if size is None else crop(frames, *size, window.share)))
