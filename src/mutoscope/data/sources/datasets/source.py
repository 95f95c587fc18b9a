"""The papers' datasets as training data: their settings, and the clips of one split as a source."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mutoscope.checks import COUNT, Range, check_fields
from mutoscope.data.base import ClipBatch, ClipSource, PathData, StackedItems, check_interval
from mutoscope.data.sources.clips import Axes
from mutoscope.data.sources.datasets.catalog import Split, list_dataset, open_dataset
from mutoscope.data.sources.datasets.listing import Listing
from mutoscope.data.sources.images import ImagesData
from mutoscope.data.sources.recorded_data import RandomClips
from mutoscope.data.sources.survey import DataSurvey, survey_listing
from mutoscope.errors import UserError

VideoSetKind = Literal["ucf101", "bair", "kinetics600", "ssv2", "nuscenes", "objectron"]


@dataclass(frozen=True, kw_only=True)
class DatasetData(PathData):
    """Settings of a dataset of videos in its own layout (docs/datasets.md)."""

    kind: VideoSetKind
    frame_stride: int = 1
    """source frames per clip frame"""
    split: Split = "train"
    fold: int = 1
    """number of UCF-101's split lists: 1, 2 or 3"""
    windows: int = 1
    """clips per video, at equal distances over its time"""
    crops: int = 1
    """crops per clip, at equal distances along its longer side"""
    mirrored: bool = False
    """every clip a second time, mirrored; with random_crops, half of the clips are mirrored"""
    random_crops: bool = False
    """another start and crop each time a video is read, for tokenizers"""
    max_interval: int = 1
    """frames of a clip are 1 to this many strides apart, drawn for each clip"""

    action_axes: Axes = "sum"
    """how the axes of the actions between two frames of a clip are joined (BAIR)"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, {"frame_stride": COUNT, "fold": Range(1, 3), "windows": COUNT, "crops": COUNT})
        check_interval(self.max_interval)
        if self.random_crops and (self.windows != 1 or self.crops != 1):
            raise UserError("random_crops draw windows and crops at random: leave windows and crops at 1.")

    @property
    def redraws(self) -> bool:
        return self.random_crops

    def open(self) -> ClipSource[ClipBatch]:
        clips = open_dataset(
            self.kind,
            self.required_path(),
            self.split,
            self.num_frames,
            self.height,
            self.width,
            self.frame_stride,
            fold=self.fold,
            with_actions=self.kind == "bair" and not self.mirrored,  # a mirrored action has another sign
            windows=self.windows,
            crops=self.crops,
            mirrored=self.mirrored and not self.random_crops,
            random_start=self.random_crops,
            random_crop=self.random_crops,
            random_flip=self.mirrored and self.random_crops,
            max_interval=self.max_interval,
            action_axes=self.action_axes,
            seed=self.seed,
        )
        return RandomClips(clips, self.seed) if self.random_crops else StackedItems(clips)

    def class_names(self) -> Sequence[str]:
        return self.listing().classes

    def listing(self) -> Listing:
        """The entries of the split. Raises UserError where the folder is missing or its lists are damaged."""
        with_actions = self.kind == "bair" and not self.mirrored  # a mirrored action has another sign
        return list_dataset(self.kind, self.required_path(), self.split, fold=self.fold, with_actions=with_actions)

    def survey(self) -> DataSurvey:
        listing = self.listing()
        return survey_listing(listing, self.fps, listing.action_spec())

    def captions(self) -> Sequence[str]:
        return [file.caption for file in self.listing().files]

    def describe(self) -> dict[str, object]:
        names = ["kind", "split", "windows", "crops", "mirrored", "frame_stride"]
        names += ["fold"] if self.kind == "ucf101" else []
        names += ["max_interval"] if self.max_interval != 1 else []
        listing = self.listing()
        described: dict[str, object] = {name: getattr(self, name) for name in names}
        described |= {"class_names": list(listing.classes)}
        actions = listing.action_spec(self.frame_stride, self.action_axes)
        return described if actions is None else described | {"actions": actions.to_json()}


@dataclass(frozen=True, kw_only=True)
class ImagenetData(ImagesData):
    """Settings of ImageNet in its own layout (docs/datasets.md)."""

    kind: Literal["imagenet"] = "imagenet"
    split: Split = "train"

    def open(self) -> ClipSource[ClipBatch]:
        return self.source(self.listing().checked())

    def class_names(self) -> Sequence[str]:
        return self.listing().classes

    def listing(self) -> Listing:
        return list_dataset(self.kind, self.required_path(), self.split)

    def describe(self) -> dict[str, object]:
        return {"split": self.split} | super().describe()
