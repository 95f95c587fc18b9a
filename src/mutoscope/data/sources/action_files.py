"""The actions beside a video: `NAME.actions.npy`, `.csv` or `.json`, one row per frame.

Row t is done in frame t and leads to frame t + 1. Torch-free, so that a report about a folder starts fast.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from mutoscope.data.action_tables import ActionTable, read_action_table
from mutoscope.errors import UserError

SUFFIXES = (".actions.npy", ".actions.csv", ".actions.json")
KNOWN = (".npy", ".csv", ".json")


class RowCountError(UserError):
    """Actions of another number of frames than their video has."""


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
    if path.suffix.lower() not in KNOWN:
        raise UserError(f"{path} is no file of actions: known are {', '.join(KNOWN)}.")
    return _read(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=64)  # windows of one recording are often read in a row
def _read(path: Path, changed: int, size: int) -> ActionTable:
    return read_action_table(path)


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
