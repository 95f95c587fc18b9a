"""Recordings as sources of training clips: their settings, and clips that are fixed or drawn anew each time."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

import numpy as np
from jaxtyping import Int

from mutoscope.checks import COUNT, check_fields
from mutoscope.data.base import (
    SETTINGS,
    ClipBatch,
    ClipSource,
    Item,
    PathData,
    StackedItems,
    check_interval,
    json_value,
    stacked_items,
)
from mutoscope.data.loader import stream_index
from mutoscope.data.sources.clips import Axes, ClipDataset, WindowChoice, item_generator
from mutoscope.data.sources.datasets.listing import Listing
from mutoscope.data.sources.folder_recordings import list_folder
from mutoscope.data.sources.lerobot import list_lerobot
from mutoscope.data.sources.survey import DataSurvey, survey_listing
from mutoscope.data.sources.windows import GAP_SHARE, TimeVariation
from mutoscope.errors import UserError


class RecordedClips(StackedItems):
    """The clips of recordings. plain_clips: those that have the interval 1 and no gap, for validation."""

    def __init__(self, dataset: ClipDataset, plain_clips: Int[np.ndarray, " m"] | None = None):
        super().__init__(dataset)
        self.clips, self.plain_dataset = dataset, dataset.plain()
        self.plain_clips = frozenset(() if plain_clips is None else plain_clips.tolist())

    def __getitem__(self, indices: Sequence[int]) -> ClipBatch:
        return stacked_items([self._clip(int(index)) for index in indices])

    def _clip(self, index: int) -> Item:
        return (self.plain_dataset if index in self.plain_clips else self.clips)[index]

    def plain(self, clips: Int[np.ndarray, " m"] | None = None) -> ClipSource[ClipBatch]:
        if self.clips.is_plain:
            return self
        return RecordedClips(self.clips, np.arange(len(self.clips)) if clips is None else clips)


class RandomClips(ClipSource[ClipBatch]):
    """A dataset with random draws as an endless source in which a clip looks different each time it is read.

    Clip p is the item at position p of the endless stream of permutations (see `StepSampler`), with draws from
    (seed, p): a batch depends on the indices only. items: those of the dataset that are used; None: all.
    """

    def __init__(self, dataset: ClipDataset, seed: int = 0, items: Int[np.ndarray, " n"] | None = None):
        self.dataset, self.seed = dataset, seed
        self.class_names, self.fields, self.actions = dataset.class_names, dataset.fields, dataset.actions
        self.items = np.arange(len(dataset)) if items is None else items
        self.episodes = dataset.episodes[self.items]
        self._used = frozenset(np.unique(self.episodes).tolist())

    def among(self, clips: Int[np.ndarray, " m"]) -> "RandomClips":
        return RandomClips(self.dataset, self.seed, self.items[clips])

    def __getitem__(self, indices: Sequence[int]) -> ClipBatch:
        return stacked_items([self._clip(int(position)) for position in indices])

    def _clip(self, position: int) -> Item:
        first = stream_index(position, len(self.items), self.seed)
        for step in range(len(self.items)):
            item = int(self.items[(first + step) % len(self.items)])
            clip = self.dataset.item(item, item_generator(self.seed, 0, position))
            if clip["episode"] in self._used:  # else a replacement of a broken file by a recording that is not used
                return clip
        raise UserError(f"None of {len(self._used)} chosen recordings can be read; see the warnings.")


@dataclass(frozen=True, kw_only=True)
class RecordedData(PathData):
    """Settings that every kind of recordings with windows and actions has."""

    frame_stride: int = 1
    """source frames per clip frame"""
    max_interval: int = 1
    """frames of a clip are 1 to this many strides apart, drawn for each clip"""
    intervals: tuple[int, ...] = ()
    """frames of a clip are one of these numbers of strides apart, drawn for each window (dynamic intervals); held-back
    clips have the interval 1"""
    max_gap: int = 0
    """windows with a gap omit 1 to this many frames after their first one, as a window that keeps the first frame of a
    long clip does (window_mode "anchored"); 0: no gaps"""
    gap_share: float = GAP_SHARE
    """share of the windows that have a gap, of those with earlier frames in their video"""
    windows: int | None = None
    """clips per video or episode; None: as many as fit one after the other"""
    clip_step: int | None = None
    """source frames from the start of a clip to the next; None: the length of a clip"""
    window_choice: WindowChoice = "even"
    """where the windows start: even: at equal distances over the video's time; random: fixed draws from the seed"""
    action_axes: Axes = "sum"
    """how the axes of the actions between two frames of a clip are joined; buttons count if pressed once"""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "intervals", tuple(self.intervals))  # JSON has no tuples
        check_fields(self, {"frame_stride": COUNT})
        check_interval(self.max_interval)
        self.variation().check(self.num_frames, self.frame_stride, self.max_interval)
        if self.windows is not None and self.windows < 1:
            raise UserError(f"windows must be at least 1, or omitted for all clips; found {self.windows}.")
        if self.clip_step is not None and (self.clip_step < 1 or self.windows is not None):
            raise UserError(f"clip_step must be at least 1, and is for clips without windows; found {self.clip_step}.")
        if self.window_choice == "random" and self.windows is None:
            raise UserError("window_choice random needs a number of windows: set windows too.")

    def variation(self) -> TimeVariation:
        """What is drawn for each window."""
        return TimeVariation(self.intervals, self.max_gap, self.gap_share)

    @abstractmethod
    def listing(self) -> Listing:
        """The videos or episodes. Raises UserError where there are none."""

    def open(self) -> ClipSource[ClipBatch]:
        clips = ClipDataset(
            self.listing().checked(),
            self.num_frames,
            self.height,
            self.width,
            self.frame_stride,
            clip_step=self.clip_step,
            windows=self.windows,
            window_choice=self.window_choice,
            action_axes=self.action_axes,
            max_interval=self.max_interval,
            variation=self.variation(),
            seed=self.seed,
        )
        return RecordedClips(clips)

    def class_names(self) -> Sequence[str]:
        return self.listing().classes

    def survey(self) -> DataSurvey:
        listing = self.listing()
        return survey_listing(listing, self.fps, listing.action_spec())

    def captions(self) -> Sequence[str]:
        return [file.caption for file in self.listing().files]

    def describe(self) -> dict[str, object]:
        """Settings at their defaults are omitted, as caches of earlier versions do."""
        listing = self.listing()
        described: dict[str, object] = {"kind": self.kind, "class_names": list(listing.classes)}
        changed = {name: json_value(getattr(self, name)) for name in DEFAULTS if not self._is_default(name)}
        actions = listing.action_spec(self.frame_stride, self.action_axes)
        return described | changed | ({} if actions is None else {"actions": actions.to_json()})

    def origin(self) -> dict[str, object]:
        """Later settings at their defaults are omitted, so that caches of earlier versions are recognised."""
        origin = super().origin()
        settings = cast(dict[str, object], origin[SETTINGS])
        kept = {name: value for name, value in settings.items() if name not in LATER or not self._is_default(name)}
        return origin | {SETTINGS: kept}

    def _is_default(self, name: str) -> bool:
        return getattr(self, name) == (DEFAULTS | LATER)[name]


# Of settings that a description omits where they have this value
DEFAULTS: dict[str, object] = {
    "frame_stride": 1,
    "max_interval": 1,
    "windows": None,
    "clip_step": None,
    "window_choice": "even",
    "action_axes": "sum",
    "intervals": (),
    "max_gap": 0,
    "gap_share": GAP_SHARE,
}
# Settings that token caches of earlier versions do not record
LATER: dict[str, object] = {"intervals": (), "max_gap": 0, "gap_share": GAP_SHARE, "tasks_as_classes": False}


@dataclass(frozen=True, kw_only=True)
class FolderData(RecordedData):
    """Settings of a folder of videos: sub-folders are classes; captions, actions and lists may be beside the videos."""

    kind: Literal["folder"] = "folder"

    def listing(self) -> Listing:
        return list_folder(self.required_path())


@dataclass(frozen=True, kw_only=True)
class LeRobotData(RecordedData):
    """Settings of a LeRobot dataset (v2.0, v2.1, v3.0), whose episodes are videos."""

    kind: Literal["lerobot"] = "lerobot"
    camera: str | None = None
    """key of the camera's feature, or its last part; None: the first camera"""
    split: str = "train"
    """a split that info.json lists, or "all" episodes"""
    tasks_as_classes: bool = False
    """the tasks are classes, in the order of their numbers, so that a model draws a task by its class"""

    def listing(self) -> Listing:
        return list_lerobot(self.required_path(), self.camera, self.split, tasks_as_classes=self.tasks_as_classes)

    def survey(self) -> DataSurvey:
        """A task that is a class counts as no caption too, so that models do not read it twice."""
        found = super().survey()
        return replace(found, has_captions=False) if self.tasks_as_classes else found

    def describe(self) -> dict[str, object]:
        tasks = {"tasks_as_classes": True} if self.tasks_as_classes else {}
        return super().describe() | {"camera": self.camera, "split": self.split} | tasks
