"""Batches whose contents depend on (seed, step) only: not on workers, ranks, or where a run was interrupted."""

import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from mutoscope.data.base import BatchT, ClipSource
from mutoscope.errors import UserError


@dataclass(frozen=True)
class StepSampler(Sampler[list[int]]):
    """The clip indices that one rank reads in updates start_step ... num_steps-1.

    Update s uses stream positions s·batch_size ... (s+1)·batch_size - 1. In an endless source position p is clip p.
    In a source of n clips position p is entry p mod n of the permutation of epoch p div n, drawn from (seed, epoch);
    epochs follow each other without dropping the remainder. The step is all that a checkpoint must hold to resume it.
    """

    num_clips: int | None
    batch_size: int
    num_steps: int
    seed: int = 0
    start_step: int = 0
    rank: int = 0
    world_size: int = 1

    def __len__(self) -> int:
        return max(0, self.num_steps - self.start_step)

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start_step, self.num_steps):
            yield self.indices(step)

    def indices(self, step: int) -> list[int]:
        """Clip indices of this rank at `step`."""
        share = self.batch_size // self.world_size
        first = step * self.batch_size + self.rank * share
        return [stream_index(position, self.num_clips, self.seed) for position in range(first, first + share)]


def stream_index(position: int, num_clips: int | None, seed: int) -> int:
    """The clip at one position of the endless stream (see StepSampler)."""
    if num_clips is None:
        return position
    epoch, offset = divmod(position, num_clips)
    return int(_permutation(num_clips, seed, epoch)[offset])


@lru_cache(maxsize=4)
def _permutation(num_clips: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(num_clips)


def make_loader(
    source: ClipSource[BatchT],
    batches: Sampler[list[int]] | Sequence[list[int]],
    num_workers: int = 0,
    seed: int = 0,
) -> Iterable[BatchT]:
    """Batches of `source` in the order of `batches`, each a list of clip indices; read by `num_workers` processes.

    What a source says about a file arrives as it was said, whichever process reads it.
    """
    if num_workers:
        return _opened(_loader(cast(ClipSource[BatchT], _Tried(source)), batches, num_workers, seed))
    return _loader(source, batches, num_workers, seed)


def _loader(
    source: ClipSource[BatchT], batches: Sampler[list[int]] | Sequence[list[int]], num_workers: int, seed: int
) -> DataLoader[BatchT]:
    return DataLoader(
        cast(Dataset[BatchT], source),  # DataLoader only indexes it, with the lists of `batches`
        sampler=batches,
        batch_size=None,
        num_workers=num_workers,
        worker_init_fn=_leave_signals_to_parent,
        generator=torch.Generator().manual_seed(seed),
        prefetch_factor=2 if num_workers else None,
    )


@dataclass(frozen=True)
class _Failed:
    """A batch that could not be read."""

    error: UserError | OSError


class _Tried(Generic[BatchT]):
    """A source whose refusals are passed on as values: torch would put a traceback of the worker into their message."""

    def __init__(self, source: ClipSource[BatchT]):
        self.source = source

    def __getitem__(self, indices: Sequence[int]) -> BatchT | _Failed:
        try:
            return self.source[indices]
        except (UserError, OSError) as error:
            return _Failed(error)


def _opened(batches: Iterable[BatchT]) -> Iterator[BatchT]:
    """The batches. Raises what a worker could not read."""
    for batch in batches:
        if isinstance(batch, _Failed):
            raise batch.error
        yield batch


def _leave_signals_to_parent(worker: int) -> None:
    """Signals reach the whole process group; the parent needs its workers until it has stopped cleanly."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
