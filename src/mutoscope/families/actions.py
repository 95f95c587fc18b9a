"""Actions as people write them: by name in a text, in files, as dicts, lists and arrays. All become the same rows.

A text is a sequence of groups between spaces:

    right*8 attack*2 left+attack*8 dx=-2.5*4 .*3 ?

A group is NAME or NAME=VALUE, several of them joined by +, and *COUNT for that many frames. A name alone is 1, and the
numbers that a group does not name are 0. "." or "none" is no action (all numbers are 0), "?" is an unknown one. Part of
a name is enough where it is part of one name only; names with spaces or signs are written in double quotes.
"""

import difflib
import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mutoscope.actions import ActionSpec
from mutoscope.data.action_tables import ActionTable, at, read_action_table
from mutoscope.errors import UserError

Action = Mapping[str, float] | Sequence[float] | np.ndarray | Tensor | str
"""One action: {name: number} with 0 for absent names, all numbers in order, or a text of one group."""
Rows = np.ndarray | Tensor | Sequence[Action | None] | os.PathLike[str] | str
"""The actions of one clip: an array (t, a), a sequence of actions, a file, or a text."""
FILE_SUFFIXES = (".csv", ".json", ".npy")
MAX_ROWS = 100_000  # of a text: more frames than a clip can have
EXAMPLE = "Write actions as in: right*8 left+attack*2 dx=-2.5*4"

NAME = r'"(?:[^"]|"")*"|[^\s"=+*]+'
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
PART = re.compile(rf"(?P<name>{NAME})(?:=(?P<value>{NUMBER}))?")
GROUP = re.compile(
    rf"(?P<parts>(?:{NAME})(?:={NUMBER})?(?:\+(?:{NAME})(?:={NUMBER})?)*)(?:\*(?P<count>\d{{1,9}}))?(?=\s|$)"
)
SPACE = re.compile(r"\s*")
NO_ACTION, NO_ACTION_WORD, UNKNOWN = ".", "none", "?"


@dataclass(frozen=True)
class ActionRows:
    """Actions that are used as they are, in the units of the recording and the order of the specification.

    A row with NaN is an unknown action.
    """

    clips: tuple[Float[np.ndarray, "t a"], ...]
    is_listed: bool = False
    """Whether `clips` has one entry per sample; otherwise its single entry is for all samples."""
    warnings: tuple[str, ...] = ()


Actions = Rows | Sequence[Rows] | ActionRows
"""The actions of a call: rows for all samples, or a list of them, one per sample."""


def unnamed(size: int) -> ActionSpec:
    """The specification of models saved without one: action_0, action_1 ..., which the network reads as they are."""
    return ActionSpec.plain([f"action_{i}" for i in range(size)], "continuous")


def spec_of(spec: ActionSpec | None, size: int | None) -> ActionSpec | None:
    """The specification for a network that reads `size` numbers, given that of its model_index.json.

    None for a network without actions. Raises UserError if the two do not fit each other.
    """
    if spec is not None and spec.size != (size or 0):
        raise UserError(f"model_index.json names {spec.size} numbers of action, the network reads {size or 0}.")
    return unnamed(size) if spec is None and size is not None else spec


def read_actions(actions: Actions, spec: ActionSpec) -> ActionRows:
    """Actions in any of their forms. Raises UserError for whatever does not fit the specification."""
    if isinstance(actions, ActionRows):
        return actions
    if isinstance(actions, Mapping):
        raise UserError("Actions are rows, one per frame: put the actions of all frames into a list.")
    if not _is_listed(actions):
        rows, warnings = _clip_rows(cast(Rows, actions), spec)
        return ActionRows((rows,), False, warnings)
    found = [_clip_rows(rows, spec) for rows in cast(Sequence[Rows], actions)]
    lengths = sorted({len(rows) for rows, _ in found})
    if len(lengths) > 1:
        raise UserError(f"All samples need the same number of actions, found {lengths[0]} to {lengths[-1]} rows.")
    warnings = dict.fromkeys(itertools.chain.from_iterable(warnings for _, warnings in found))
    return ActionRows(tuple(rows for rows, _ in found), True, tuple(warnings))


def _is_listed(actions: Rows | Sequence[Rows]) -> bool:
    """Whether there are rows for each sample: a list of texts, files or sequences of rows, or an array (b, t, a)."""
    if isinstance(actions, str | os.PathLike) or not _is_sequence(actions):
        return False
    first = next((row for row in actions if row is not None), None)
    if isinstance(first, str | os.PathLike):
        return True
    return _is_sequence(first) and len(first) > 0 and (isinstance(first[0], Mapping | None) or _is_sequence(first[0]))


def _is_sequence(value: object) -> TypeGuard[Sequence[object] | np.ndarray]:
    """Whether a value is a list or an array, not a number or a text."""
    if isinstance(value, np.ndarray | Tensor):
        return value.ndim > 0
    return isinstance(value, Sequence) and not isinstance(value, str)


def _clip_rows(rows: Rows, spec: ActionSpec) -> tuple[Float[np.ndarray, "t a"], tuple[str, ...]]:
    """The rows of one clip, and warnings about them."""
    if isinstance(rows, str | os.PathLike):
        path = Path(os.path.expanduser(rows))
        if os.path.isfile(path):  # not Path.is_file, which fails for a text longer than a file name can be
            return rows_of_table(read_action_table(path), spec, str(path))
        if isinstance(rows, os.PathLike) or path.suffix.lower() in FILE_SUFFIXES:
            raise UserError(f"There is no file of actions {str(path)!r}.")
        return parse_actions(rows, spec), ()
    if _is_sequence(rows) and any(isinstance(row, Mapping | None) for row in rows):
        listed = cast(Sequence[Action | None], rows)
        return np.stack([action_row(row, spec, at(i, len(listed))) for i, row in enumerate(listed)]), ()
    return checked_rows(_as_array(rows), spec), ()


# ---------------------------------------------------------------------------------------------------------- texts


def parse_actions(text: str, spec: ActionSpec) -> Float[np.ndarray, "t a"]:
    """The rows of a text, see the top of this file. Raises UserError that names the word at fault."""
    rows: list[np.ndarray] = []
    total = 0
    for row, count in _groups(text, spec):
        total += count
        if total > MAX_ROWS:
            raise UserError(f"These actions are for more than {MAX_ROWS} frames: lower a count.")
        rows.append(np.repeat(row[None], count, axis=0))
    if not rows:
        raise UserError(f"There are no actions in {text!r}. {EXAMPLE}.")
    return np.concatenate(rows)


def _groups(text: str, spec: ActionSpec) -> Iterator[tuple[Float[np.ndarray, " a"], int]]:
    """The row of each group and for how many frames it is."""
    position = _skip_space(text, 0)
    while position < len(text):
        if (group := GROUP.match(text, position)) is None:
            word = text[position:].split(maxsplit=1)[0]
            raise UserError(
                f"Cannot read {word!r} in the actions: a group is NAME or NAME=NUMBER, joined by +, and *COUNT for "
                f"several frames. {EXAMPLE}."
            )
        count = int(group["count"] or 1)
        if count < 1:
            raise UserError(f"The count in {group[0]!r} must be at least 1.")
        yield _group_row(group["parts"], spec), count
        position = _skip_space(text, group.end())


def _skip_space(text: str, position: int) -> int:
    space = SPACE.match(text, position)
    return position if space is None else space.end()


def _group_row(parts: str, spec: ActionSpec) -> Float[np.ndarray, " a"]:
    """The row of NAME=VALUE parts joined by +."""
    if parts == UNKNOWN:
        return np.full(spec.size, np.nan, np.float32)
    has_name = NO_ACTION_WORD in (name.lower() for name in spec.names)
    if parts == NO_ACTION or (parts.lower() == NO_ACTION_WORD and not has_name):
        return np.zeros(spec.size, np.float32)
    found = [(part["name"], part["value"]) for part in PART.finditer(parts)]
    values: dict[str, float] = {}
    for name, value in found:
        name = name[1:-1].replace('""', '"') if name.startswith('"') else name
        if (known := spec.names[find_name(name, spec)]) in values:
            raise UserError(f"The actions {parts!r} name {known!r} twice.")
        values[known] = 1.0 if value is None else float(value)
    return action_row(values, spec, f"the action {parts!r}")


def format_actions(rows: Float[np.ndarray, "t a"], spec: ActionSpec) -> str:
    """The text that `parse_actions` reads as these rows. A row with NaN is written as unknown."""
    groups: list[str] = []
    for group, equal in itertools.groupby(_format_row(row, spec) for row in rows):
        count = len(list(equal))
        groups.append(group if count == 1 else f"{group}*{count}")
    return " ".join(groups)


def _format_row(row: Float[np.ndarray, " a"], spec: ActionSpec) -> str:
    if np.isnan(row).any():
        return UNKNOWN
    parts = [
        _quoted(name) + ("" if value == 1 else f"={np.float32(value)!s}")
        for name, value in zip(spec.names, row, strict=True)
        if value != 0
    ]
    return "+".join(parts) or NO_ACTION


def _quoted(name: str) -> str:
    is_plain = re.fullmatch(r'[^\s"=+*]+', name) and name not in (NO_ACTION, UNKNOWN)
    return name if is_plain else '"' + name.replace('"', '""') + '"'


def find_name(word: str, spec: ActionSpec) -> int:
    """The number of the action that a word names: its name, without regard to case if need be, or a part of it.

    Raises UserError for a word that is in no name or in several.
    """
    names, lowered = spec.names, [name.lower() for name in spec.names]
    tests = (
        [name == word for name in names],
        [name == word.lower() for name in lowered],
        [bool(word) and word.lower() in name for name in lowered],
    )
    for matches in tests:
        found = [i for i, fits in enumerate(matches) if fits]
        if len(found) == 1:
            return found[0]
        if found:
            listed = ", ".join(names[i] for i in found)
            raise UserError(f"{word!r} may be one of several actions: {listed}. Write more of the name.")
    raise UserError(unknown_name(word, spec))


def unknown_name(word: str, spec: ActionSpec) -> str:
    """The message about a name that the model does not have: the nearest one if there is one, and all of them."""
    lowered = [name.lower() for name in spec.names]
    close = difflib.get_close_matches(word.lower(), lowered, n=1, cutoff=0.5)
    hint = f" Did you mean {spec.names[lowered.index(close[0])]!r}?" if close else ""
    return f"There is no action {word!r}.{hint} Known: {', '.join(spec.names)}."


# ------------------------------------------------------------------------------------------------- rows and tables


def rows_of_table(table: ActionTable, spec: ActionSpec, where: str) -> tuple[Float[np.ndarray, "t a"], tuple[str, ...]]:
    """The rows of a file in the order of the specification, and a warning if columns are missing, which are 0.

    Columns without names are taken in order. Raises UserError for unknown names and another number of columns.
    """
    if table.names is None:
        return checked_rows(table.rows, spec, where), ()
    lowered = [name.lower() for name in spec.names]
    columns = [_column(name, spec.names, lowered) for name in table.names]
    unknown = [repr(name) for name, column in zip(table.names, columns, strict=True) if column is None]
    if unknown:
        raise UserError(
            f"{where}: there is no action {', '.join(unknown)}. Known: {', '.join(spec.names)}. Rename or "
            "remove the other columns."
        )
    used = [column for column in columns if column is not None]
    if len(set(used)) < len(used):
        raise UserError(f"{where} names a column twice: {', '.join(table.names)}.")
    rows = np.zeros((len(table.rows), spec.size), np.float32)
    rows[:, used] = table.rows
    rows[np.isnan(table.rows).all(axis=1)] = np.nan
    missing = [name for i, name in enumerate(spec.names) if i not in used]
    warning = (f"{where} has no {', '.join(missing)}: 0 in every frame.",) if missing else ()
    return checked_rows(rows, spec, where), warning


def _column(name: str, names: Sequence[str], lowered: Sequence[str]) -> int | None:
    """The number of an action with that name; a part of a name is not enough for a column of a file."""
    if name in names:
        return names.index(name)
    return lowered.index(name.lower()) if lowered.count(name.lower()) == 1 else None


def action_row(action: Action | None, spec: ActionSpec, where: str = "the action") -> Float[np.ndarray, " a"]:
    """One action as a row; None is an unknown one. Raises UserError for unknown names and values that do not fit."""
    if action is None:
        return np.full(spec.size, np.nan, np.float32)
    if isinstance(action, str):
        rows = parse_actions(action, spec)
        if len(rows) != 1:
            raise UserError(f"{action!r} is {len(rows)} actions, one is needed here: omit the count.")
        return rows[0]
    if not isinstance(action, Mapping):
        return checked_rows(_as_array([action]), spec)[0]
    row = np.zeros((1, spec.size), np.float32)
    used: dict[int, str] = {}
    for name, value in action.items():
        column = find_name(name, spec)
        if column in used:
            raise UserError(f"{used[column]!r} and {name!r} are the same action, {spec.names[column]!r}: name it once.")
        used[column] = name
        row[0, column] = _as_array([[value]])[0, 0]
        if np.isnan(row[0, column]):
            raise UserError(f"{where}: {name!r} is not a number. Use None for an unknown action.")
    return checked_rows(row, spec, where)[0]


def _as_array(rows: object) -> Float[np.ndarray, "*shape"]:
    """Rows of numbers as an array. Raises UserError for anything else."""
    rows = rows.detach().cpu().numpy() if isinstance(rows, Tensor) else rows
    try:
        with np.errstate(over="ignore"):
            return np.asarray(rows).astype(np.float32)
    except (ValueError, TypeError, OverflowError):
        raise UserError("Actions must be rows of numbers, all of one length.") from None


def checked_rows(
    rows: Float[np.ndarray, "*shape"], spec: ActionSpec, where: str = "Actions"
) -> Float[np.ndarray, "*shape"]:
    """The rows unchanged. Raises UserError unless they are (t, a), finite or NaN as a whole, and buttons are 0 or 1."""
    if rows.ndim != 2 or rows.shape[1] != spec.size:
        raise UserError(
            f"{where}: rows of {spec.size} numbers are needed ({', '.join(spec.names)}), found the shape "
            f"{tuple(rows.shape)}."
        )
    unknown = np.isnan(rows).all(axis=1, keepdims=True)  # (t, 1)
    broken = ~np.isfinite(rows) & ~unknown
    pressed = np.array(spec.is_button) & ~unknown & (rows != 0) & (rows != 1)
    finite = "must be a finite number, or NaN in the whole row if the action is unknown"
    for wrong, rule in ((broken, finite), (pressed, "is a button and must be 0 or 1")):
        if wrong.any():
            i, j = (int(index) for index in np.argwhere(wrong)[0])
            spot = repr(spec.names[j]) if len(rows) == 1 else at(i, len(rows), j, spec.names)
            raise UserError(f"{where}: {spot} {rule}, found {rows[i, j]:g}.")
    return rows


# ------------------------------------------------------------------------------------------------------- scaling


def scaled_tensor(rows: Float[Tensor, "*shape"], spec: ActionSpec) -> Float[Tensor, "*shape"]:
    """`ActionSpec.scaled` on the device of the rows, for training batches: the same numbers where it has float64."""
    dtype = torch.float32 if rows.device.type == "mps" else torch.float64
    offset = torch.tensor(spec.offset, dtype=dtype, device=rows.device)
    scale = torch.tensor(spec.scale, dtype=dtype, device=rows.device)
    return ((rows.to(dtype) - offset) / scale).to(torch.float32)
