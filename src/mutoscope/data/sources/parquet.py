"""Parquet files, through pyarrow: whole tables, and the rows of one episode in a file of many.

pyarrow is imported inside the functions, so that everything else works without it.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mutoscope.errors import UserError, reason

if TYPE_CHECKING:
    from types import ModuleType

BATCH_ROWS = 64  # rows of images decoded together: a group of rows may hold gigabytes of them
ROWS_TOGETHER = 65_536
MAX_VALUES = 2**25  # of a whole table, 16 to 100 bytes each as Python values
MAX_RATIO, ALWAYS_FINE = 256, 256 * 2**20  # bytes of a table in memory, as a multiple of its file and in any case
Row = dict[str, Any]  # of a table, by column; cells may be numbers, texts, bytes, lists or objects


def require_pyarrow(path: Path) -> "ModuleType":
    """pyarrow.parquet, or a UserError that says how to get it."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError(
            f"{path} needs pyarrow to be read; install it with: pip install 'mutoscope[data]' (or: pip install pyarrow)"
        ) from None
    return pyarrow.parquet


def read_rows(path: Path, without: str | None = None) -> list[Row]:
    """All rows of a table. without: columns that begin so are skipped. Raises UserError for a damaged file."""
    parquet = require_pyarrow(path)
    from pyarrow import ArrowException

    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            kept = [name for name in names if without is None or not name.startswith(without)]
            check_declared(file, path)
            return [row for batch in bounded_batches(file, kept, path) for row in batch.to_pylist()]
    except (ArrowException, OSError) as error:
        raise UserError(unreadable(path, error)) from None


def check_declared(file: Any, path: Path) -> None:
    """Raises UserError for a table that declares more values than memory is given to."""
    rows, columns = file.metadata.num_rows, file.metadata.num_columns
    if rows * columns > MAX_VALUES:
        raise UserError(f"{path} declares {rows:,} rows of {columns:,} columns; at most {MAX_VALUES:,} values are read")


def bounded_batches(file: Any, columns: Sequence[str], path: Path) -> Iterator[Any]:
    """The rows of a table a few at a time. Raises UserError where they unpack to far more than the file has bytes.

    A text that is stored once may fill a million rows.
    """
    most, total = max(MAX_RATIO * path.stat().st_size, ALWAYS_FINE), 0
    for batch in file.iter_batches(_rows_together(file), columns=list(columns)):
        total += batch.nbytes
        if total > most:
            raise UserError(f"{path} unpacks to more than {most:,} bytes; it is damaged or made to fill memory")
        yield batch


def _rows_together(file: Any) -> int:
    """Rows whose longest possible values fit into memory together."""
    groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
    longest = max(
        (group.column(n).total_uncompressed_size for group in groups for n in range(group.num_columns)), default=1
    )
    return max(1, min(ROWS_TOGETHER, ALWAYS_FINE // max(longest, 1)))


def unreadable(path: Path, error: Exception) -> str:
    """A sentence about a file that is missing, cut off or damaged."""
    if isinstance(error, FileNotFoundError) or not path.is_file():
        return f"there is no file {path}"
    return f"{path} is cut off or damaged ({reason(error)})"


class EpisodeRows:
    """A Parquet file with one row per frame of one or many episodes, which it reads one episode at a time.

    Only positions are kept in memory. Raises UserError for a file that is missing, cut off or damaged.
    """

    def __init__(self, path: Path):
        self.path, parquet = path, require_pyarrow(path)
        from pyarrow import ArrowException

        try:
            with parquet.ParquetFile(path) as file:
                groups = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
                self.columns: tuple[str, ...] = tuple(file.schema_arrow.names)
                check_declared(file, path)
                episodes = file.read(columns=["episode_index"]).column(0).to_numpy()
        except (ArrowException, OSError, IndexError, KeyError) as error:
            raise UserError(unreadable(path, error)) from None
        self.group_ends = np.cumsum([0, *groups])
        starts = np.flatnonzero(np.diff(episodes, prepend=-1))  # episodes are numbered from 0
        ends = [*starts[1:].tolist(), len(episodes)]
        self.ranges = {
            int(episodes[start]): (int(start), int(end)) for start, end in zip(starts.tolist(), ends, strict=True)
        }

    def length(self, episode: int) -> int:
        """Rows of an episode, 0 for one that is not in the file."""
        first, end = self.ranges.get(episode, (0, 0))
        return end - first

    def read(self, episode: int, columns: Sequence[str], start: int = 0, stop: int | None = None) -> dict[str, Any]:
        """Columns of frames start ... stop - 1 of an episode as pyarrow arrays, by name."""
        import pyarrow

        batches = list(self._batches(episode, columns, start, stop, None))
        return {name: pyarrow.chunked_array([batch.column(n) for batch in batches]) for n, name in enumerate(columns)}

    def cells(self, episode: int, column: str, start: int, stop: int) -> Iterator[Any]:
        """The cells of a column in frames start ... stop - 1, a few at a time."""
        for batch in self._batches(episode, [column], start, stop, BATCH_ROWS):
            yield from batch.column(0).to_pylist()

    def _batches(
        self, episode: int, columns: Sequence[str], start: int, stop: int | None, size: int | None
    ) -> Iterator[Any]:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile

        first, end = self.ranges[episode]
        first, end = first + start, end if stop is None else min(end, first + stop)
        groups = np.flatnonzero((self.group_ends[:-1] < end) & (self.group_ends[1:] > first)).tolist()
        position = int(self.group_ends[groups[0]]) if groups else first
        try:
            with ParquetFile(self.path) as file:
                whole = max(1, int(self.group_ends[-1]))
                for batch in file.iter_batches(size or whole, row_groups=groups, columns=list(columns)):
                    low, high = max(first - position, 0), min(end - position, len(batch))
                    position += len(batch)
                    if low < high:
                        yield batch.slice(low, high - low).select(list(columns))
                    if position >= end:
                        return
        except (ArrowException, OSError) as error:
            raise UserError(unreadable(self.path, error)) from None
