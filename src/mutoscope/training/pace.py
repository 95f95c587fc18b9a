"""How long a run will take, estimated once from the speed of its first minute."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

from mutoscope.data.base import BatchT
from mutoscope.training.config import LoopConfig

MEASURED_SECONDS = 60.0
MIN_UPDATES = 3  # fewer are no measurement: wait longer
MINUTE, HOUR = 60, 3600
Share = Literal["data", "sheets", "checkpoints", "validation"]
SHARES: tuple[Share, ...] = get_args(Share)


@dataclass(frozen=True)
class Estimate:
    """Times in seconds from now, without contact sheets and validations.

    recognisable_after: the update whose output is recognisable as the recipe measured it; None: not known.
    """

    updates_per_second: float
    seconds_to_end: float
    seconds_to_recognisable: float | None
    recognisable_after: int | None

    def values(self) -> dict[str, float]:
        """The numbers of a line of the log."""
        values = {"updates_per_second": self.updates_per_second, "seconds_to_end": self.seconds_to_end}
        if self.seconds_to_recognisable is not None:
            values["seconds_to_recognisable"] = self.seconds_to_recognisable
        return {name: float(f"{value:.4g}") for name, value in values.items()}

    def sentence(self) -> str:
        end = time.strftime("%H:%M", time.localtime(time.time() + self.seconds_to_end))
        text = f"{self.updates_per_second:.3g} updates/s: the end in about {duration(self.seconds_to_end)} ({end})"
        if self.recognisable_after is None or self.seconds_to_recognisable is None:
            return text + "."
        when = f"in about {duration(self.seconds_to_recognisable)}" if self.seconds_to_recognisable else "reached"
        return f"{text}, recognisable output (update {self.recognisable_after:,}) {when}."


class Pace:
    """Measures the updates of the first minute; the very first one, which warms up, does not count."""

    def __init__(self, loop: LoopConfig, start_step: int, clock: Callable[[], float] = time.perf_counter):
        self.loop, self.first, self.clock = loop, start_step, clock
        self._started = 0.0
        self._done = False

    def pause(self, seconds: float) -> None:
        """Excludes time that was not spent on updates."""
        self._started += seconds

    def update(self, step: int) -> Estimate | None:
        """Call after every update; the estimate, once, after the first minute."""
        if step <= self.first:
            self._started = self.clock()
            return None
        seconds, updates = self.clock() - self._started, step - self.first
        if self._done or seconds < MEASURED_SECONDS or updates < MIN_UPDATES:
            return None
        self._done = True
        return self._estimate(step + 1, updates / seconds)

    def _estimate(self, done: int, speed: float) -> Estimate:
        goal = self.loop.recognisable_after
        reachable = goal if goal is not None and goal <= self.loop.num_steps else None
        return Estimate(
            speed,
            (self.loop.num_steps - done) / speed,
            None if reachable is None else max(0, reachable - done) / speed,
            reachable,
        )


class TimeShares:
    """How the time of a run is divided, from its first update on: data, contact sheets, checkpoints, validation.

    The rest is spent on updates.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self.clock, self.started = clock, clock()
        self.seconds: dict[Share, float] = dict.fromkeys(SHARES, 0.0)
        self.latest: dict[Share, float] = dict.fromkeys(SHARES, 0.0)

    @contextmanager
    def spent(self, name: Share) -> Iterator[None]:
        """The time inside counts as `name`."""
        began = self.clock()
        try:
            yield
        finally:
            self.latest[name] = self.clock() - began
            self.seconds[name] += self.latest[name]

    def reading(self, batches: Iterable[BatchT]) -> Iterator[BatchT]:
        """Passes batches on; the time spent waiting for them counts as data."""
        iterator = iter(batches)
        while True:
            with self.spent("data"):
                batch = next(iterator, None)
            if batch is None:
                return
            yield batch

    def would_exceed(self, name: Share, share: float, free_seconds: float) -> bool:
        """Whether `name`, once more and as long as last time, takes more than this share and the seconds that are free.

        The share is one of the time so far, that of the next turn included.
        """
        total = self.seconds[name] + self.latest[name]
        return total > max(free_seconds, share * (self.clock() - self.started + self.latest[name]))

    def sentence(self) -> str:
        """The shares so far, for the run's log."""
        elapsed = max(self.clock() - self.started, 1e-9)
        named = ", ".join(f"{name} {seconds / elapsed:.2%}" for name, seconds in self.seconds.items())
        return f"{elapsed:.1f} s so far, of which {named}; the rest updates."


def duration(seconds: float) -> str:
    """A time for people: 40 s, 12 min, 3 h 20 min."""
    if seconds < 2 * MINUTE:
        return f"{seconds:.0f} s"
    if seconds < 2 * HOUR:
        return f"{seconds / MINUTE:.0f} min"
    hours, minutes = divmod(round(seconds / MINUTE), 60)
    return f"{hours:,} h {minutes} min"
