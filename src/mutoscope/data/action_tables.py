"""Files of actions: rows of numbers with or without names, as .csv, .json or .npy.

Row t is done in frame t and leads to frame t + 1. Torch-free, so that a report about a folder starts fast.
"""

import csv
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from mutoscope.data.text_files import read_text
from mutoscope.errors import UserError

UNKNOWN = "?"  # the cell of an action that is unknown
DELIMITERS = (",", ";", "\t")  # a spreadsheet with decimal commas writes semicolons
QUOTED = re.compile(r'"[^"]*"')
HOW = "write rows of numbers as .csv, .json or .npy, one row per frame."


@dataclass(frozen=True)
class ActionTable:
    """The rows of a file, and the names of its columns where the file has them. A row of NaN is an unknown action."""

    rows: Float[np.ndarray, "t a"]
    names: tuple[str, ...] | None = None


def read_action_table(path: Path) -> ActionTable:
    """The actions of a file, float32.

    .csv (and any other text): cells between commas, semicolons or tabs; a first line with a cell that is no number
    holds the names. .json: a list of rows, each a list of numbers or an object {name: number} whose absent names are 0.
    .npy: an array (t, a).
    An unknown action is a CSV row of "?", or `null` in JSON. Raises UserError, with row and column, for any other cell
    that is no finite number, and for rows of unequal length.
    """
    suffix = path.suffix.lower()
    table = _from_numpy(path) if suffix == ".npy" else _from_json(path) if suffix == ".json" else _from_csv(path)
    if not len(table.rows):
        raise UserError(f"{path} holds no actions (no rows): {HOW}")
    return table


def _from_numpy(path: Path) -> ActionTable:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} holds no actions ({error}): {HOW}") from None
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind not in "biuf":
        found = f"{array.dtype} of the shape {array.shape}" if isinstance(array, np.ndarray) else "an archive"
        raise UserError(f"{path} must hold rows of numbers, one row per frame; found {found}.")
    return ActionTable(_checked(array.astype(np.float64), path, None))


def _from_json(path: Path) -> ActionTable:
    try:
        values = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} holds no actions ({error}): {HOW}") from None
    if not isinstance(values, list) or not all(value is None or isinstance(value, list | dict) for value in values):
        raise UserError(f"{path} holds no actions: it must hold rows, lists of numbers or objects {{name: number}}.")
    objects = [value for value in values if isinstance(value, dict)]
    if not objects:
        return _table(path, values, None)
    if any(isinstance(value, list) for value in values):
        raise UserError(f"{path} mixes rows with names and rows without: name the numbers of all rows or of none.")
    names = tuple(dict.fromkeys(name for value in objects for name in value))
    rows = [None if value is None else [value.get(name, 0) for name in names] for value in values]
    return _table(path, rows, names)


def _from_csv(path: Path) -> ActionTable:
    lines = [line for line in read_text(path).splitlines() if line.strip()]
    if not lines:
        return ActionTable(np.zeros((0, 0), np.float32))
    first = lines[0].lstrip("#")  # numpy.savetxt writes names as a comment
    later = [line for line in lines[1:] if not line.startswith("#")]
    delimiter = max(DELIMITERS, key=re.sub(QUOTED, "", first).count)
    try:
        cells = [[cell.strip() for cell in row] for row in csv.reader([first, *later], delimiter=delimiter)]
    except csv.Error as error:
        raise UserError(f"{path} holds no actions ({error}): {HOW}") from None
    has_names = not all(_is_number(cell) for cell in cells[0])
    rows = cells[1:] if has_names else cells
    unknown = [all(cell == UNKNOWN for cell in row) for row in rows]
    known = [None if gone else row for row, gone in zip(rows, unknown, strict=True)]
    return _table(path, known, tuple(cells[0]) if has_names else None, len(cells[0]))


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return cell == UNKNOWN
    return True


def _table(
    path: Path, rows: Sequence[Sequence[object] | None], names: tuple[str, ...] | None, width: int | None = None
) -> ActionTable:
    """Rows of cells as numbers; None is an unknown action. `width`: cells of every row, by default of the first one."""
    if width is None:
        width = len(names) if names is not None else next((len(row) for row in rows if row is not None), 0)
    values = np.full((len(rows), width), np.nan)
    for i, row in enumerate(rows):
        if row is not None and len(row) != width:
            raise UserError(f"{path}: {at(i, len(rows))} has {len(row)} numbers, expected {width}.")
        for j, cell in enumerate(row or ()):
            values[i, j] = _number(cell, f"{path}: {at(i, len(rows), j, names)}")
    unknown = np.array([row is None for row in rows], dtype=bool)
    return ActionTable(_checked(values, path, names, unknown), names)


def _number(cell: object, where: str) -> float:
    if isinstance(cell, str | int | float):
        try:
            return float(cell)
        except (ValueError, OverflowError):
            pass
    raise UserError(f"{where} is {cell!r}, which is no number. {HOW.capitalize()}")


def _checked(
    rows: Float[np.ndarray, "t a"],
    path: Path,
    names: Sequence[str] | None,
    unknown: np.ndarray | None = None,
) -> Float[np.ndarray, "t a"]:
    """The rows as float32. Raises UserError for a number that is not finite in a row that is not marked as unknown."""
    with np.errstate(over="ignore"):
        rows = rows.astype(np.float32)
    wrong = ~np.isfinite(rows)
    if unknown is not None:
        wrong &= ~unknown[:, None]
    if wrong.any():
        i, j = (int(index) for index in np.argwhere(wrong)[0])
        raise UserError(
            f"{path}: {at(i, len(rows), j, names)} is {rows[i, j]}, found where a finite number is needed. Write a "
            f"number, or mark an unknown action: a row of {UNKNOWN} in a .csv file, null in a .json file."
        )
    return rows


def at(row: int, rows: int, column: int | None = None, names: Sequence[str] | None = None) -> str:
    """Where a number is, for messages: rows and columns count from 1, and a column has its name."""
    if column is None:
        return f"row {row + 1} of {rows}"
    named = "" if names is None else f" ({names[column]!r})"
    return f"row {row + 1} of {rows}, column {column + 1}{named}"
