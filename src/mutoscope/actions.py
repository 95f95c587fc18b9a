"""The actions of a recording and of the models trained on it: names, kind, scaling, and their reduction over time.

Row t of a recording's actions is done in frame t and leads to frame t + 1. Rows outside the network are in the
recording's own units; `ActionSpec.scaled` is applied where they enter it, in training and in sampling alike.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from mutoscope.errors import UserError

Kind = Literal["buttons", "continuous"]
Reduction = Literal["max", "sum", "mean"]
SMALLEST_SCALE = 1e-6  # an action that never changes is shifted to zero, not divided by zero


@dataclass(frozen=True)
class ActionSpec:
    """What the numbers of an action mean. `model_index.json` keeps it for every model of actions.

    Raises UserError unless there is one offset, scale and reduction per name, and the names differ.
    """

    names: tuple[str, ...]
    kind: Kind
    """buttons: every number is 0 or 1; continuous: at least one axis, buttons may be among them"""
    offset: tuple[float, ...]
    """the network reads (row - offset) / scale"""
    scale: tuple[float, ...]
    reduction: tuple[Reduction, ...]
    """how the rows between two frames of a clip become one row: max for buttons, sum or mean for axes"""
    fps: float | None = None
    """frames per second of the recording"""
    frame_stride: int = 1
    """frames of the recording from one frame of a clip to the next"""

    def __post_init__(self) -> None:
        for name in ("names", "offset", "scale", "reduction"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON has no tuples
        lengths = {len(self.names), len(self.offset), len(self.scale), len(self.reduction)}
        numbers = all(map(math.isfinite, self.offset)) and all(0 < scale < math.inf for scale in self.scale)
        if len(lengths) != 1 or len(set(self.names)) != len(self.names) or not numbers:
            raise UserError("An action needs different names, and one offset, positive scale and reduction for each.")

    def to_json(self) -> dict[str, object]:
        """The fields as JSON values, for metadata files."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @property
    def size(self) -> int:
        """Numbers of an action."""
        return len(self.names)

    @property
    def is_button(self) -> tuple[bool, ...]:
        """Which numbers are buttons, 0 or 1."""
        return tuple(reduction == "max" for reduction in self.reduction)

    @classmethod
    def plain(cls, names: Sequence[str], kind: Kind, fps: float | None = None) -> "ActionSpec":
        """Actions that the network reads as they are."""
        reduction: Reduction = "max" if kind == "buttons" else "sum"
        size = len(names)
        return cls(tuple(names), kind, (0.0,) * size, (1.0,) * size, (reduction,) * size, fps)

    @classmethod
    def measured(
        cls,
        names: Sequence[str],
        episodes: Iterable[Float[np.ndarray, "_t a"]],
        *,
        kind: Kind | None = None,
        fps: float | None = None,
        frame_stride: int = 1,
        axes: Reduction = "sum",
    ) -> "ActionSpec":
        """Kind and scaling of recorded actions: axes to mean 0 and standard deviation 1, buttons as they are.

        A column of zeros and ones is a button. NaN is ignored. Raises UserError where `kind` says that all columns
        are buttons and one has other numbers.
        axes: the reduction of axes. The mean and the standard deviation are those of the reduced rows. `episodes` is
        read once, so that it may load one episode at a time.
        """
        buttons, statistics = np.ones(len(names), dtype=bool), RunningStatistics(len(names))
        for rows in episodes:
            zeros_and_ones = np.isnan(rows) | (rows == 0) | (rows == 1)  # (t, a)
            buttons &= zeros_and_ones.all(axis=0)
            if kind == "buttons" and not buttons.all():
                t, a = (int(index) for index in np.argwhere(~zeros_and_ones)[0])
                raise UserError(
                    f"Buttons are 0 or 1, but {names[a]!r} is {rows[t, a]:g} in row {t + 1}: call it continuous."
                )
            statistics.add(reduced_rows(rows, (axes,) * len(names), frame_stride))
        reduction: tuple[Reduction, ...] = tuple("max" if button else axes for button in buttons)
        offset = np.where(buttons, 0.0, statistics.mean)
        scale = np.where(buttons, 1.0, statistics.deviation)
        scale = np.where(scale < SMALLEST_SCALE, 1.0, scale)
        found: Kind = "buttons" if buttons.all() else "continuous"
        return cls(
            tuple(names), kind or found, tuple(offset.tolist()), tuple(scale.tolist()), reduction, fps, frame_stride
        )

    def scaled(self, rows: Float[np.ndarray, "*t a"]) -> Float[np.ndarray, "*t a"]:
        """Rows as the network reads them; NaN stays NaN."""
        return ((rows - np.array(self.offset)) / np.array(self.scale)).astype(np.float32)

    def reduced(self, rows: Float[np.ndarray, "t a"], stride: int) -> Float[np.ndarray, "_steps a"]:
        """Rows of every frame to one row for every `stride` frames, from the first one on. See `reduced_rows`."""
        return reduced_rows(rows, self.reduction, stride)


class RunningStatistics:
    """Mean and standard deviation of rows that arrive in parts, as two passes over all rows would give them.

    Chan, Golub and LeVeque (1979): the sum of squares is kept about the mean, so that large means cost no digits.
    """

    def __init__(self, size: int):
        self.count, self.mean, self.squares = 0, np.zeros(size), np.zeros(size)

    def add(self, rows: Float[np.ndarray, "_t a"]) -> None:
        """Rows with a NaN are ignored."""
        known = rows[~np.isnan(rows).any(axis=1)].astype(np.float64)
        if not len(known):
            return
        mean, total = known.mean(axis=0), self.count + len(known)
        gap = mean - self.mean
        self.squares += ((known - mean) ** 2).sum(axis=0) + gap**2 * (self.count * len(known) / total)
        self.mean = self.mean + gap * (len(known) / total)
        self.count = total

    @property
    def deviation(self) -> Float[np.ndarray, " a"]:
        """Of the population; 1 without rows."""
        return np.sqrt(self.squares / self.count) if self.count else np.ones_like(self.squares)


def reduced_rows(
    rows: Float[np.ndarray, "t a"], reduction: Sequence[Reduction], stride: int
) -> Float[np.ndarray, "_steps a"]:
    """Row j joins the actions done in frames j·stride … (j + 1)·stride - 1, which lead to frame (j + 1)·stride.

    A last group of fewer rows is joined alike: its frames lead to no later one of the clip.
    """
    if stride == 1 or not len(rows):
        return np.asarray(rows, dtype=np.float32)
    starts = np.arange(0, len(rows), stride)
    counts = np.diff(np.append(starts, len(rows)))[:, None]
    sums, largest = np.add.reduceat(rows, starts, axis=0), np.maximum.reduceat(rows, starts, axis=0)
    by_rule = {"sum": sums, "mean": sums / counts, "max": largest}  # each (steps, a)
    columns = [by_rule[rule][:, column] for column, rule in enumerate(reduction)]
    return np.stack(columns, axis=1).astype(np.float32)
