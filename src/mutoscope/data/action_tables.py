"""Files of actions: rows of numbers with or without names, as .csv, .json or .npy.

One reader for the actions beside recordings and for those that a call names, so that the actions of a recording can be
played again. Row t is done in frame t and leads to frame t + 1. Torch-free, so that reports about folders start fast.
"""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from mutoscope.data.text_files import read_text
from mutoscope.declared import read_npy
from mutoscope.errors import UserError, reason
from mutoscope.json_config import parse_json

UNKNOWN = "?"  # the cell of an action that is unknown
WORDS = {word: np.nan for word in (UNKNOWN, "", "nan", "none", "null")} | {"true": 1.0, "false": 0.0}
MAX_COLUMNS = 4096  # numbers in an action
DELIMITERS = (",", ";", "\t")  # a spreadsheet with decimal commas writes semicolons
QUOTED = re.compile(r'"[^"]*"')
# Columns that number the rows or date them, as screen recorders write; only where the values rise from row to row.
ROW_NUMBERS = frozenset("frame frame_index frame_number index step t time timestamp seconds".split())
HOW = "write rows of numbers as .csv, .json or .npy, one row per frame."


@dataclass(frozen=True, eq=False)
class ActionTable:
    """The rows of a file, and the names of its columns where the file has them. NaN is an unknown number."""

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


def read_action_table(path: Path) -> ActionTable:
    """The actions of a file, float32.

    .csv (and any other text): cells between commas, semicolons or tabs; a first line with a cell that is no number
    holds the names, and a first column that numbers or dates the rows is dropped. .json: see `table_of`. .npy: an array
    (t, a), or (t,) for one number. A cell of "?", "nan", "null" or nothing is an unknown number.
    Raises UserError, with row and column, for any other cell that is no finite number, and for rows of unequal length.
    """
    suffix = path.suffix.lower()
    return _from_numpy(path) if suffix == ".npy" else _from_json(path) if suffix == ".json" else _from_csv(path)


def table_of(values: object, where: str) -> ActionTable:
    """Actions in JSON or a table: a list of rows, or {"names": [...], "actions": rows}.

    A row is a list of numbers, one number, an object {name: number} whose absent names are 0, or null for an unknown
    action. where: begins the message of every error.
    """
    names: tuple[str, ...] | None = None
    if isinstance(values, dict):
        names = _names(values.get("names"), where)
        values = values.get("actions")
    if not isinstance(values, list | tuple | np.ndarray):
        raise UserError(f'{where} holds no actions: a list of rows, or {{"names": [...], "actions": [rows]}}.')
    rows = list(values)
    objects = [row for row in rows if isinstance(row, dict)]
    if objects and any(row is not None and not isinstance(row, dict) for row in rows):
        raise UserError(f"{where} mixes rows with names and rows without: name the numbers of all rows or of none.")
    if objects:
        names = names or tuple(dict.fromkeys(name for row in objects for name in row))
    return _table([_cells(row, names) for row in rows], names, where)


def _cells(row: object, names: Sequence[str] | None) -> list[object] | None:
    if isinstance(row, dict):
        return [row.get(name, 0) for name in names or ()]
    if row is None:
        return None
    return list(row) if isinstance(row, list | tuple | np.ndarray) else [row]


def _names(values: object, where: str) -> tuple[str, ...] | None:
    if values is None:
        return None
    if not isinstance(values, list) or not all(isinstance(name, str) and name for name in values):
        raise UserError(f'{where}: "names" must be a list of texts.')
    return tuple(values)


def _from_numpy(path: Path) -> ActionTable:
    try:
        array = read_npy(path)
    except UserError as error:
        raise UserError(f"{path} holds no actions: it {str(error).removeprefix(f'{path} ')} {HOW}") from None
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} holds no actions ({reason(error)}): {HOW}") from None
    if not isinstance(array, np.ndarray) or array.ndim not in (1, 2) or array.dtype.kind not in "biuf":
        found = f"{array.dtype} of the shape {array.shape}" if isinstance(array, np.ndarray) else "an archive"
        raise UserError(f"{path} must hold rows of numbers, one row per frame; found {found}.")
    with np.errstate(over="ignore"):
        return _checked((array[:, None] if array.ndim == 1 else array).astype(np.float32), None, str(path))


def _from_json(path: Path) -> ActionTable:
    try:
        values = parse_json(read_text(path))
    except ValueError as error:
        raise UserError(f"{path} holds no actions ({reason(error)}): {HOW}") from None
    return table_of(values, str(path))


def _from_csv(path: Path) -> ActionTable:
    lines = [line for line in read_text(path).splitlines() if line.strip()] or [""]
    if (columns := max(map(lines[0].count, DELIMITERS))) > MAX_COLUMNS:
        raise UserError(f"{path} has a row of {columns:,} columns; at most {MAX_COLUMNS:,} are read: {HOW}")
    first = lines[0].lstrip("#")  # numpy.savetxt writes names as a comment
    later = [line for line in lines[1:] if not line.startswith("#")]
    delimiter = max(DELIMITERS, key=re.sub(QUOTED, "", first).count)
    try:
        cells = [[cell.strip() for cell in row] for row in csv.reader([first, *later], delimiter=delimiter)]
    except csv.Error as error:
        raise UserError(f"{path} holds no actions ({reason(error)}): {HOW}") from None
    cells = [row for row in cells if any(row)]
    named = bool(cells) and any(_number(cell) is None for cell in cells[0])
    rows: list[Sequence[object] | None] = [*cells[1:]] if named else [*cells]
    return _without_row_numbers(_table(rows, tuple(cells[0]) if named else None, str(path)))


def _without_row_numbers(table: ActionTable) -> ActionTable:
    """The table without a first column that numbers or dates the rows."""
    names, rows = table.names, table.rows
    if names is None or len(names) < 2 or names[0].lower() not in ROW_NUMBERS or not (np.diff(rows[:, 0]) > 0).all():
        return table
    return ActionTable(rows[:, 1:], names[1:])


def _table(rows: Sequence[Sequence[object] | None], names: tuple[str, ...] | None, where: str) -> ActionTable:
    """Rows of cells as numbers; None is an unknown action."""
    if names is not None and (len(set(names)) != len(names) or not all(names)):
        raise UserError(f"{where} must name its columns differently; found {', '.join(names)}.")
    width = len(names) if names is not None else next((len(row) for row in rows if row is not None), 0)
    values = np.full((len(rows), width), np.nan)
    for i, row in enumerate(rows):
        if row is not None and len(row) != width:
            raise UserError(f"{where}: {at(i, len(rows))} has {len(row)} numbers, expected {width}.")
        for j, cell in enumerate(row or ()):
            if (value := _number(cell)) is None:
                raise UserError(f"{where}: {at(i, len(rows), j, names)} is {cell!r}, which is no number.")
            values[i, j] = value
    with np.errstate(over="ignore"):
        return _checked(values.astype(np.float32), names, where)


def _number(cell: object) -> float | None:
    """The number in a cell, NaN where it is unknown; None for anything else."""
    if cell is None:
        return np.nan
    if isinstance(cell, str) and (word := cell.strip().lower()) in WORDS:
        return WORDS[word]
    try:
        return float(cell) if isinstance(cell, str | int | float | np.number) else None
    except (ValueError, OverflowError):
        return None


def _checked(rows: Float32[np.ndarray, "t a"], names: tuple[str, ...] | None, where: str) -> ActionTable:
    """The table. Raises UserError without a row, and for an infinite number, which means nothing."""
    if not rows.size:
        raise UserError(f"{where} holds no rows of actions: {HOW}")
    if np.isinf(rows).any():
        i, j = (int(index) for index in np.argwhere(np.isinf(rows))[0])
        raise UserError(
            f"{where}: {at(i, len(rows), j, names)} is {rows[i, j]}, found where a finite number is needed."
        )
    return ActionTable(rows, names)


def at(row: int, rows: int, column: int | None = None, names: Sequence[str] | None = None) -> str:
    """Where a number is, for messages: rows and columns count from 1, and a column has its name."""
    if column is None:
        return f"row {row + 1} of {rows}"
    named = "" if names is None else f" ({names[column]!r})"
    return f"row {row + 1} of {rows}, column {column + 1}{named}"
