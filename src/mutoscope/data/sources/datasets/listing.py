"""The contents of a dataset on disk: its entries, its classes, and the files that are missing."""

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float

from mutoscope.actions import ActionSpec, Kind, Reduction
from mutoscope.data.media import spread
from mutoscope.data.sources.folder import FileProblem, MediaFile
from mutoscope.data.sources.readers import ContainerReader, VideoReader
from mutoscope.data.text_files import read_text
from mutoscope.errors import UserError

MEASURED_ENTRIES = 1024
SPLITS = ("train", "validation", "test")
SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "validate"),
    "test": ("test", "testing"),
}


@dataclass(frozen=True)
class RecordedActions:
    """Names of the numbers of an action, and their kind where the recording states it."""

    names: tuple[str, ...]
    kind: Kind | None = None


@dataclass(frozen=True)
class Listing:
    """One split of a dataset, or the episodes of a recording.

    missing: files that the dataset's own lists name and the disk does not hold, or holds damaged. unlisted: files on
    disk that belong to no split. notes: what a reader should know about how the split was chosen. frame_fields: further
    fields of a clip with one float32 row per frame, by name: numbers in a row. fps: frames per second of every entry,
    where the dataset states one rate for all. format: its name and version, `kind` by default. cameras: names of the
    cameras, of which `camera` is read. actions: what the field "actions" holds. lengths_known: the reader knows the
    length of every entry without opening a file. unit: what reports call the entries.
    """

    kind: str
    folder: Path
    split: str
    files: list[MediaFile]
    classes: list[str] = field(default_factory=list)
    missing: list[FileProblem] = field(default_factory=list)
    unlisted: int = 0
    reader: VideoReader = field(default_factory=ContainerReader)
    notes: tuple[str, ...] = ()
    frame_fields: Mapping[str, int] = field(default_factory=dict)
    fps: float | None = None
    format: str = ""
    cameras: tuple[str, ...] = ()
    camera: str = ""
    actions: RecordedActions | None = None
    lengths_known: bool = False
    unit: str = "entries"

    def __post_init__(self) -> None:
        object.__setattr__(self, "format", self.format or self.kind)

    def class_counts(self) -> dict[str, int]:
        """Entries of each class, also of classes without any."""
        counts = Counter(file.label for file in self.files)
        return {name: counts[label] for label, name in enumerate(self.classes)}

    def action_spec(self, frame_stride: int = 1, axes: Reduction = "sum") -> ActionSpec | None:
        """Kind and scaling of the actions of clips whose frames are `frame_stride` apart; None without actions.

        Measured over at most 1,024 entries at equal distances; entries that cannot be read are skipped.
        """
        if self.actions is None:
            return None
        return ActionSpec.measured(
            self.actions.names,
            self.action_rows(),
            kind=self.actions.kind,
            fps=self.fps,
            frame_stride=frame_stride,
            axes=axes,
        )

    def action_rows(self) -> Iterator[Float[np.ndarray, "_t a"]]:
        """The actions of one entry after the other."""
        for number in spread(len(self.files), MEASURED_ENTRIES):
            file = self.files[number]
            try:
                yield self.reader.extras(file, range(self.reader.num_frames(file)))["actions"]
            except UserError:
                continue

    def checked(self) -> "Listing":
        """This listing, after one warning if files are missing. Raises UserError where nothing is left."""
        where = f"the {self.split} split of {self.kind} in {self.folder}" if self.split else str(self.folder)
        if not self.files:
            if not self.missing:
                raise UserError(f"there is nothing of {where}; docs/datasets.md shows the layout")
            first = self.missing[0]
            raise UserError(
                f"nothing is left of {where}: all {len(self.missing)} {self.unit} are missing, the first: "
                f"{first.path}: {first.reason}"
            )
        if self.missing:
            first = self.missing[0]
            warnings.warn(
                f"{where} lacks {len(self.missing)} of {len(self.missing) + len(self.files)} {self.unit}, which are "
                f"skipped ({len(self.files)} are read); the first: {first.path}: {first.reason}",
                stacklevel=3,
            )
        return self


def read_lines(path: Path) -> list[str]:
    """Non-empty lines of a file, without line ends of any system. Raises UserError where it cannot be read."""
    return [line.strip() for line in read_text(path).split("\n") if line.strip()]


def problem_of(path: Path) -> str | None:
    """Why a file cannot hold anything, without opening it; None for a file that may."""
    try:
        return None if path.stat().st_size else "the file is empty (0 bytes)"
    except OSError:
        return "there is no such file"


def sort_out(files: Sequence[MediaFile]) -> tuple[list[MediaFile], list[FileProblem]]:
    """Files that exist, and those that do not or are empty."""
    kept, missing = [], []
    for file in files:
        reason = problem_of(file.path)
        if reason is None:
            kept.append(file)
        else:
            missing.append(FileProblem(str(file.path), reason))
    return kept, missing


def sub_folder(folder: Path, names: Sequence[str]) -> Path | None:
    """The first of these sub-folders that exists."""
    return next((folder / name for name in names if (folder / name).is_dir()), None)


def split_folder(folder: Path, split: str) -> Path | None:
    return sub_folder(folder, SPLIT_FOLDERS[split])
