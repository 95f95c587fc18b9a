"""What a collection of recordings looks like before clips are cut: size, rate, lengths, classes, captions, actions."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from mutoscope.actions import ActionSpec
from mutoscope.data.media import spread
from mutoscope.data.sources.datasets.listing import Listing
from mutoscope.data.sources.folder import MediaFile
from mutoscope.errors import UserError

DECODED_FILES = 48  # files whose first frame is decoded for size and rate, at equal distances
COUNTED_FILES = 2048  # files whose length is read from their headers, at equal distances


@dataclass(frozen=True)
class DataSurvey:
    """The recordings of one source as they are on disk, before any scaling, cropping or striding."""

    height: int
    """Rows of a frame, upright; the most common size where files differ."""
    width: int
    """Columns of a frame."""
    fps: float
    """Frames per second, the median over files."""
    num_videos: int | None
    """Readable videos, episodes or images; None for an endless source."""
    frames: tuple[int, int] | None
    """Frames of the shortest and of the median video; None for an endless source."""
    class_names: tuple[str, ...]
    has_captions: bool
    """Whether any caption has words."""
    actions: ActionSpec | None
    """What the numbers of an action mean; None without actions."""


def survey_listing(listing: Listing, fps: float, actions: ActionSpec | None = None) -> DataSurvey:
    """The survey of listed videos. fps: the rate where neither the listing nor its files state one.

    Sizes and rates come from at most 48 videos, lengths from at most 2,048, at equal distances in the list.
    Raises UserError where no video can be read.
    """
    files = listing.files
    sizes, rates = _sizes_and_rates(listing, [files[n] for n in spread(len(files), DECODED_FILES)])
    lengths = sorted(_lengths(listing, [files[n] for n in spread(len(files), COUNTED_FILES)]))
    if not sizes or not lengths:
        reason = f"the first: {_problem(listing, files[0])}" if files else "there are none"
        raise UserError(f"nothing readable is left in {listing.folder}: {len(files)} files, {reason}")
    height, width = Counter(sizes).most_common(1)[0][0]
    return DataSurvey(
        height=height,
        width=width,
        fps=listing.fps or (median(rates) if rates else fps),
        num_videos=len(lengths) if len(files) <= COUNTED_FILES else len(files),
        frames=(lengths[0], lengths[(len(lengths) - 1) // 2]),
        class_names=tuple(listing.classes),
        has_captions=any(file.caption for file in files),
        actions=actions,
    )


def _problem(listing: Listing, file: MediaFile) -> str:
    """Why a file gives no frame."""
    try:
        listing.reader.read(file, 0, 1, 1, None)
    except UserError as error:
        return str(error)
    return f"{file.name} holds no frame"


def _sizes_and_rates(listing: Listing, files: Sequence[MediaFile]) -> tuple[list[tuple[int, int]], list[float]]:
    """(h, w) of each file's first frame, and the rates of those that have one; unreadable files are skipped."""
    sizes, rates = [], []
    for file in files:
        try:
            frames, _ = listing.reader.read(file, 0, 1, 1, None)
            rate = listing.reader.fps(file)
        except UserError:
            continue
        if len(frames):
            sizes.append((frames.shape[1], frames.shape[2]))
            rates += [rate] if rate else []
    return sizes, rates


def _lengths(listing: Listing, files: Sequence[MediaFile]) -> list[int]:
    """Frames of each readable file."""
    lengths = []
    for file in files:
        try:
            lengths.append(listing.reader.num_frames(file))
        except UserError:
            continue
    return [length for length in lengths if length]
