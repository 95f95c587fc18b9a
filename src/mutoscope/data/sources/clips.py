"""Clips of a fixed length from a folder of videos, or from a dataset in its own layout."""

import copy
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypedDict

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch.utils.data import Dataset

from mutoscope.data.base import (
    EPISODE,
    INTERVAL,
    LABEL,
    Field,
    Item,
)
from mutoscope.data.fit import offset
from mutoscope.data.sources.datasets.listing import Listing
from mutoscope.data.sources.folder import FileProblem, MediaFile, clip_span, clip_starts
from mutoscope.data.sources.folder_recordings import list_folder
from mutoscope.data.sources.lerobot import list_lerobot
from mutoscope.data.sources.lerobot_tables import is_lerobot
from mutoscope.data.sources.windows import STEADY, TimeVariation, Window, window_generator
from mutoscope.errors import UserError

DAMAGED, SHORT, BROKEN = 1, 2, 3
WindowChoice = Literal["even", "random"]
Axes = Literal["sum", "mean"]


class FramesRead(NamedTuple):
    """Frames of a clip, and where in their video they are.

    start: number of the first one, earlier than requested where the file ends sooner. period: frames after which a
    video shorter than the clip was repeated, else None.
    """

    pixels: UInt8[np.ndarray, "t h w 3"]
    start: int
    period: int | None = None


class TooShort(UserError):
    """A video with fewer frames than a clip needs."""


class ClipOptions(TypedDict, total=False):
    """Options of `ClipDataset`, which documents them."""

    clip_step: int | None
    windows: int | None
    window_choice: WindowChoice
    action_axes: Axes
    crops: int
    mirrored: bool
    random_start: bool
    random_crop: bool
    random_flip: bool
    max_interval: int
    variation: TimeVariation
    short: Literal["skip", "loop"]
    seed: int


class ClipDataset(Dataset):
    """Clips of `num_frames` frames, `frame_stride` apart, of all videos of a folder (see `folder_recordings.py` for
    classes, captions and actions), of the episodes of a LeRobot dataset, or of a split of a dataset (see
    `datasets/catalog.py`). No clip crosses the border of a video or an episode.

    Item i is a dict: "video" uint8 (t, h, w, 3), "label" int (-1 without classes), "caption" str, "path" str and
    "start", the clip's first frame in the file, and "episode", the number of its video; a dataset may add more, such as
    "actions" (`fields` lists them). Clips start every `clip_step` frames (default: the length of a clip, so that they
    do not overlap), or, with `windows`, at that many positions, whatever a video's length: at equal distances from the
    first possible one to the last (one: at the beginning), or with window_choice "random" at fixed positions drawn from
    (seed, video). Frames are scaled to cover height x width, then cropped to it: in the middle, or with `crops` at that
    many positions at equal distances along the longer side. `mirrored` adds every clip a second time, mirrored.

    Where the recordings have actions, so has an item: "actions" float32 (t, a), unscaled, row j being what leads from
    frame j of the clip to frame j + 1: the rows in between are joined, buttons by their maximum, axes by their sum or
    mean (`action_axes`). `.actions` names and scales them.

    random_start moves a clip by up to clip_step frames, or with `windows` anywhere; random_crop moves the crop,
    random_flip mirrors half of the clips. max_interval draws how many strides the frames of a clip are apart, from 1 to
    this or as far as the video allows, and its first frame anywhere; "interval" in the item is that number. All draws
    are a function of (seed, epoch, i) only, so items do not depend on the number of loader workers.

    variation.intervals: every window has one of these frame intervals in place of `max_interval`'s, and keeps its
    start; one that does not fit before the end of the video is replaced by the largest one that does, or by 1.
    variation.max_gap: in `gap_share` of the windows, 1 to max_gap frames are omitted after the first one, as far as the
    video has earlier frames: the first frame moves back, the others stay. "history_only" bool (t,) then marks frame 1,
    which cannot be predicted from the frame before the gap, and the action across the gap, row 0, is NaN. Both are
    functions of (seed, window), the same in every epoch, so that a token cache holds them.

    short: what happens to videos shorter than a clip: "skip" (they are listed in `.skipped`) or "loop", which repeats
    them from their beginning.

    Only headers are read at construction; with `windows` not even these are, and broken or short videos show when they
    are loaded. Files that cannot be used are reported by one warning each, listed in `.broken` and skipped; a file that
    fails later is replaced by a clip of another file, and a file with a damaged end gives clips from before the damage.
    `.missing` lists files that the dataset's own lists name and the disk lacks. Raises UserError where nothing
    readable is left.
    """

    def __init__(
        self,
        folder: str | Path | Listing,
        num_frames: int,
        height: int,
        width: int,
        frame_stride: int = 1,
        *,
        clip_step: int | None = None,
        windows: int | None = None,
        window_choice: WindowChoice = "even",
        action_axes: Axes = "sum",
        crops: int = 1,
        mirrored: bool = False,
        random_start: bool = False,
        random_crop: bool = False,
        random_flip: bool = False,
        max_interval: int = 1,
        variation: TimeVariation = STEADY,
        short: Literal["skip", "loop"] = "skip",
        seed: int = 0,
    ):
        counts = (num_frames, height, width, frame_stride, max_interval, crops, clip_step or 1)
        if min(counts) < 1 or (windows is not None and windows < 1) or seed < 0:
            raise UserError(
                "num_frames, height, width, frame_stride, max_interval, clip_step, windows and crops must be at least "
                "1 and seed at least 0"
            )
        if short not in ("skip", "loop"):
            raise UserError(f'short must be "skip" or "loop"; got {short!r}')
        if windows is not None and clip_step is not None:
            raise UserError("windows and clip_step both say where clips start; omit one of them")
        variation.check(num_frames, frame_stride, max_interval)
        listing = folder if isinstance(folder, Listing) else list_clips(Path(folder))
        if listing.actions is not None and (mirrored or random_flip):
            raise UserError("clips with actions must not be mirrored: actions point the other way in a mirror")
        self.folder, self.classes, self.missing = listing.folder, listing.classes, listing.missing
        self.num_frames, self.height, self.width = num_frames, height, width
        self.frame_stride, self.span = frame_stride, clip_span(num_frames, frame_stride)
        self.windows, self.clip_step = windows, clip_step or self.span
        self.crops, self.mirrored, self.variants = crops, mirrored, crops * (2 if mirrored else 1)
        self.random_start, self.random_crop, self.random_flip = random_start, random_crop, random_flip
        self.max_interval, self.short, self.seed, self.reader = max_interval, short, seed, listing.reader
        self.variation = variation
        self._skipped_at_start: list[FileProblem] = []
        self._broken_at_start: list[FileProblem] = []
        self._reasons: dict[int, str] = {}
        self._promised: dict[int, int] = {}  # frames of each video, as far as they were read
        self.window_choice: WindowChoice = window_choice
        self.actions = listing.action_spec(frame_stride, action_axes)
        self.videos = list(listing.files) if windows and not listing.lengths_known else self._usable(listing.files)
        per_video = [windows or len(self._starts(number)) for number in range(len(self.videos))]
        self._first_item = np.cumsum([0, *per_video]) * self.variants  # item number of each video's first clip
        # Shared with loader workers: a file is reported once, and a new epoch reaches workers that stay alive.
        self._problems = _shared(torch.zeros(len(self.videos), dtype=torch.uint8))
        self._epoch = _shared(torch.zeros((), dtype=torch.int64))

        self.frame_fields = listing.frame_fields
        self.fields = self._fields(listing.frame_fields)

    def _fields(self, frame_fields: Mapping[str, int]) -> dict[str, Field]:
        """The fields of an item beside its clip; `frame_fields`: numbers per frame of further fields."""
        varied = {"interval": INTERVAL} if self.max_interval > 1 or self.variation.intervals else {}
        if self.variation.max_gap:
            varied["history_only"] = Field("bool", (self.num_frames,), per_frame=True)
        frames = {
            name: Field("float32", (self.num_frames, size), per_frame=True) for name, size in frame_fields.items()
        }
        return {"label": LABEL, "episode": EPISODE} | varied | frames

    @property
    def class_names(self) -> list[str]:
        return self.classes

    @property
    def episodes(self) -> Int[np.ndarray, " n"]:
        """The video of every item, by its number; a file that fails while loading is not known yet."""
        return np.repeat(np.arange(len(self.videos)), np.diff(self._first_item))

    @property
    def is_plain(self) -> bool:
        """Whether all clips have the interval 1 and no gap."""
        return self.max_interval == 1 and not self.variation

    def plain(self) -> "ClipDataset":
        """The same windows at interval 1 and without gaps, with the same fields."""
        found = copy.copy(self)
        found.max_interval, found.variation = 1, STEADY
        return found

    # ----------------------------------------------------------------------------------------------- usable files

    def _usable(self, files: Sequence[MediaFile]) -> list[MediaFile]:
        """Files whose headers promise a clip; the others are listed."""
        usable: list[MediaFile] = []
        for file in files:
            count = self._examine(file)
            if count is not None:
                self._promised[len(usable)] = count
                usable.append(file)
        self._check_any_left(len(files), len(usable))
        return usable

    def _examine(self, file: MediaFile) -> int | None:
        try:
            count = self.reader.num_frames(file)
        except UserError as error:
            self._broken_at_start.append(FileProblem(file.name, str(error)))
            warnings.warn(f"skipped: {error}", stacklevel=4)
            return None
        if count < self.span and self.short == "skip":
            self._skipped_at_start.append(FileProblem(file.name, self._too_short(count)))
            return None
        return count

    def _too_short(self, count: int) -> str:
        return f"{count} frames, a clip needs {self.span}"

    def _check_any_left(self, found: int, usable: int) -> None:
        skipped = self._skipped_at_start
        too_short = f"{len(skipped)} of {found} videos in {self.folder} are shorter than {self.span} frames"
        if not usable:
            broken = f"{len(self._broken_at_start)} cannot be read"
            first = (self._broken_at_start + skipped)[0]
            raise UserError(
                f"nothing readable is left in {self.folder}: {broken}, {too_short}; the first is {first.path}: "
                f"{first.reason}"
            )
        if skipped:
            warnings.warn(f'{too_short} and are skipped; short="loop" repeats them', stacklevel=4)

    @property
    def broken(self) -> list[FileProblem]:
        """Files that give no clip at all: found so at construction, or (by any worker) while loading."""
        return self._broken_at_start + self._listed(BROKEN)

    @property
    def skipped(self) -> list[FileProblem]:
        """Files that are too short for a clip: found so at construction, or (by any worker) while loading."""
        return self._skipped_at_start + self._listed(SHORT)

    @property
    def damaged(self) -> list[FileProblem]:
        """Files found to hold fewer frames than promised, of which the readable part is used."""
        return self._listed(DAMAGED)

    def _listed(self, kind: int) -> list[FileProblem]:
        numbers = (self._problems == kind).nonzero().flatten().tolist()
        default = "failed in a loader worker; see its warning"
        return [FileProblem(self.videos[n].name, self._reasons.get(n, default)) for n in numbers]

    def _report(self, number: int, kind: int, reason: str) -> None:
        if self._problems[number] >= kind:
            return
        self._problems[number] = kind
        self._reasons[number] = reason
        warnings.warn(reason, stacklevel=2)

    # ------------------------------------------------------------------------------------------------------- items

    def set_epoch(self, epoch: int) -> None:
        """Make other random draws. Call before iterating over a loader; workers that are kept alive see it too."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return int(self._first_item[-1])

    def __getitem__(self, item: int) -> Item:
        if not -len(self) <= item < len(self):
            raise IndexError(f"item {item} of {len(self)}")
        item %= len(self)
        return self.item(item, item_generator(self.seed, int(self._epoch), item))

    def item(self, item: int, generator: torch.Generator) -> Item:
        """Item `item` with these random draws."""
        number = int(np.searchsorted(self._first_item, item, side="right")) - 1
        window, variant = divmod(item - int(self._first_item[number]), self.variants)
        clip = self._tried(number, window, variant, generator)
        return clip if clip is not None else self._replacement(number, variant, generator)

    def _tried(self, number: int, window: int, variant: int, generator: torch.Generator) -> Item | None:
        """The clip, or None after its file is reported."""
        try:
            return self._clip(number, window, variant, generator)
        except TooShort as error:
            self._report(number, SHORT, f"skipped: {error}; its clips are replaced by others")
        except UserError as error:
            self._report(number, BROKEN, f"{error}; its clips are replaced by others")
        return None

    def _replacement(self, failed: int, variant: int, generator: torch.Generator) -> Item:
        """A clip of another file, chosen by this item's own draws, so that it does not depend on earlier failures."""
        for number in torch.randperm(len(self.videos), generator=generator).tolist():
            if number == failed:
                continue
            windows = self.windows or len(self._starts(number))
            window = int(torch.randint(windows, (), generator=generator))
            if (clip := self._tried(number, window, variant, generator)) is not None:
                return clip
        raise UserError(f"nothing readable is left in {self.folder}: all {len(self.videos)} videos fail; see warnings")

    def _num_frames(self, number: int) -> int:
        """Frames that a video promises. Raises UserError where it cannot be read."""
        if number not in self._promised:
            self._promised[number] = self.reader.num_frames(self.videos[number])
        return self._promised[number]

    def _starts(self, number: int) -> Sequence[int]:
        """First frames of a video's clips. Raises UserError where the video cannot be read or is too short."""
        count = self._num_frames(number)
        last = count - self.span
        if last < 0 and self.short == "skip":
            raise TooShort(f"{self.videos[number].name} has {self._too_short(count)}")
        if self.windows is not None and self.window_choice == "random":
            draws = torch.randint(max(0, last) + 1, (self.windows,), generator=item_generator(self.seed, 0, number))
            return sorted(draws.tolist())
        if self.windows is not None:
            return [max(0, last) * window // max(1, self.windows - 1) for window in range(self.windows)]
        return clip_starts(count, self.span, self.clip_step) or range(1)  # one clip of a video to loop

    def _clip(self, number: int, window: int, variant: int, generator: torch.Generator) -> Item:
        start, interval, gap = self._window(number, window, generator)
        stride = self.frame_stride * interval
        frames, start, period = self._read(number, start, stride)
        gap = min(gap, start // stride)  # the start of a damaged video has moved to earlier frames
        first = start - gap * stride
        if gap:
            frames = np.concatenate([self._frame(number, first), frames[1:]])
        crop, mirror = divmod(variant, 2) if self.mirrored else (variant, 0)
        frames = self._crop(frames, crop, generator)  # (t, h, w, 3)
        if self.random_flip and torch.rand((), generator=generator) < 0.5:
            mirror = not mirror
        video = self.videos[number]
        return {
            "video": torch.from_numpy(np.ascontiguousarray(frames[:, :, ::-1] if mirror else frames)),
            "label": video.label,
            "caption": video.caption,
            "path": video.name,
            "start": first,
            "interval": interval,
            "episode": number,
        } | self._frame_rows(number, start, stride, period, first)

    def _frame_rows(
        self, number: int, start: int, stride: int, period: int | None, first: int
    ) -> dict[str, torch.Tensor]:
        """The fields of one row per frame of the clip: actions join the rows up to the next frame.

        first: the clip's first frame, before `start` where a gap follows it.
        """
        marks: dict[str, torch.Tensor] = {}
        if "history_only" in self.fields:
            marks["history_only"] = (torch.arange(self.num_frames) == 1) & (first < start)
        if not self.frame_fields:
            return marks
        steps = start + np.arange(self.num_frames * stride)  # frames of the video from the first one of the clip on
        steps = steps[steps < max(self._num_frames(number), start + 1)] if period is None else steps % period
        rows = self.reader.extras(self.videos[number], steps.tolist())
        found = {name: values[::stride] for name, values in rows.items()}
        if self.actions is not None and "actions" in rows:
            actions = rows["actions"].copy()
            if period is not None:
                actions[steps == period - 1] = np.nan  # no action leads from the last frame back to the first
            found["actions"] = self.actions.reduced(actions, stride)
        if first < start:
            found = self._after_gap(found, number, first)
        return marks | {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in found.items()}

    def _after_gap(self, rows: dict[str, np.ndarray], number: int, first: int) -> dict[str, np.ndarray]:
        """Rows of a clip whose first frame is number `first` of its video; the action across the gap is unknown."""
        before = self.reader.extras(self.videos[number], [first])
        found = {name: np.concatenate([before[name], values[1:]]) for name, values in rows.items()}
        if "actions" in found:
            found["actions"][0] = np.nan
        return found

    def _window(self, number: int, window: int, generator: torch.Generator) -> Window:
        """Where the frames of a window are in video `number`."""
        start, available, interval = self._starts(number)[window], self._num_frames(number), 1
        if self.max_interval > 1:
            interval, start = self._interval(available, generator)
        elif self.random_start:
            start = self._moved(start, available - self.span, generator)
        rng = window_generator(self.seed, number, window)
        return self.variation.draw(Window(start, interval), self.num_frames, self.frame_stride, available, rng)

    def _moved(self, start: int, last: int, generator: torch.Generator) -> int:
        if self.windows is not None:
            return int(torch.randint(max(0, last) + 1, (), generator=generator))
        return min(max(0, last), start + int(torch.randint(self.clip_step, (), generator=generator)))

    def _interval(self, available: int, generator: torch.Generator) -> tuple[int, int]:
        """How many strides the frames are apart, up to `max_interval` or as the video allows, and the first frame."""
        steps = max(self.num_frames - 1, 1) * self.frame_stride
        longest = max(1, min(self.max_interval, (available - 1) // steps))
        interval = 1 + int(torch.randint(longest, (), generator=generator))
        room = max(0, available - clip_span(self.num_frames, self.frame_stride * interval))
        return interval, int(torch.randint(room + 1, (), generator=generator))

    def _read(self, number: int, start: int, stride: int) -> FramesRead:
        file, promised = self.videos[number], self._num_frames(number)
        size, span = (self.height, self.width), clip_span(self.num_frames, stride)
        steps = np.arange(self.num_frames) * stride
        frames, available = self.reader.read(file, start, self.num_frames, stride, size)
        if len(frames) == self.num_frames:
            return FramesRead(frames, start)
        if span <= available < promised:
            reason = f"{file.name} ends after {available} of {promised} frames"
            self._report(number, DAMAGED, f"{reason}; clips are taken from these")
            start = available - span
            frames, _ = self.reader.read(file, start, self.num_frames, stride, size)
        elif self.short == "loop" and available:
            whole, _ = self.reader.read(file, 0, span, 1, size)
            return FramesRead(whole[steps % len(whole)], 0, len(whole))
        if len(frames) < self.num_frames:
            raise UserError(f"{file.name} gives {available} frames of the {span} that a clip needs")
        return FramesRead(frames, start)

    def _frame(self, number: int, index: int) -> UInt8[np.ndarray, "1 h w 3"]:
        """One frame of a video, scaled as those of a clip. Raises UserError where it cannot be read."""
        frames, _ = self.reader.read(self.videos[number], index, 1, 1, (self.height, self.width))
        if not len(frames):
            raise UserError(f"{self.videos[number].name} gives no frame {index}")
        return frames

    def _crop(self, frames: np.ndarray, crop: int, generator: torch.Generator) -> np.ndarray:
        rooms = frames.shape[1] - self.height, frames.shape[2] - self.width
        share = 0.5 if self.crops == 1 else crop / (self.crops - 1)
        top, left = (offset(room, share) for room in rooms)
        if self.random_crop:
            top, left = (int(torch.randint(room + 1, (), generator=generator)) for room in rooms)
        return frames[:, top : top + self.height, left : left + self.width]


def list_clips(path: Path) -> Listing:
    """The episodes of a LeRobot dataset, or the videos of any other folder. Raises UserError where there are none."""
    return (list_lerobot(path) if is_lerobot(path) else list_folder(path)).checked()


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
