"""Which clips of a folder of videos are measured: where they start, and what part of the frame they show.

Papers differ more in this than in the network: the first 16 frames, a random window, k windows evenly spread over the
video, or every window there is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from mutoscope.data.folder import clip_span, find_videos
from mutoscope.data.readers import count_frames
from mutoscope.data.video_io import read_video
from mutoscope.errors import UserError
from mutoscope.generation.base import fit_frames

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
    """One clip: a file, its first frame, and where the crop lies in the room that the frame's longer side leaves."""

    path: Path
    start: int = 0
    share: float = 0.5


@dataclass(frozen=True)
class Listing:
    """The readable, long enough videos of a folder in order of path, and why others are left out."""

    folder: Path
    paths: tuple[Path, ...]
    num_frames: tuple[int, ...]
    skipped: tuple[str, ...] = ()

    def name(self, path: Path) -> str:
        """Path below the folder without suffix: what pairs a generated video with a real one."""
        return path.relative_to(self.folder).with_suffix("").as_posix()


def list_videos(folder: Path | str, num_frames: int, stride: int = 1) -> Listing:
    """Count the frames of every video. Raises UserError where no video is long enough, or there is none."""
    folder = Path(folder).expanduser()
    span, paths, counts, skipped = clip_span(num_frames, stride), [], [], []
    for file in find_videos(folder)[0]:
        try:
            count = count_frames(file.path)
        except UserError as error:
            skipped.append(f"{file.path.name}: {error}")
            continue
        if count < span:
            skipped.append(f"{file.path.name}: {count} frames, {span} are needed")
            continue
        paths.append(file.path)
        counts.append(count)
    if not paths:
        raise UserError(f"No video of {str(folder)!r} gives a clip: {len(skipped)} left out; {skipped[0]}.")
    return Listing(folder, tuple(paths), tuple(counts), tuple(skipped))


def windows(listing: Listing, rule: WindowRule, span: int, total: int | None = None, seed: int = 0) -> list[Window]:
    """The clips to measure, at most `total`; videos are gone through again only for random windows.

    Random windows take the videos in random order, each once before any is taken again.
    """
    if rule.place == "random":
        return _random_windows(listing, rule, span, total or len(listing.paths), seed)
    found = [
        Window(path, start, share)
        for path, count in zip(listing.paths, listing.num_frames, strict=True)
        for start in _starts(rule, count - span)
        for share in spread(rule.crops)
    ]
    return found[:total]


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
        for number in torch.randperm(len(listing.paths), generator=generator).tolist():
            start, share = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
            room = listing.num_frames[number] - span
            place = share if rule.crops == 0 else shares[int(share * len(shares))]
            found.append(Window(listing.paths[number], int(start * (room + 1)), place))
    return found[:total]


def read_window(window: Window, num_frames: int, stride: int, size: tuple[int, int] | None) -> UInt8[Tensor, "t h w 3"]:
    """Frames of one clip, cropped to the aspect ratio of `size` and resized with an anti-aliasing filter.

    Without a size frames stay as they are. Raises UserError where fewer frames decode than the file promised.
    """
    frames = read_video(window.path, start=window.start, max_frames=num_frames, stride=stride).frames
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
