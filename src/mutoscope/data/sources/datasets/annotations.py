"""Datasets of video files with lists beside them: UCF-101, Kinetics-600, Something-Something v2, Objectron."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from mutoscope.data.media import VIDEO_SUFFIXES, files_below, visible_matches
from mutoscope.data.sources.datasets.listing import (
    SPLIT_FOLDERS,
    Listing,
    read_lines,
    sort_out,
    split_folder,
    sub_folder,
)
from mutoscope.data.sources.folder import FileProblem, MediaFile
from mutoscope.data.text_files import read_text
from mutoscope.errors import UserError, reason
from mutoscope.json_config import parse_json

T = TypeVar("T")

# ---------------------------------------------------------------------------------------------------------- UCF-101

UCF_LISTS, UCF_VIDEOS = "ucfTrainTestlist", ("UCF-101", "UCF101")


def ucf_lists(folder: Path) -> Path | None:
    """The folder of split lists: in the dataset's folder, or beside the folder of its videos."""
    for base in (folder, folder.parent) if folder.name in UCF_VIDEOS else (folder,):
        if (base / UCF_LISTS / "classInd.txt").is_file():
            return base / UCF_LISTS
    return None


def list_ucf101(folder: Path, split: str, fold: int = 1) -> Listing:
    """A split by the official lists (fold 1, 2 or 3); without lists, by folders train/CLASS and test/CLASS.

    The class of a file is its folder's: files of HandstandPushups spell the name otherwise.
    """
    lists = ucf_lists(folder)
    if lists is None:
        return _list_class_folders("ucf101", folder, split)
    videos = sub_folder(folder, (*UCF_VIDEOS, "videos")) or folder
    classes = [name for _, name in sorted(_ucf_classes(lists / "classInd.txt"))]
    names = [line.split()[0] for line in read_lines(lists / f"{split}list{fold:02d}.txt")]
    labels = {name: label for label, name in enumerate(classes)}
    if unknown := {name.split("/")[0] for name in names} - set(labels):
        raise UserError(f"{lists} names the class {min(unknown)!r}, which classInd.txt does not; copy the lists again")
    listed = [MediaFile(videos / name, labels[name.split("/")[0]]) for name in names]
    files, missing = sort_out(listed)
    other = "test" if split == "train" else "train"
    elsewhere = lists / f"{other}list{fold:02d}.txt"
    known = {*names, *(line.split()[0] for line in (read_lines(elsewhere) if elsewhere.is_file() else []))}
    present = {path.relative_to(videos).as_posix() for path in files_below(videos, {".avi"})}
    return Listing("ucf101", folder, split, files, classes, missing, len(present - known))


def _ucf_classes(path: Path) -> Iterator[tuple[int, str]]:
    for line in read_lines(path):
        number, _, name = line.partition(" ")
        if not number.isdecimal() or not name:
            raise UserError(f"{path}: a line must read '<number> <Class>', found {line!r}")
        yield int(number), name.strip()


def _list_class_folders(kind: str, folder: Path, split: str) -> Listing:
    """A split as a folder of class folders; classes are numbered in the training folder's alphabetical order."""
    base = split_folder(folder, split)
    if base is None:
        raise UserError(f"{folder} holds neither lists of its splits nor a folder {split!r}; see docs/datasets.md")
    classes = class_names(split_folder(folder, "train") or base)
    labels = {name: label for label, name in enumerate(classes)}
    found = list(files_below(base, VIDEO_SUFFIXES))
    class_of = {path: path.relative_to(base).parts[0] for path in found}
    named = [MediaFile(path, labels[class_of[path]]) for path in found if class_of[path] in labels]
    files, missing = sort_out(named)
    return Listing(kind, folder, split, files, classes, missing, len(found) - len(named))


def class_names(folder: Path) -> list[str]:
    """Visible sub-folders in alphabetical order."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


# ------------------------------------------------------------------------------------------------------ Kinetics-600

KINETICS_COLUMNS = ("label", "youtube_id", "time_start", "time_end", "split")


def kinetics_tables(folder: Path) -> list[Path]:
    """The CSV files with Kinetics' columns, in the folder or in one called annotations."""
    paths = sorted([*visible_matches(folder, "*.csv"), *visible_matches(folder, "annotations/*.csv")])
    return [path for path in paths if {"youtube_id", "time_start", "time_end"} <= set(_csv_header(path))]


def _csv_header(path: Path) -> list[str]:
    try:
        text = read_text(path)
    except UserError:  # of another dataset, or refused once its rows are read: names of columns are ASCII
        text = path.read_bytes().decode("latin-1")
    return [name.strip() for name in next(csv.reader(io.StringIO(text)), [])]


def list_kinetics600(folder: Path, split: str) -> Listing:
    """The files on disk, with classes from the tables. Most tables are longer than any copy, because links died.

    Classes are numbered in alphabetical order of those in the training table, or of all tables without one.
    """
    tables = kinetics_tables(folder)
    if not tables:
        return _list_class_folders("kinetics600", folder, split)
    rows = {name: list(_kinetics_rows(tables, name)) for name in ("train", split)}
    named = rows["train"] if any(row["label"] for row in rows["train"]) else list(_kinetics_rows(tables, None))
    classes = sorted({row["label"] for row in named if row["label"]})
    labels = {name: label for label, name in enumerate(classes)}
    base = split_folder(folder, split) or folder
    present: dict[str, Path] = {}
    for path in files_below(base, VIDEO_SUFFIXES):
        present.setdefault(path.stem, path)
    listed, missing = [], []
    for row in rows[split]:
        path = present.pop(stem := _kinetics_stem(row), None) or present.pop(row["youtube_id"], None)
        if path is None:
            missing.append(FileProblem(str(base / f"{stem}.mp4"), "there is no such file"))
        else:
            listed.append(MediaFile(path, labels.get(row["label"], -1)))
    files, empty = sort_out(listed)
    unlisted = len(present) if base != folder else 0
    return Listing("kinetics600", folder, split, files, classes, [*missing, *empty], unlisted)


def _kinetics_rows(tables: list[Path], split: str | None) -> Iterator[dict[str, str]]:
    """Rows of a split, each with all columns; one without the column belongs to the split its file is named after."""
    names = {name: split_name for split_name, known in SPLIT_FOLDERS.items() for name in known}
    for path in tables:
        stem = path.stem.lower()
        named = next((split_name for word, split_name in names.items() if word in stem), None)
        for row in csv.DictReader(io.StringIO(read_text(path)), skipinitialspace=True):
            kept = {name: (row.get(name) or "").strip() for name in KINETICS_COLUMNS}
            found = names.get(kept["split"].lower(), named)
            if kept["youtube_id"] and (split is None or found == split):
                yield kept


def _kinetics_stem(row: dict[str, str]) -> str:
    """<youtube_id>_<start>_<end> with six digits; times may be written as floats."""
    try:
        start, end = (int(float(row[name])) for name in ("time_start", "time_end"))
    except ValueError:
        return row["youtube_id"]
    return f"{row['youtube_id']}_{start:06d}_{end:06d}"


# ------------------------------------------------------------------------------------------ Something-Something v2

SSV2_PREFIXES = ("", "something-something-v2-")


def ssv2_table(folder: Path, name: str) -> Path | None:
    """labels.json and the like, under their short or long name, in the folder or in one called labels."""
    for base in (folder, folder / "labels", folder / "annotations"):
        for prefix in SSV2_PREFIXES:
            if (base / f"{prefix}{name}").is_file():
                return base / f"{prefix}{name}"
    return None


def list_ssv2(folder: Path, split: str) -> Listing:
    """Videos by the split's JSON list; captions are the labels written out ("holding a potato next to a bottle").

    A class is a template without its brackets. The test list has neither, unless test-answers.csv is there.
    """
    labels_path, split_path = ssv2_table(folder, "labels.json"), ssv2_table(folder, f"{split}.json")
    if labels_path is None or split_path is None:
        wanted = "labels.json" if labels_path is None else f"{split}.json"
        raise UserError(f"{folder} holds no {wanted} (or something-something-v2-{wanted}); see docs/datasets.md")
    table = _json(labels_path, dict)
    classes = [name for name, _ in sorted(table.items(), key=lambda entry: int(entry[1]))]
    labels = {name: label for label, name in enumerate(classes)}
    answers = _ssv2_answers(folder)
    videos = sub_folder(folder, ("20bn-something-something-v2", "videos")) or folder
    listed, strange = [], []
    for row in _json(split_path, list):
        video = str(row.get("id", "")) if isinstance(row, dict) else ""
        template = str(row.get("template") or answers.get(video, "")).replace("[", "").replace("]", "") if video else ""
        path = videos / f"{video}.webm"
        if not video or (template and template not in labels):
            strange.append(FileProblem(str(path), f"the list gives {row!r}, which names no known video and class"))
            continue
        listed.append(MediaFile(path, labels.get(template, -1), str(row.get("label", ""))))
    files, missing = sort_out(listed)
    return Listing("ssv2", folder, split, files, classes, [*strange, *missing])


def _ssv2_answers(folder: Path) -> dict[str, str]:
    """Template by video of test-answers.csv, whose lines are id;label."""
    path = ssv2_table(folder, "test-answers.csv")
    lines = read_lines(path) if path is not None else []
    return {video: label for video, _, label in (line.partition(";") for line in lines)}


def _json(path: Path, expected: type[T]) -> T:
    text = read_text(path)
    try:
        found = parse_json(text)
    except ValueError as error:
        raise UserError(f"{path} cannot be read as JSON: {reason(error)}") from None
    if not isinstance(found, expected):
        raise UserError(f"{path} must hold a JSON {expected.__name__}, found {type(found).__name__}")
    return found


# -------------------------------------------------------------------------------------------------------- Objectron


def list_objectron(folder: Path, split: str) -> Listing:
    """Videos by the index lists <class>_annotations_<split>, one line <class>/batch-<i>/<j> per video."""
    lists = sorted(visible_matches(folder, "index/*_annotations_*"))
    classes = sorted({path.name.partition("_annotations")[0] for path in lists})
    listed = []
    for label, name in enumerate(classes):
        path = folder / "index" / f"{name}_annotations_{split}"
        for line in read_lines(path) if path.is_file() else []:
            listed.append(MediaFile(folder / "videos" / line / "video.MOV", label))
    files, missing = sort_out(listed)
    return Listing("objectron", folder, split, files, classes, missing)
