"""Whether a checkpoint is good: the updates that followed it decide.

A loss becomes infinite some updates after the weights went wrong, and a checkpoint that was saved in between continues
into the same end. A checkpoint is therefore confirmed only by PROBATION updates after it. All of their losses and
gradient norms must be finite, and the median of each must be at most EXPLODED times the median of the WINDOW updates
before. Medians, because healthy runs have single updates with many times the usual gradient norm; a factor of ten,
because the loss of every recipe here falls or stays, also where adversarial training starts, and a norm that is ten
times as large for twenty updates has not been seen in a run that recovered.
"""

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

PROBATION = 20  # updates after a checkpoint that confirm it
WINDOW = 100  # updates before a checkpoint that they are compared with
EXPLODED = 10.0  # times the median before


@dataclass(frozen=True)
class Update:
    """Loss and global gradient norm of one update, counted from 0."""

    step: int
    loss: float
    grad_norm: float

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


class Health:
    """The latest updates of a run. Numbers stay on their device until they are needed, all of them in one transfer."""

    def __init__(self, earlier: Iterable[Mapping[str, float]] = ()):
        """`earlier`: lines of the log of a run that is continued."""
        self._unread: list[tuple[int, Tensor, Tensor]] = []
        self._updates: deque[Update] = deque(maxlen=2 * (WINDOW + PROBATION))
        for line in earlier:
            if "loss" in line and "grad_norm" in line:
                self._updates.append(Update(int(line["step"]), line["loss"], line["grad_norm"]))

    def observe(self, step: int, loss: Tensor, grad_norm: Tensor) -> None:
        """Adds an update, without waiting for the device."""
        self._unread.append((step, loss.detach(), grad_norm.detach()))
        if len(self._unread) >= WINDOW:
            self._read()

    def verdict(self, steps_done: int) -> bool | None:
        """Whether the checkpoint after `steps_done` updates is good; None as long as too few updates have followed.

        Of those before a run was continued, only the ones in its log are known.
        """
        self._read()
        after = [update for update in self._updates if steps_done <= update.step < steps_done + PROBATION]
        if not all(update.is_finite for update in after):
            return False
        latest = self._updates[-1].step if self._updates else -1
        if latest + 1 < steps_done + PROBATION or not after:
            return None
        before = [update for update in self._updates if update.step < steps_done][-WINDOW:]
        if len(before) < PROBATION:  # the beginning of a run has nothing to compare with
            return True
        return not (
            _exploded([update.loss for update in before], [update.loss for update in after])
            or _exploded([update.grad_norm for update in before], [update.grad_norm for update in after])
        )

    def _read(self) -> None:
        if self._unread:
            numbers = [number.float().reshape(()) for _, *pair in self._unread for number in pair]
            values = torch.stack(numbers).view(-1, 2).tolist()
            for (step, *_), (loss, norm) in zip(self._unread, values, strict=True):
                self._updates.append(Update(step, loss, norm))
            self._unread.clear()


def _exploded(before: list[float], after: list[float]) -> bool:
    """A loss may be negative, and what counts is how far it is from 0."""
    usual = median(map(abs, before))
    return usual > 0 and median(map(abs, after)) > EXPLODED * usual
