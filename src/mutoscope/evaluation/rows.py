"""Rows of many clips: measured in chunks, shared among processes, stored on disk, and joined in order.

Clips are read chunk by chunk and dropped; their rows stay, such as the 400 features of a clip. A chunk always holds the
same clips in the same batches and rows are joined in the same order, so a figure depends neither on the number of
processes nor on interruptions.

Processes are those of a `torch.distributed` group that was joined before (torchrun); the first one gets all rows.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from mutoscope.declared import check_safetensors
from mutoscope.errors import UserError, reason
from mutoscope.ownership import is_temporary
from mutoscope.writing import new_folder, write_whole

CHUNK = 32  # clips per chunk
STATE = "state.json"


@dataclass(frozen=True)
class Rows:
    """Named tensors with one row per clip, and a note for each clip that has none."""

    tensors: dict[str, Tensor]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values()), ()))

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]


Together = Callable[[], AbstractContextManager[object]]
"""Around an exchange that processes reach far apart in time. It raises UserError for one that has died meanwhile."""


@contextmanager
def agreed(together: Together) -> Iterator[None]:
    """Around work of some processes: whatever it raises on one of them ends all, the others without a message."""
    failure: BaseException | None = None
    try:
        yield
    except UserError as error:
        failure = error
    if rank_and_world_size()[1] > 1:
        refused: list[bool | None] = [None] * rank_and_world_size()[1]
        with together():
            dist.all_gather_object(refused, failure is not None)
        if failure is None and any(refused):
            raise UserError
    if failure is not None:
        raise failure


@dataclass(frozen=True)
class State:
    """A folder of finished chunks, from which a killed evaluation continues; without a folder, none are stored."""

    folder: Path | None = None
    together: Together = nullcontext
    """How processes wait for each other before they exchange rows."""

    @classmethod
    def open(
        cls, folder: str | os.PathLike[str] | None, settings: dict[str, object], together: Together = nullcontext
    ) -> "State":
        """Create the folder, or check that it holds chunks of the same evaluation. Raises UserError otherwise."""
        if folder is None:
            return cls(together=together)
        path, text = Path(folder).expanduser(), json.dumps(settings, indent=2, sort_keys=True)
        with agreed(together):
            if rank_and_world_size()[0] == 0:
                cls._check(path, text)
        return cls(path, together)

    @staticmethod
    def _check(path: Path, text: str) -> None:
        if (path / STATE).is_file():
            if (path / STATE).read_text(encoding="utf-8") != text:
                raise UserError(
                    f"{str(path)!r} holds parts of another evaluation (see {STATE} there): name another folder, or "
                    "delete that one."
                )
        elif path.exists() and any(not is_temporary(entry) for entry in path.iterdir()):
            raise UserError(f"{str(path)!r} is not an empty folder: name a new one for the state of the evaluation.")
        else:
            write_whole(new_folder(path) / STATE, text)

    def chunk(self, label: str, number: int) -> Path | None:
        return self.folder and self.folder / f"{label}-{number:06d}.safetensors"


def chunk_ranges(count: int, size: int = CHUNK) -> tuple[range, ...]:
    """Consecutive ranges of at most `size` numbers that cover 0 ... count - 1."""
    return tuple(range(start, min(start + size, count)) for start in range(0, count, size))


def gather_rows(
    chunks: Sequence[range],
    measure: Callable[[range], Rows],
    label: str,
    state: State = State(),
    progress: bool = False,
) -> Rows | None:
    """Rows of the clips of all chunks from `measure(chunk)`, which is called once for every chunk not on disk.

    Processes take chunks in turn. The first process gets all rows in order, the others None.
    """
    rank, world_size = rank_and_world_size()
    numbers = range(rank, len(chunks), world_size)
    own = Collected(sum(len(chunks[number]) for number in numbers))
    for number in tqdm(numbers, label, unit="chunk", disable=not progress or rank > 0, leave=False):
        path = state.chunk(label, number)
        if path is not None and path.is_file():
            own.add(number, read_rows(path))
            continue
        rows = measure(chunks[number])
        if path is not None:
            write_rows(path, rows)
        own.add(number, rows)
    if world_size == 1:
        return own.rows()
    with state.together():
        parts = _gathered(own.parts())
    return None if parts is None else joined([parts[number] for number in sorted(parts)])


class Collected:
    """Rows of chunks, one after the other, in tensors allocated once for all of them.

    Small tensors per chunk would fragment the heap between the large temporary ones, and memory would grow.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity, self.used = capacity, 0
        self.tensors: dict[str, Tensor] = {}
        self.chunks: dict[int, tuple[slice, tuple[str, ...]]] = {}

    def add(self, number: int, rows: Rows) -> None:
        """Append a chunk; all chunks that have rows must have the same names."""
        filled = slice(self.used, self.used + len(rows))
        for name, value in rows.tensors.items():
            if name not in self.tensors:
                self.tensors[name] = value.new_empty((self.capacity, *value.shape[1:]))
            self.tensors[name][filled] = value
        self.chunks[number] = (filled, rows.notes)
        self.used = filled.stop

    def rows(self) -> Rows:
        """Rows of all chunks."""
        notes = tuple(note for _, some in self.chunks.values() for note in some)
        return Rows({name: value[: self.used] for name, value in self.tensors.items()}, notes)

    def parts(self) -> dict[int, Rows]:
        """Rows by the number of the chunk."""
        return {
            number: Rows({name: value[filled].clone() for name, value in self.tensors.items()}, notes)
            for number, (filled, notes) in self.chunks.items()
        }


def rank_and_world_size() -> tuple[int, int]:
    """Rank of this process and the number of processes."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def joined(parts: Sequence[Rows]) -> Rows:
    """Rows one after the other; all parts that have rows must have the same names."""
    filled = [part for part in parts if len(part)]
    names = filled[0].tensors if filled else {}
    return Rows(
        {name: torch.cat([part.tensors[name] for part in filled]) for name in names},
        tuple(note for part in parts for note in part.notes),
    )


def write_rows(path: Path, rows: Rows) -> None:
    """Write one chunk under a temporary name, then rename it, so that every file is complete."""
    tensors = {name: value.contiguous() for name, value in rows.tensors.items()}
    write_whole(path, save(tensors, metadata={"notes": json.dumps(rows.notes)}))


def read_rows(path: Path) -> Rows:
    try:
        check_safetensors(path)
        with safe_open(path, framework="pt") as file:
            notes = json.loads(file.metadata()["notes"])
            return Rows({name: file.get_tensor(name) for name in file.keys()}, tuple(notes))  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged: {reason(error)}. Delete it, and its clips are measured again.") from None


def _gathered(own: dict[int, Rows]) -> dict[int, Rows] | None:
    """The chunks of all processes, on the first one."""
    rank, world_size = rank_and_world_size()
    everyone: list[dict[int, Rows]] | None = [{} for _ in range(world_size)] if rank == 0 else None
    dist.gather_object(own, everyone)
    if everyone is None:
        return None
    return {number: rows for chunks in everyone for number, rows in chunks.items()}
