"""The contents of a dataset on disk: its entries, its classes, and the files that are missing."""

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mutoscope.data.sources.folder import FileProblem, MediaFile
from mutoscope.data.sources.readers import ContainerReader, VideoReader
from mutoscope.errors import UserError

SPLITS = ("train", "validation", "test")
SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "validate"),
    "test": ("test", "testing"),
}


@dataclass(frozen=True)
class Listing:
    """One split of a dataset.

    missing: files that the dataset's own lists name and the disk does not hold, or holds damaged. unlisted: files on
    disk that belong to no split. notes: what a reader should know about how the split was chosen. frame_fields: further
    fields of a clip with one float32 row per frame, by name: numbers in a row. fps: frames per second of every entry,
    where the dataset states one rate for all.
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

    def class_counts(self) -> dict[str, int]:
        """Entries of each class, also of classes without any."""
        counts = Counter(file.label for file in self.files)
        return {name: counts[label] for label, name in enumerate(self.classes)}

    def checked(self) -> "Listing":
        """This listing, after one warning if files are missing. Raises UserError where nothing is left."""
        where = f"the {self.split} split of {self.kind} in {self.folder}"
        if not self.files:
            if not self.missing:
                raise UserError(f"there is nothing of {where}; docs/datasets.md shows the layout")
            first = self.missing[0]
            raise UserError(
                f"nothing is left of {where}: all {len(self.missing)} entries are missing, the first: {first.path}: "
                f"{first.reason}"
            )
        if self.missing:
            first = self.missing[0]
            warnings.warn(
                f"{where} lacks {len(self.missing)} of {len(self.missing) + len(self.files)} entries, which are "
                f"skipped; the first: {first.path}: {first.reason}",
                stacklevel=3,
            )
        return self


def read_lines(path: Path) -> list[str]:
    """Non-empty lines of a file, without line ends of any system. Raises UserError where it cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    return [line.strip() for line in lines if line.strip()]


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
