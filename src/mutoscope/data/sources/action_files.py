"""Files of actions beside a video: `NAME.actions.npy`, `.csv` or `.json`, one row per frame.

Row t is done in frame t and leads to frame t + 1. Torch-free, so that a report about a folder starts fast.
"""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import cast

import numpy as np
from jaxtyping import Float32

from mutoscope.data.text_files import read_text
from mutoscope.errors import UserError

SUFFIXES = (".actions.npy", ".actions.csv", ".actions.json")
DELIMITERS = (",", ";", "\t")
WORDS = {"": np.nan, "nan": np.nan, "none": np.nan, "null": np.nan, "true": 1.0, "false": 0.0}
# Columns that number the rows or date them, as screen recorders write; only where the values rise from row to row.
ROW_NUMBERS = frozenset("frame frame_index frame_number index step t time timestamp seconds".split())
Cell = str | float | bool | None


class RowCountError(UserError):
    """Actions of another number of frames than their video has."""


@dataclass(frozen=True, eq=False)
class ActionTable:
    """Actions of one recording. names: of the columns, None where the file states none."""

    rows: Float32[np.ndarray, "t a"]
    names: tuple[str, ...] | None = None

    def ordered(self, names: Sequence[str], path: Path) -> "ActionTable":
        """The columns in the order of `names`. Raises UserError where a name or a column is missing."""
        if self.rows.shape[1] != len(names):
            raise UserError(f"{path} has {self.rows.shape[1]} columns, but the actions are {', '.join(names)}.")
        if self.names is None or self.names == tuple(names):
            return ActionTable(self.rows, tuple(names))
        if sorted(self.names) != sorted(names):
            raise UserError(f"{path} names the actions {', '.join(self.names)}; others are named {', '.join(names)}.")
        return ActionTable(self.rows[:, [self.names.index(name) for name in names]], tuple(names))


def action_files(video: Path) -> list[Path]:
    """The files of actions beside a video."""
    candidates = (video.with_name(video.stem + suffix) for suffix in SUFFIXES)
    return [path for path in candidates if path.is_file()]


def read_actions(path: Path) -> ActionTable:
    """The actions of a file. Raises UserError where it cannot be read, or its rows differ in length."""
    try:
        state = path.stat()
    except OSError:
        raise UserError(f"There is no file of actions {path}.") from None
    return _read(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=64)  # windows of one recording are often read in a row
def _read(path: Path, changed: int, size: int) -> ActionTable:
    reader = {".npy": _read_npy, ".csv": _read_csv, ".json": _read_json}.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path} is no file of actions: known are .npy, .csv and .json.")
    return reader(path)


def fitted_rows(rows: Float32[np.ndarray, "t a"], num_frames: int, where: str) -> Float32[np.ndarray, "num_frames a"]:
    """One row per frame. T - 1 rows for T frames are right too: the last frame leads nowhere, so its row is unknown.

    where: names the file in the error. Raises UserError for any other number of rows.
    """
    if len(rows) == num_frames:
        return rows
    if len(rows) == num_frames - 1:
        return np.concatenate([rows, np.full((1, rows.shape[1]), np.nan, np.float32)])
    raise RowCountError(
        f"{where} holds {len(rows)} rows of actions for {num_frames} frames: write one row for every frame (row t is "
        "done in frame t and leads to frame t + 1), or one less."
    )


def table_of(values: object, where: str) -> ActionTable:
    """Actions in JSON or a table: rows of numbers, rows of objects, or {"names": [...], "actions": rows}."""
    names: tuple[str, ...] | None = None
    if isinstance(values, dict):
        names = _names(values.get("names"), where)
        values = values.get("actions")
    if not isinstance(values, list | tuple | np.ndarray):
        raise UserError(f'{where} holds no actions: a list of rows, or {{"names": [...], "actions": [rows]}}.')
    rows = list(values)
    if rows and all(isinstance(row, dict) for row in rows):
        objects = cast(list[dict[str, Cell]], rows)
        names = names or tuple(dict.fromkeys(name for row in objects for name in row))
        rows = [[row.get(name) for name in names] for row in objects]
    rows = [row if isinstance(row, list | tuple | np.ndarray) else [row] for row in rows]
    return _table([list(row) for row in rows], names, where)


def _names(values: object, where: str) -> tuple[str, ...] | None:
    if values is None:
        return None
    if not isinstance(values, list) or not all(isinstance(name, str) and name for name in values):
        raise UserError(f'{where}: "names" must be a list of texts.')
    return tuple(values)


def _read_npy(path: Path) -> ActionTable:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is not an array that can be read ({error}).") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf" or array.ndim not in (1, 2):
        raise UserError(f"{path} must hold an array (frames, numbers) of numbers.")
    rows = array[:, None] if array.ndim == 1 else array
    return ActionTable(_finite(rows.astype(np.float32), str(path)))


def _read_json(path: Path) -> ActionTable:
    try:
        values = json.loads(read_text(path))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}).") from None
    return table_of(values, str(path))


def _read_csv(path: Path) -> ActionTable:
    text = read_text(path)
    first = text.lstrip().split("\n", 1)[0]
    delimiter = max(DELIMITERS, key=first.count)
    lines = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if any(map(str.strip, row))]
    names = None
    if lines and any(_number(cell) is None for cell in lines[0]):
        names = tuple(cell.strip() for cell in lines.pop(0))
    table = _table(lines, names, str(path))
    return _without_row_numbers(table)


def _without_row_numbers(table: ActionTable) -> ActionTable:
    """The table without a first column that numbers or dates the rows."""
    names, rows = table.names, table.rows
    if names is None or len(names) < 2 or names[0].lower() not in ROW_NUMBERS or not (np.diff(rows[:, 0]) > 0).all():
        return table
    return ActionTable(rows[:, 1:], names[1:])


def _table(lines: Sequence[Sequence[Cell]], names: tuple[str, ...] | None, where: str) -> ActionTable:
    width = len(names) if names is not None else len(lines[0]) if lines else 0
    if names is not None and (len(set(names)) != width or not all(names)):
        raise UserError(f"{where} must name its columns differently; found {', '.join(names)}.")
    if not lines or not width:
        raise UserError(f"{where} holds no rows of actions.")
    rows = np.empty((len(lines), width), np.float32)
    for number, line in enumerate(lines):
        if len(line) != width:
            raise UserError(f"{where}: row {number + 1} has {len(line)} numbers, expected {width}.")
        for column, cell in enumerate(line):
            value = _number(cell)
            if value is None:
                raise UserError(f"{where}: row {number + 1} holds {str(cell)!r} instead of a number.")
            rows[number, column] = value
    return ActionTable(_finite(rows, where), names)


def _number(cell: Cell) -> float | None:
    """The number in a cell, NaN where it is empty; None for other words."""
    if cell is None:
        return float("nan")
    text = str(cell).strip().lower()
    if text in WORDS:
        return WORDS[text]
    try:
        return float(text)
    except ValueError:
        return None


def _finite(rows: Float32[np.ndarray, "t a"], where: str) -> Float32[np.ndarray, "t a"]:
    """NaN means an unknown action; an infinite number means nothing."""
    if np.isinf(rows).any():
        number = int(np.isinf(rows).any(axis=1).argmax())
        raise UserError(f"{where}: row {number + 1} holds an infinite number.")
    return rows
