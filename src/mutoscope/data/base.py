"""The contract of every data source: which per-clip fields it has, and the batches it gives.

A model is conditioned on per-clip fields (its configuration lists them in `clip_fields`). A source declares the fields
it has in `ClipSource.fields`. Everything between the two, from the token cache to the training loop, passes fields on
by name: a new condition therefore touches its source and its model only.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Generic, Protocol, Required, TypedDict, TypeVar, cast

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.utils.data import default_collate

from mutoscope.actions import ActionSpec
from mutoscope.checks import SEED, SIDE, Range, check_fields
from mutoscope.data.media import spread
from mutoscope.data.sources.survey import DataSurvey
from mutoscope.errors import UserError
from mutoscope.json_config import dataclass_from_dict

FPS = Range(low=1, high=1000)
MAX_INTERVAL = 25  # largest frame interval that MAGI's embedding knows (arXiv 2501.12389 §4.1)

MAX_CAPTIONS, CAPTION_BATCH = 4096, 64  # captions that are read of an endless source, and how many at a time


SETTINGS = "settings"  # key of all settings in `DataConfig.origin`


@dataclass(frozen=True)
class Field:
    """One per-clip field of a source.

    dtype: NumPy's name of the type of its values. shape: of one clip's value, () for a number.
    per_frame: the first axis counts the frames of the clip, so that a tokenizer must keep frames apart.
    encoded: the value is a clip of pixels of the video's shape; the token cache stores its tokens instead.
    """

    dtype: str
    shape: tuple[int, ...] = ()
    per_frame: bool = False
    encoded: bool = False


LABEL = Field("int64")
INTERVAL = Field("int64")
EPISODE = Field("int64")
"""Number of the recording that a clip is from. Clips of one recording look alike, so a split must not part them."""


class ClipBatch(TypedDict, total=False):
    """Clips as pixels. A source may add fields of its own, which it declares in `ClipSource.fields`."""

    video: Required[UInt8[Tensor, "b t h w 3"]]
    label: Required[Int[Tensor, " b"]]
    """Class of each clip, -1 without a class."""
    caption: Required[list[str]]
    """One text per clip, "" without a caption."""
    path: list[str]
    """File of each clip, as reports name it."""
    start: Int[Tensor, " b"]
    """First frame of each clip in its file."""
    actions: Float[Tensor, "b t a"]
    """Row t is done in frame t and leads to frame t + 1; NaN where the action is unknown."""
    interval: Int[Tensor, " b"]
    """Source frames from one frame of a clip to the next."""
    episode: Int[Tensor, " b"]
    """Number of the recording that each clip is from."""
    history_only: Bool[Tensor, "b t"]
    """Frames that are context for later frames but no target."""
    history: UInt8[Tensor, "b t h w 3"]
    """The clips as they look when they are context: partly corrupted."""
    attributes: dict[str, Int[Tensor, "b ..."]]
    """Further labels by name, for classifiers."""


class TokenBatch(TypedDict, total=False):
    """Clips as tokens or latents, with the conditions a model may read. Every other field of the cache is a key too."""

    tokens: Required[Tensor]
    """Codes int64 (b, t, h, w), or latents float32 (b, c, t, h, w)."""
    label: Required[Int[Tensor, " b"]]
    conditions: Required[dict[str, Tensor]]
    """Task -> the encoded condition videos, like `tokens`."""
    caption: Float[Tensor, "b l d"]
    """Text features."""
    caption_mask: Bool[Tensor, "b l"]
    """Which rows of `caption` hold a word."""
    motion: Float[Tensor, " b"]
    """Mean optical flow in pixels."""
    actions: Float[Tensor, "b t a"]
    interval: Int[Tensor, " b"]
    episode: Int[Tensor, " b"]
    history_only: Bool[Tensor, "b t"]
    history: Tensor
    """Like `tokens`: the clips as they look when they are context."""
    task: str
    """The task this batch trains, where a model has several."""
    condition_tokens: Tensor
    """The condition video of `task`, like `tokens`."""


BatchT = TypeVar("BatchT", bound=Mapping[str, object])
BatchT_co = TypeVar("BatchT_co", bound=Mapping[str, object], covariant=True)


class ClipSource(ABC, Generic[BatchT_co]):
    """Random access to clips: `source[indices]` is a batch that depends on the indices only."""

    num_clips: int | None = None
    """How many clips there are; None for an endless source."""
    class_names: Sequence[str] = ()
    """Name of each class, by label; empty without classes."""
    fields: Mapping[str, Field] = {}
    """The per-clip fields beside video and label that every batch of this source has, by their keys."""
    actions: ActionSpec | None = None
    """What the numbers of the field "actions" mean; None without that field. Clips hold them unscaled."""
    episodes: Int[np.ndarray, " n"] | None = None
    """The recording that each clip is from, known without reading it; None where clips are independent of each other.
    An endless source over a finite dataset has one number for each clip of the dataset."""

    @abstractmethod
    def __getitem__(self, indices: Sequence[int]) -> BatchT_co:
        """The clips at `indices`, stacked in this order."""

    plain_rows: Bool[np.ndarray, " n"] | None = None
    """For clips that are stored already: which have the interval 1 and no temporal gap. None: not known, or all."""

    def among(self, clips: Int[np.ndarray, " m"]) -> "ClipSource[BatchT_co]":
        """The same source with these of its clips only, numbered from 0."""
        return ChosenClips(self, clips)

    def plain(self, clips: Int[np.ndarray, " m"] | None = None) -> "ClipSource[BatchT_co]":
        """The same source with these clips (None: all) at interval 1 and without temporal gaps, as validation reads
        them; the source itself where no clip is otherwise.
        """
        return self


class ChosenClips(ClipSource[BatchT]):
    """Some clips of another source, numbered from 0.

    Where a file fails while it is read, a source may replace its clip by one of another recording. If that recording
    is not among the chosen ones, the next chosen clip that is read right takes its position instead: a clip that is
    held back from training must not come in as a replacement.
    """

    def __init__(self, source: ClipSource[BatchT], clips: Int[np.ndarray, " m"]):
        self.source, self.clips, self.num_clips = source, clips, len(clips)
        self.class_names, self.fields, self.actions = source.class_names, source.fields, source.actions
        self.episodes = None if source.episodes is None else source.episodes[clips]
        self._chosen = frozenset(() if self.episodes is None else np.unique(self.episodes).tolist())

    def __getitem__(self, indices: Sequence[int]) -> BatchT:
        batch = self.source[self.clips[list(indices)].tolist()]
        strays = self._strays(batch)
        if not any(strays):
            return batch
        kept = [self._next(int(index)) if stray else int(index) for index, stray in zip(indices, strays, strict=True)]
        return self.source[self.clips[kept].tolist()]

    def plain(self, clips: Int[np.ndarray, " m"] | None = None) -> ClipSource[BatchT]:
        source = self.source.plain(self.clips if clips is None else self.clips[clips])
        return self if source is self.source else source.among(self.clips)

    def _strays(self, batch: BatchT) -> list[bool]:
        """For each clip, whether it is of a recording that was not chosen."""
        if self.episodes is None or "episode" not in batch:
            return [False]
        return [number not in self._chosen for number in cast(Tensor, batch["episode"]).tolist()]

    def _next(self, index: int) -> int:
        for step in range(1, len(self.clips)):
            following = (index + step) % len(self.clips)
            if not self._strays(self.source[[int(self.clips[following])]])[0]:
                return following
        raise UserError(f"None of {len(self._chosen)} chosen recordings can be read; see the warnings.")


Item = dict[str, Any]  # fields of one clip by name; torch collates any value


class ItemDataset(Protocol):
    """A map-style dataset of single clips that knows its fields."""

    @property
    def class_names(self) -> Sequence[str]: ...

    @property
    def fields(self) -> Mapping[str, Field]: ...

    @property
    def episodes(self) -> Int[np.ndarray, " n"] | None: ...

    @property
    def actions(self) -> ActionSpec | None: ...

    def __len__(self) -> int: ...

    def __getitem__(self, item: int, /) -> Item: ...


class StackedItems(ClipSource[ClipBatch]):
    """The items of a dataset as a source; items are stacked by torch's default rule."""

    def __init__(self, dataset: ItemDataset):
        self.dataset, self.num_clips = dataset, len(dataset)
        self.class_names, self.fields, self.actions = dataset.class_names, dataset.fields, dataset.actions
        self.episodes = dataset.episodes

    def __getitem__(self, indices: Sequence[int]) -> ClipBatch:
        return stacked_items([self.dataset[int(index)] for index in indices])


def stacked_items(items: Sequence[Item]) -> ClipBatch:
    """One batch of single clips: tensors are stacked, numbers become tensors, texts lists."""
    return cast(ClipBatch, default_collate(list(items)))


@dataclass(frozen=True, kw_only=True)
class DataConfig(ABC):
    """What every kind of training data has in common; each kind has a subclass in the file of its source.

    A subclass narrows `kind` to a Literal and gives it as the default.
    """

    kind: str
    """which kind of data; --data.kind KIND and --data PATH replace these settings by those of another kind"""
    num_frames: int = 16
    """frames per clip"""
    height: int = 32
    """rows of a frame"""
    width: int = 32
    """columns of a frame"""
    fps: float = 8
    """frames per second of a clip"""
    seed: int = 0
    """seed of everything that is drawn at random"""

    def __post_init__(self) -> None:
        """Raises UserError for numbers out of range; a subclass with checks of its own calls this one first."""
        check_fields(self, {"num_frames": SIDE, "height": SIDE, "width": SIDE, "fps": FPS, "seed": SEED})

    @abstractmethod
    def open(self) -> ClipSource[ClipBatch]:
        """The clips. Raises UserError where there are none that can be read."""

    @abstractmethod
    def describe(self) -> dict[str, object]:
        """The entry about the clips in model_index.json and in the metadata of a token cache, as JSON values."""

    def origin(self) -> dict[str, object]:
        """`describe` with seed, path and all settings: the clips that a token cache was filled with."""
        values: dict[str, object] = {f.name: json_value(getattr(self, f.name)) for f in fields(self)}
        apart = {"seed": values.pop("seed"), "path": values.pop("path", None)}
        return self.describe() | apart | {SETTINGS: values}

    def class_names(self) -> Sequence[str]:
        """Names of the classes; empty without classes. Reads the folder where classes are folders."""
        return ()

    @abstractmethod
    def survey(self) -> DataSurvey:
        """What the recordings look like on disk: size, rate, lengths, classes, captions and actions.

        Recipes adapt to it. Reads headers and a few first frames. Raises UserError where nothing can be read.
        """

    def captions(self) -> Sequence[str]:
        """The captions of all clips, or of the first 4,096 of an endless source; "" where a clip has none."""
        source = self.open()
        count = source.num_clips or MAX_CAPTIONS
        parts = (range(i, min(i + CAPTION_BATCH, count)) for i in range(0, count, CAPTION_BATCH))
        return [caption for part in parts for caption in source[part]["caption"]]

    def examples(self, count: int = 4) -> ClipBatch:
        """The same few clips every time, for contact sheets: taken evenly from the whole source."""
        source = self.open().plain()
        return source[spread(source.num_clips or count, count)]

    @property
    def needs_files(self) -> bool:
        """Whether clips are read from files, which may be gone later."""
        return True

    @property
    def redraws(self) -> bool:
        """Whether a clip looks different each time it is read, which a token cache cannot hold."""
        return False


@dataclass(frozen=True, kw_only=True)
class PathData(DataConfig):
    """Data in a folder."""

    path: str | None = None
    """the folder"""

    def required_path(self) -> str:
        """The folder; raises UserError where none is named."""
        if not self.path:
            raise UserError(f"Data of kind {self.kind!r} needs a path: name the folder with --data.path.")
        return self.path


def json_value(value: object) -> object:
    """A setting as JSON reads it back: a list for a tuple."""
    return list(value) if isinstance(value, tuple) else value


def flat(described: Mapping[str, object]) -> Mapping[str, object]:
    """A description of clips (`DataConfig.origin`) with the settings among its entries."""
    return {**cast(Mapping[str, object], described.get(SETTINGS, {})), **described}


def described_actions(described: Mapping[str, object]) -> ActionSpec | None:
    """The actions in a description of clips (`DataConfig.describe`); None where it names none."""
    values = described.get("actions")
    return (
        dataclass_from_dict(ActionSpec, cast(Mapping[str, object], values), "The actions of the clips")
        if values
        else None
    )


def check_interval(max_interval: int) -> None:
    """Raises UserError unless frame intervals up to this one can be embedded."""
    if not 1 <= max_interval <= MAX_INTERVAL:
        raise UserError(f"max_interval must be between 1 and {MAX_INTERVAL}, found {max_interval}.")


def check_intervals(intervals: Sequence[int], frame_stride: int) -> None:
    """Raises UserError unless frames at these intervals, counted in strides, are at most 25 source frames apart."""
    for interval in intervals:
        if interval < 1 or interval * frame_stride > MAX_INTERVAL:
            raise UserError(
                f"intervals must be at least 1 and, times frame_stride, at most {MAX_INTERVAL}; found interval "
                f"{interval} at frame_stride {frame_stride}: use smaller intervals or a smaller frame_stride."
            )
