"""Which clips of a folder of videos or a data set are measured: where they start, what part of the frame they show.

Papers differ more in this than in the network: the first 16 frames, a random window, k windows evenly spread over the
video, or every window there is.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from mutoscope.data.fit import fit_frames
from mutoscope.data.sources.folder import MediaFile, clip_span, find_videos
from mutoscope.data.sources.folder import spread as spread_numbers
from mutoscope.data.sources.readers import ContainerReader, VideoReader, count_frames
from mutoscope.data.video.read import read_video
from mutoscope.errors import UserError

Place = Literal["first", "random", "uniform", "all"]


@dataclass(frozen=True)
class WindowRule:
    """Clips of one video.

    place: "first" frames; "random" start; `count` starts, "uniform" over the video; "all" starts.
    crops: that many parts of the frame, evenly spread along its longer side (1: the middle); 0: a random one.
    """

    place: Place = "first"
    count: int = 1
    crops: int = 1


@dataclass(frozen=True)
class Window:
    """One clip: an entry, its first frame, and where the crop lies in the room that the frame's longer side leaves."""

    file: MediaFile
    start: int = 0
    share: float = 0.5


@dataclass(frozen=True)
class Listing:
    """The readable, long enough videos of a folder or of splits of a data set, in order, and why others are left out.

    classes: names that the files' labels number. notes: how the split was made.
    """

    folder: Path
    files: tuple[MediaFile, ...]
    num_frames: tuple[int, ...]
    skipped: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    reader: VideoReader = field(default_factory=ContainerReader)
    notes: tuple[str, ...] = ()

    def name(self, file: MediaFile) -> str:
        """Path below the folder without suffix: what pairs a generated video with a real one."""
        return file.path.relative_to(self.folder).with_suffix("").as_posix()

    def read(self, window: Window, num_frames: int, stride: int, size: tuple[int, int] | None) -> Tensor:
        """See `read_window`."""
        return read_window(window, num_frames, stride, size, self.reader)


def list_videos(folder: Path | str, num_frames: int, stride: int = 1) -> Listing:
    """The videos below a folder. Raises UserError where no video is long enough, or there is none."""
    folder = Path(folder).expanduser()
    files, classes = find_videos(folder)
    return long_enough(Listing(folder, (), (), classes=tuple(classes)), files, clip_span(num_frames, stride))


def list_samples(folder: Path | str, num_frames: int) -> Listing:
    """Generated videos below a folder. Raises UserError where one is too short: a comparison has one length."""
    listing = list_videos(folder, num_frames)
    if short := [note for note in listing.skipped if note.endswith("are needed")]:
        raise UserError(
            f"{len(short)} of the generated videos of {str(listing.folder)!r} are too short; {short[0]}. Clips of one "
            "comparison have the same length: make them again, or move these away."
        )
    return listing


def long_enough(listing: Listing, files: Iterable[MediaFile], span: int) -> Listing:
    """A listing with those files that hold `span` frames, counted, and why others do not.

    Raises UserError where none does.
    """
    found, counts, skipped = [], [], list(listing.skipped)
    for file in files:
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
        why = f": {len(skipped)} left out; {skipped[0]}" if skipped else ""
        raise UserError(f"No video of {str(listing.folder)!r} gives a clip{why}.")
    return replace(listing, files=tuple(found), num_frames=tuple(counts), skipped=tuple(skipped))


def frames_of(file: MediaFile, reader: VideoReader) -> int:
    """Frames of an entry: those of a container are counted, since headers promise what is not there."""
    return count_frames(file.path) if isinstance(reader, ContainerReader) else reader.num_frames(file)


def windows(listing: Listing, rule: WindowRule, span: int, total: int | None = None, seed: int = 0) -> list[Window]:
    """The clips to measure, at most `total`; videos are gone through again only for random windows.

    Random windows take the videos in random order, each once before any is taken again. Of other windows the wanted
    number is spread evenly over all, since videos are sorted by class.
    """
    if rule.place == "random":
        return _random_windows(listing, rule, span, total or len(listing.files), seed)
    found = [
        Window(file, start, share)
        for file, count in zip(listing.files, listing.num_frames, strict=True)
        for start in _starts(rule, count - span)
        for share in spread(rule.crops)
    ]
    return found if total is None else [found[i] for i in spread_numbers(len(found), total)]


def _starts(rule: WindowRule, last: int) -> Sequence[int]:
    if rule.place == "first":
        return [0]
    if rule.place == "all":
        return range(last + 1)
    return [round(share * last) for share in spread(rule.count)]


def spread(count: int) -> list[float]:
    """Evenly spaced numbers from 0 to 1; one alone lies in the middle."""
    return [0.5] if count == 1 else [i / (count - 1) for i in range(count)]


def _random_windows(listing: Listing, rule: WindowRule, span: int, total: int, seed: int) -> list[Window]:
    generator = torch.Generator().manual_seed(seed)
    shares, found = spread(rule.crops or 1), []
    while len(found) < total:
        for number in torch.randperm(len(listing.files), generator=generator).tolist():
            start, share = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
            room = listing.num_frames[number] - span
            place = share if rule.crops == 0 else shares[int(share * len(shares))]
            found.append(Window(listing.files[number], int(start * (room + 1)), place))
    return found[:total]


def read_window(
    window: Window, num_frames: int, stride: int, size: tuple[int, int] | None, reader: VideoReader | None = None
) -> UInt8[Tensor, "t h w 3"]:
    """Frames of one clip, cropped to the aspect ratio of `size` and resized with an anti-aliasing filter.

    Without a size frames stay as they are; without a reader the entry is a video file. Raises UserError where fewer
    frames decode than the file promised.
    """
    if reader is None or isinstance(reader, ContainerReader):
        frames = read_video(window.file.path, start=window.start, max_frames=num_frames, stride=stride).frames
    else:
        frames, _ = reader.read(window.file, window.start, num_frames, stride, None)
    if len(frames) < num_frames:
        raise UserError(f"{len(frames)} frames from {window.start} on, {num_frames} are needed")
    return torch.from_numpy(frames if size is None else fit_part(frames, *size, window.share))


def fit_part(
    frames: UInt8[np.ndarray, "t _h _w 3"], height: int, width: int, share: float
) -> UInt8[np.ndarray, "t height width 3"]:
    """The largest part of the wanted aspect ratio, at `share` of the room there is, resized."""
    _, h, w, _ = frames.shape
    crop_h, crop_w = min(h, max(1, round(w * height / width))), min(w, max(1, round(h * width / height)))
    top, left = round(share * (h - crop_h)), round(share * (w - crop_w))
    return fit_frames(frames[:, top : top + crop_h, left : left + crop_w], height, width)
