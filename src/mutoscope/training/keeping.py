"""Which checkpoints a run writes, and which of them it keeps.

A checkpoint is written each `checkpoint_every` updates, each `checkpoint_minutes`, after the last update, when a signal
requests one, and when the held-back loss is the lowest so far. Kept are the newest `checkpoints_total_limit`, the one
with the lowest held-back loss, and, until a newer one is confirmed (`training/health.py`), the newest confirmed one.
"""

import json
import math
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

from torch import Tensor

from mutoscope.training.checkpoint import checkpoint_paths, step_of
from mutoscope.training.config import LoopConfig
from mutoscope.training.health import PROBATION, Health
from mutoscope.writing import new_folder, write_whole

BEST = "best.json"
SUSPECT = "suspect-{:08d}.pt"  # a checkpoint that its following updates did not confirm; resuming does not read it
MINUTE = 60.0

Write = Callable[[int, Collection[int]], object]
"""Writes the checkpoint after so many updates; rotation spares the given ones."""


class CheckpointKeeper:
    """The checkpoints of one run, on its main process; other processes have one that does nothing."""

    def __init__(
        self,
        folder: Path,
        loop: LoopConfig,
        start: int,
        health: Health,
        write: Write,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.folder, self.loop, self.health, self.write, self.clock = folder, loop, health, write, clock
        self._saved_at = clock()
        # Checkpoints of an earlier process: the updates after most of them are in its past, and it went on.
        earlier = [step for step in self.steps() if 0 < step <= start]
        self._confirmed = {step for step in earlier if step + PROBATION <= start}
        self._waiting = [step for step in earlier if step not in self._confirmed]
        self._best = self._read_best(start)

    def steps(self) -> list[int]:
        """Updates done at each checkpoint, in order."""
        return [step_of(path) for path in checkpoint_paths(self.folder)]

    def is_due(self) -> bool:
        """Whether so much time has passed since the last checkpoint that another one is due."""
        return 0 < self.loop.checkpoint_minutes * MINUTE <= self.clock() - self._saved_at

    def observe(self, step: int, loss: Tensor, grad_norm: Tensor) -> None:
        """Loss and gradient norm of update `step`; confirms the checkpoints that have had their following updates."""
        self.health.observe(step, loss, grad_norm)
        if self._waiting and step + 1 - self._waiting[0] >= PROBATION:
            self._decide()

    def save(self, steps_done: int) -> None:
        """Writes a checkpoint and removes those that are not kept."""
        self._confirmed.discard(steps_done)
        if steps_done not in self._waiting:
            self._waiting.append(steps_done)
        self.write(steps_done, self._spared(steps_done))
        self._saved_at = self.clock()

    def improves(self, cost: float) -> bool:
        """Whether a held-back loss is lower than that of every checkpoint so far."""
        return cost < self._best[1]

    def save_best(self, steps_done: int, cost: float) -> None:
        """Writes the checkpoint with the lowest held-back loss, which stays."""
        self._best = (steps_done, cost)
        # First, since a run that is killed in between repeats the updates before a checkpoint, but none after it.
        write_whole(new_folder(self.folder) / BEST, json.dumps({"step": steps_done, "cost": cost}) + "\n")
        self.save(steps_done)

    def after_divergence(self) -> str:
        """Sets aside the checkpoints that led to a loss which is not finite; names the one to continue from.

        Where none is confirmed, the oldest stays: it was written longest before the loss went wrong.
        """
        self._decide()
        good = [step for step in self.steps() if step in self._confirmed]
        doubtful = [step for step in self.steps() if step not in self._confirmed]
        if not doubtful and not good:
            return "there is no earlier checkpoint"
        aside = doubtful if good else doubtful[1:]
        for step in aside:
            with suppress(OSError):
                (self.folder / f"step-{step:08d}.pt").rename(self.folder / SUSPECT.format(step))
        named = f"the last good checkpoint is {checkpoint_paths(self.folder)[-1]}"
        if not good:
            named += ", which the updates after it do not confirm"
        return f"{named} (not confirmed, and set aside: {_listed(aside)})" if aside else named

    def _decide(self) -> None:
        """Moves checkpoints that are good from those that wait to those that are confirmed; others wait no longer."""
        for step in list(self._waiting):
            is_good = self.health.verdict(step)
            if is_good is not None:
                self._waiting.remove(step)
            if is_good:
                self._confirmed.add(step)

    def _spared(self, newest: int) -> set[int]:
        kept = sorted({*self.steps(), newest})[-self.loop.checkpoints_total_limit :]
        confirmed = [step for step in self.steps() if step in self._confirmed]
        spared = {self._best[0]}
        if confirmed and not any(step in self._confirmed for step in kept):
            spared.add(confirmed[-1])
        return spared

    def _read_best(self, start: int) -> tuple[int, float]:
        """Step and cost of the best checkpoint; one after `start` belongs to updates that are repeated."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            found = json.loads((self.folder / BEST).read_text())
            if int(found["step"]) <= start and int(found["step"]) in self.steps():
                return int(found["step"]), float(found["cost"])
        return -1, math.inf


def _listed(steps: list[int]) -> str:
    return ", ".join(f"step-{step:08d}.pt" for step in steps)
