"""Figures of many clips, a row each: computed in chunks, shared among processes, kept on disk, and joined in order.

Clips are read and forgotten chunk by chunk; what stays are rows such as the 400 numbers of a clip's features. A chunk
is always the same clips in the same batches, so a figure does not depend on how many processes took part or how
often the work was interrupted: the same rows are joined in the same order.

Processes are those of `torch.distributed`, where a group was joined before (torchrun); the first one gets all rows.
"""

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from mutoscope.errors import UserError

CHUNK = 32  # clips a chunk
STATE = "state.json"


@dataclass(frozen=True)
class Rows:
    """Named tensors with one row per clip, and what there is to say about clips that gave none."""

    tensors: dict[str, Tensor]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values()), ()))

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]


@dataclass(frozen=True)
class State:
    """A folder in which finished chunks are kept, so that a killed evaluation continues; or nowhere."""

    folder: Path | None = None

    @classmethod
    def open(cls, folder: str | os.PathLike[str] | None, settings: dict[str, object]) -> "State":
        """Make the folder, or check that it holds chunks of the same evaluation. Raises UserError otherwise."""
        if folder is None:
            return cls()
        path, text = Path(folder).expanduser(), json.dumps(settings, indent=2, sort_keys=True)
        rank, world = place()
        if rank > 0:
            dist.barrier()  # until the first process has made it
        cls._check(path, text)
        if rank == 0 and world > 1:
            dist.barrier()
        return cls(path)

    @staticmethod
    def _check(path: Path, text: str) -> None:
        if (path / STATE).is_file():
            if (path / STATE).read_text(encoding="utf-8") != text:
                raise UserError(
                    f"{str(path)!r} holds parts of another evaluation (see {STATE} there): name another folder, or "
                    "delete that one."
                )
        elif path.exists() and any(path.iterdir()):
            raise UserError(f"{str(path)!r} is not an empty folder: name a new one for the state of the evaluation.")
        else:
            try:
                path.mkdir(parents=True, exist_ok=True)
                write_atomically(path / STATE, text.encode())
            except OSError as error:
                raise UserError(f"Cannot write into {str(path)!r}: {error.strerror}. Choose another place.") from None

    def chunk(self, label: str, number: int) -> Path | None:
        return self.folder and self.folder / f"{label}-{number:06d}.safetensors"


def gather_rows(
    count: int,
    measure: Callable[[range], Rows],
    label: str,
    state: State = State(),
    chunk_size: int = CHUNK,
    progress: bool = False,
) -> Rows | None:
    """Rows of clips 0 ... count - 1 from `measure(range)`, which is called once for every chunk that is not on disk.

    Processes take chunks in turn. The first process gets all rows in order, the others None.
    """
    rank, world = place()
    chunks = [range(start, min(start + chunk_size, count)) for start in range(0, count, chunk_size)]
    numbers = range(rank, len(chunks), world)
    own = Collected(sum(len(chunks[number]) for number in numbers))
    for number in tqdm(numbers, label, disable=not progress or rank > 0, leave=False):
        path = state.chunk(label, number)
        if path is not None and path.is_file():
            own.add(number, read_rows(path))
            continue
        rows = measure(chunks[number])
        if path is not None:
            write_rows(path, rows)
        own.add(number, rows)
    if world == 1:
        return own.rows()
    parts = _gathered(own.parts())
    return None if parts is None else joined([parts[number] for number in sorted(parts)])


class Collected:
    """Rows of chunks, one after the other, in tensors made once for all of them.

    Small tensors kept for every chunk would lie between the large ones that come and go, and an allocator that cannot
    move them would need more and more room.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity, self.used = capacity, 0
        self.tensors: dict[str, Tensor] = {}
        self.places: dict[int, tuple[slice, tuple[str, ...]]] = {}

    def add(self, number: int, rows: Rows) -> None:
        """Chunks come in order; every one that has rows must have the same names."""
        place = slice(self.used, self.used + len(rows))
        for name, value in rows.tensors.items():
            if name not in self.tensors:
                self.tensors[name] = value.new_empty((self.capacity, *value.shape[1:]))
            self.tensors[name][place] = value
        self.places[number] = (place, rows.notes)
        self.used = place.stop

    def rows(self) -> Rows:
        """All of them."""
        notes = tuple(note for _, some in self.places.values() for note in some)
        return Rows({name: value[: self.used] for name, value in self.tensors.items()}, notes)

    def parts(self) -> dict[int, Rows]:
        """By the number of the chunk."""
        return {
            number: Rows({name: value[place].clone() for name, value in self.tensors.items()}, notes)
            for number, (place, notes) in self.places.items()
        }


def place() -> tuple[int, int]:
    """Rank of this process and how many there are."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def joined(parts: Sequence[Rows]) -> Rows:
    """Rows one after the other; every part that has rows must have the same names."""
    filled = [part for part in parts if len(part)]
    names = filled[0].tensors if filled else {}
    return Rows(
        {name: torch.cat([part.tensors[name] for part in filled]) for name in names},
        tuple(note for part in parts for note in part.notes),
    )


def write_rows(path: Path, rows: Rows) -> None:
    """Write one chunk under a temporary name, then rename: a file that is there is whole."""
    tensors = {name: value.contiguous() for name, value in rows.tensors.items()}
    write_atomically(path, save(tensors, metadata={"notes": json.dumps(rows.notes)}))


def read_rows(path: Path) -> Rows:
    try:
        with safe_open(path, framework="pt") as file:
            notes = json.loads(file.metadata()["notes"])
            return Rows({name: file.get_tensor(name) for name in file.keys()}, tuple(notes))  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}. Delete it, and its clips are measured again.") from None


def write_atomically(path: Path, content: bytes) -> None:
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _gathered(own: dict[int, Rows]) -> dict[int, Rows] | None:
    """The chunks of all processes, on the first one."""
    rank, world = place()
    everyone: list[dict[int, Rows]] | None = [{} for _ in range(world)] if rank == 0 else None
    dist.gather_object(own, everyone)
    if everyone is None:
        return None
    return {number: rows for chunks in everyone for number, rows in chunks.items()}
