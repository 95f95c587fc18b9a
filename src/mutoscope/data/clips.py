"""A folder of videos as fixed-length clips for training."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import UInt8
from torch.utils.data import Dataset

from mutoscope.data.folder import VideoFile, clip_span, clip_starts, find_videos
from mutoscope.data.video_io import SEEK_AFTER, FrameIndex, FrameStream, index_frames, iter_frames, probe
from mutoscope.errors import UserError

MAX_CACHED_INDICES = 256
DAMAGED, BROKEN = 1, 2


@dataclass(frozen=True)
class FileProblem:
    """A file that is not used, or not to its end, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class ClipVideo:
    """A usable video and how many frames its header (or, without a count there, its packets) promises."""

    file: VideoFile
    num_frames: int


class ClipDataset(Dataset):
    """Clips of `num_frames` frames, `frame_stride` apart, of all videos below a folder (see `folder.py` for classes).

    Item i is a dict: "video" uint8 (t, h, w, 3), "label" int (-1 without classes), "caption" str, "path" str and
    "start", the clip's first frame in the file. Clips start every `clip_step` frames (default: the length of a clip, so
    that they do not overlap). Frames are scaled to cover height x width, then cropped to it.

    random_start moves a clip by up to clip_step frames, random_crop moves the crop, random_flip mirrors half of the
    clips. All draws are a function of (seed, epoch, i) alone, so items do not depend on the number of loader workers.
    short: what becomes of videos shorter than a clip: "skip" (they are listed in `.skipped`) or "loop", which repeats
    them from their beginning.

    Only headers are read at construction. Files that cannot be used are reported by one warning each, listed in
    `.broken` and skipped; one that fails later is replaced by a clip of another file, and one with a damaged tail gives
    clips from before the damage. Raises UserError where nothing readable is left.
    """

    def __init__(
        self,
        folder: str | Path,
        num_frames: int,
        height: int,
        width: int,
        frame_stride: int = 1,
        *,
        clip_step: int | None = None,
        random_start: bool = False,
        random_crop: bool = False,
        random_flip: bool = False,
        max_interval: int = 1,
        short: Literal["skip", "loop"] = "skip",
        seed: int = 0,
    ):
        if min(num_frames, height, width, frame_stride, max_interval, clip_step or 1) < 1 or seed < 0:
            raise UserError(
                "num_frames, height, width, frame_stride, clip_step and max_interval must be at least 1 and seed at "
                "least 0"
            )
        if short not in ("skip", "loop"):
            raise UserError(f'short must be "skip" or "loop"; got {short!r}')
        self.folder, self.num_frames, self.height, self.width = Path(folder), num_frames, height, width
        self.frame_stride, self.span = frame_stride, clip_span(num_frames, frame_stride)
        self.clip_step = clip_step or self.span
        self.random_start, self.random_crop, self.random_flip = random_start, random_crop, random_flip
        self.max_interval, self.short, self.seed = max_interval, short, seed
        self.skipped: list[FileProblem] = []
        self._broken_at_start: list[FileProblem] = []
        self._indices: dict[int, FrameIndex] = {}
        self._reasons: dict[int, str] = {}
        files, self.classes = find_videos(folder)
        self.videos = [video for file in files if (video := self._examine(file)) is not None]
        self._check_any_left(len(files))
        starts = [len(self._starts(video)) for video in self.videos]
        self._first_item = np.cumsum([0, *starts])  # item number of each video's first clip
        # Shared with loader workers: a file is reported once, and a new epoch reaches workers that stay alive.
        self._problems = _shared(torch.zeros(len(self.videos), dtype=torch.uint8))
        self._epoch = _shared(torch.zeros((), dtype=torch.int64))

    def _examine(self, file: VideoFile) -> ClipVideo | None:
        try:
            count = probe(file.path).num_frames or count_frames(file.path)
        except UserError as error:
            self._broken_at_start.append(FileProblem(str(file.path), str(error)))
            warnings.warn(f"skipped: {error}", stacklevel=3)
            return None
        if count < self.span and self.short == "skip":
            self.skipped.append(FileProblem(str(file.path), f"{count} frames, a clip needs {self.span}"))
            return None
        return ClipVideo(file, count)

    def _check_any_left(self, found: int) -> None:
        too_short = f"{len(self.skipped)} of {found} videos in {self.folder} are shorter than {self.span} frames"
        if not self.videos:
            broken = f"{len(self._broken_at_start)} cannot be read"
            first = (self._broken_at_start + self.skipped)[0]
            raise UserError(
                f"nothing readable is left in {self.folder}: {broken}, {too_short}; the first is {first.path}: "
                f"{first.reason}"
            )
        if self.skipped:
            warnings.warn(f'{too_short} and are skipped; short="loop" repeats them', stacklevel=3)

    @property
    def broken(self) -> list[FileProblem]:
        """Files that give no clip at all: found so at construction, or (by any worker) while loading."""
        return self._broken_at_start + self._listed(BROKEN)

    @property
    def damaged(self) -> list[FileProblem]:
        """Files found to hold fewer frames than promised, of which the readable part is used."""
        return self._listed(DAMAGED)

    def _listed(self, kind: int) -> list[FileProblem]:
        numbers = (self._problems == kind).nonzero().flatten().tolist()
        default = "failed in a loader worker; see its warning"
        return [FileProblem(str(self.videos[n].file.path), self._reasons.get(n, default)) for n in numbers]

    def set_epoch(self, epoch: int) -> None:
        """Make other random draws. Call before iterating over a loader; workers that are kept alive see it too."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return int(self._first_item[-1])

    def __getitem__(self, item: int) -> dict[str, Any]:
        if not -len(self) <= item < len(self):
            raise IndexError(f"item {item} of {len(self)}")
        item %= len(self)
        number = int(np.searchsorted(self._first_item, item, side="right")) - 1
        start = self._starts(self.videos[number])[item - int(self._first_item[number])]
        generator = item_generator(self.seed, int(self._epoch), item)
        try:
            return self._clip(number, start, generator)
        except UserError as error:
            self._report(number, BROKEN, f"{error}; its clips are replaced by others")
        return self._replacement(number, generator)

    def _replacement(self, failed: int, generator: torch.Generator) -> dict[str, Any]:
        """A clip of another file, chosen by this item's own draws, so that it does not depend on what failed before."""
        for number in torch.randperm(len(self.videos), generator=generator).tolist():
            if number == failed:
                continue
            starts = self._starts(self.videos[number])
            start = starts[int(torch.randint(len(starts), (), generator=generator))]
            try:
                return self._clip(number, start, generator)
            except UserError as error:
                self._report(number, BROKEN, f"{error}; its clips are replaced by others")
        raise UserError(f"nothing readable is left in {self.folder}: all {len(self.videos)} videos fail; see warnings")

    def _starts(self, video: ClipVideo) -> Sequence[int]:
        return clip_starts(video.num_frames, self.span, self.clip_step) or range(1)  # one clip of a video to loop

    def _clip(self, number: int, start: int, generator: torch.Generator) -> dict[str, Any]:
        video, stride = self.videos[number], self.frame_stride
        interval = 1
        if self.max_interval > 1:
            interval, start = self._interval(video.num_frames, generator)
            stride *= interval
        elif self.random_start:
            last = max(0, video.num_frames - self.span)
            start = min(last, start + int(torch.randint(self.clip_step, (), generator=generator)))
        frames, start = self._read(number, start, stride)
        frames = self._crop(frames, generator)  # (t, h, w, 3)
        if self.random_flip and torch.rand((), generator=generator) < 0.5:
            frames = frames[:, :, ::-1]
        return {
            "video": torch.from_numpy(np.ascontiguousarray(frames)),
            "label": video.file.label,
            "caption": video.file.caption,
            "path": str(video.file.path),
            "start": start,
            "interval": interval,
        }

    def _interval(self, available: int, generator: torch.Generator) -> tuple[int, int]:
        """How many strides the frames lie apart, up to `max_interval` or what the video allows, and the first frame."""
        steps = max(self.num_frames - 1, 1) * self.frame_stride
        longest = max(1, min(self.max_interval, (available - 1) // steps))
        interval = 1 + int(torch.randint(longest, (), generator=generator))
        room = max(0, available - clip_span(self.num_frames, self.frame_stride * interval))
        return interval, int(torch.randint(room + 1, (), generator=generator))

    def _read(self, number: int, start: int, stride: int) -> tuple[UInt8[np.ndarray, "t h w 3"], int]:
        """Frames of a clip and where they start: earlier than asked for where the file ends sooner than promised."""
        frames, available = self._decode(number, start, stride)
        if len(frames) == self.num_frames:
            return frames, start
        span = clip_span(self.num_frames, stride)
        if available < self.videos[number].num_frames and available >= span:
            reason = (
                f"{self.videos[number].file.path} ends after {available} of {self.videos[number].num_frames} frames"
            )
            self._report(number, DAMAGED, f"{reason}; clips are taken from these")
            start = available - span
            frames, _ = self._decode(number, start, stride)
        elif self.short == "loop" and available:
            frames, _ = self._decode(number, 0, 1, max_frames=span)
            frames = frames[np.arange(self.num_frames) * stride % len(frames)]
            start = 0
        if len(frames) < self.num_frames:
            path = self.videos[number].file.path
            raise UserError(f"{path} gives {available} frames of the {span} that a clip needs")
        return frames, start

    def _decode(self, number: int, start: int, stride: int, max_frames: int | None = None) -> tuple[np.ndarray, int]:
        """Frames from `start` on, at most a clip, and how many frames the file was seen to hold."""
        reader = FrameStream(
            self.videos[number].file.path,
            start=start,
            max_frames=max_frames or self.num_frames,
            stride=stride,
            size=(self.height, self.width),
            keep_aspect=True,
            index=self._index(number) if start >= SEEK_AFTER else None,
        )
        with reader:
            try:
                frames = list(reader)
            except UserError:
                if not reader.frames_decoded:
                    raise
                frames = []  # the file ends before `start`
        stacked = np.stack(frames) if frames else np.empty((0, self.height, self.width, 3), np.uint8)
        return stacked, reader.frames_decoded

    def _index(self, number: int) -> FrameIndex:
        if number not in self._indices:
            if len(self._indices) >= MAX_CACHED_INDICES:
                self._indices.pop(next(iter(self._indices)))
            self._indices[number] = index_frames(self.videos[number].file.path)
        return self._indices[number]

    def _crop(self, frames: np.ndarray, generator: torch.Generator) -> np.ndarray:
        room_y, room_x = frames.shape[1] - self.height, frames.shape[2] - self.width
        top, left = room_y // 2, room_x // 2
        if self.random_crop:
            top, left = (int(torch.randint(room + 1, (), generator=generator)) for room in (room_y, room_x))
        return frames[:, top : top + self.height, left : left + self.width]

    def _report(self, number: int, kind: int, reason: str) -> None:
        if self._problems[number] >= kind:
            return
        self._problems[number] = kind
        self._reasons[number] = reason
        warnings.warn(reason, stacklevel=2)


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


def item_generator(seed: int, epoch: int, item: int) -> torch.Generator:
    """A generator whose draws depend on these three numbers alone."""
    state = np.random.SeedSequence([seed, epoch, item]).generate_state(2)
    return torch.Generator().manual_seed(int(state[0]) << 31 | int(state[1]) >> 1)


def _shared(tensor: torch.Tensor) -> torch.Tensor:
    """In memory that loader workers share, where the machine offers any."""
    try:
        return tensor.share_memory_()
    except (RuntimeError, OSError):
        return tensor
