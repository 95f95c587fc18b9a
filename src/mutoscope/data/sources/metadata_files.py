"""Lists of videos in a folder: `metadata.csv`, `.jsonl` or `.parquet` (Hugging Face "VideoFolder"), and `videos.txt`
with `prompts.txt` beside it (finetrainers, CogVideoX scripts).
"""

import csv
import io
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mutoscope.data.action_tables import ActionTable, table_of
from mutoscope.data.media import files_below
from mutoscope.data.sources.parquet import read_rows
from mutoscope.data.text_files import read_json_lines, read_text
from mutoscope.errors import UserError, reason

TABLES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
FILE_COLUMNS = ("file_name", "video_file_name")
CAPTION_COLUMNS = ("caption", "text", "prompt")
LABEL_COLUMNS = ("label", "class")
ACTION_COLUMNS = ("actions", "actions_file", "action_file", "actions_path")
VIDEO_LIST = "videos.txt"
PROMPT_LISTS = ("prompts.txt", "prompt.txt", "captions.txt", "caption.txt")


@dataclass(frozen=True, eq=False)
class Entry:
    """One video as a list states it. label: "" without one. source: the list."""

    path: Path
    source: Path
    caption: str = ""
    label: str = ""
    actions: Path | ActionTable | None = None


@dataclass
class Lists:
    """The entries of all lists of a folder, by path. is_complete: a list that is meant to name every video exists."""

    entries: dict[Path, Entry] = field(default_factory=dict)
    is_complete: bool = False
    notes: list[str] = field(default_factory=list)

    def add(self, entry: Entry) -> None:
        """Raises UserError where another list states something else about the same video."""
        known = self.entries.get(entry.path)
        self.entries[entry.path] = entry if known is None else joined(known, entry)


def joined(first: Entry, second: Entry) -> Entry:
    """What two lists state about one video."""
    for name in ("caption", "label"):
        one, other = getattr(first, name), getattr(second, name)
        if one and other and one != other:
            raise contradiction(first.path, name, f"{first.source}: {one!r}", f"{second.source}: {other!r}")
    actions = first.actions if first.actions is not None else second.actions
    return Entry(first.path, first.source, first.caption or second.caption, first.label or second.label, actions)


def contradiction(video: Path, what: str, one: str, other: str) -> UserError:
    """The error that two files state different things about a video."""
    return UserError(f"The {what} of {video} differs between two files ({one}; {other}): correct or remove one.")


def read_lists(folder: Path) -> Lists:
    """All lists of a folder and its sub-folders. Raises UserError for damaged or contradicting ones."""
    found = Lists()
    for path in files_below(folder, {".csv", ".jsonl", ".parquet"}):
        if path.name in TABLES:
            _add_table(path, folder, found)
    if (folder / VIDEO_LIST).is_file():
        for entry in _listed_videos(folder):
            found.add(entry)
        found.is_complete = True
    return found


def _add_table(path: Path, folder: Path, found: Lists) -> None:
    rows = list(_rows(path))
    columns = {name.strip().lower(): name for row in rows for name in row if isinstance(name, str)}
    key = next((columns[name] for name in FILE_COLUMNS if name in columns), None)
    if key is None:
        listed = ", ".join(columns) or "none"
        found.notes.append(f"{path} is not read: it has no column file_name (columns: {listed})")
        return
    for number, row in enumerate(rows, 1):
        name = _text(row.get(key))
        if name:
            where = f"{path}: row {number}"
            found.add(_entry(path, folder, {k: row.get(original) for k, original in columns.items()}, name, where))


def _rows(path: Path) -> Iterator[Mapping[str, object]]:
    if path.suffix == ".parquet":
        yield from read_rows(path)
    elif path.suffix == ".jsonl":
        yield from read_json_lines(path)
    else:
        text = read_text(path)
        first = text.split("\n", 1)[0]
        delimiter = max(",;\t", key=first.count)
        try:
            yield from csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
        except csv.Error as error:
            raise UserError(f"{path} is no table ({reason(error)}).") from None


def _entry(table: Path, folder: Path, row: Mapping[str, object], name: str, where: str) -> Entry:
    actions = next((row[column] for column in ACTION_COLUMNS if row.get(column) not in (None, "")), None)
    if isinstance(actions, str):
        found: Path | ActionTable | None = path_inside(table.parent, actions, folder, where)
    else:
        found = None if actions is None else table_of(actions, where)
    return Entry(
        path=path_inside(table.parent, name, folder, where),
        source=table,
        caption=next((_text(row[column]) for column in CAPTION_COLUMNS if _text(row.get(column))), ""),
        label=next((_label(row[column]) for column in LABEL_COLUMNS if _label(row.get(column))), ""),
        actions=found,
    )


def _text(cell: object) -> str:
    return "" if cell is None else str(cell).strip()


def _label(cell: object) -> str:
    """A class as text; -1 is no class, and 3.0 is class 3."""
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    text = _text(cell)
    return "" if text in ("-1", "nan", "None") else text


def _listed_videos(folder: Path) -> Iterator[Entry]:
    path = folder / VIDEO_LIST
    names = _lines(path)
    prompts = next((folder / name for name in PROMPT_LISTS if (folder / name).is_file()), None)
    texts = [""] * len(names) if prompts is None else _lines(prompts)
    if len(texts) != len(names):
        raise UserError(
            f"{path} has {len(names)} lines and {prompts} has {len(texts)}: line n of each is of one video."
        )
    for number, (name, text) in enumerate(zip(names, texts, strict=True), 1):
        if name:
            yield Entry(path_inside(folder, name, folder, f"{path}: line {number}"), path, caption=text)


def _lines(path: Path) -> list[str]:
    """Lines without those that are empty at the end; an empty line between others is an empty caption."""
    return [line.strip() for line in read_text(path).rstrip().split("\n")]


def path_inside(base: Path, name: str, folder: Path, where: str) -> Path:
    """A path that a list names, relative to its folder. Raises UserError for one that leads out of `folder`."""
    path = Path(os.path.normpath(base / name))
    if not path.is_relative_to(Path(os.path.normpath(folder))):
        raise UserError(f"{where} names {name!r}, which is not in {folder}: move the file there.")
    return Path(folder, path.relative_to(Path(os.path.normpath(folder))))


def class_numbers(labels: Mapping[Path, str]) -> tuple[dict[Path, int], list[str]]:
    """The class of every video that has one, and the names of the classes: in order of number where all are numbers."""
    names = set(labels.values())
    order = sorted(names, key=int) if all(name.isdecimal() for name in names) else sorted(names)
    numbers = {name: number for number, name in enumerate(order)}
    return {path: numbers[label] for path, label in labels.items()}, order
