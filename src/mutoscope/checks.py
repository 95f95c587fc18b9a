"""Ranges of numbers in configurations: checked where a configuration is built, so flags, JSON and Python all meet them.

A configuration calls `check_fields` in its `__post_init__`. Errors begin with the name of the field, which is also the
name of the flag and of the JSON key.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mutoscope.errors import UserError

MAX_SEED = 2**64 - 1  # of torch.Generator
MAX_LENGTH = 64  # numbers in one field: stages of a network, digits of a token


def check_range(
    name: str,
    value: float | None,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> None:
    """Raises UserError unless low <= value <= high and above < value < below.

    None passes; NaN and infinity never do.
    """
    if value is None:
        return
    ok = math.isfinite(value) and (low is None or value >= low) and (high is None or value <= high)
    if ok and (above is None or value > above) and (below is None or value < below):
        return
    wanted = [f"more than {above:g}"] if above is not None else []
    wanted += [f"at least {low}"] if low is not None else []
    wanted += [f"at most {high}"] if high is not None else []
    wanted += [f"less than {below:g}"] if below is not None else []
    wanted += [] if math.isfinite(value) else ["finite"]
    raise UserError(f"{name} must be {' and '.join(wanted)}, found {value}.")


@dataclass(frozen=True)
class Range:
    """The numbers that a field may hold; bounds that are None do not count. NaN and infinity are never inside."""

    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None

    def check(self, name: str, value: float | None) -> None:
        """Raises UserError for a number outside; None passes."""
        check_range(name, value, self.low, self.high, self.above, self.below)


COUNT = Range(low=1)
NOT_NEGATIVE = Range(low=0)
POSITIVE = Range(above=0)
SHARE = Range(low=0, high=1)
DECAY = Range(low=0, below=1)
"""Decay of a running average: at 1 it would never change."""
SEED = Range(low=0, high=MAX_SEED)
DEPTH = Range(low=1, high=256)
"""Layers or blocks. Building a network takes time for each of them, so a slip of the finger is refused at once."""
WIDTH = Range(low=1, high=2**24)
"""Channels, codes or classes: above it, sizes of tensors overflow."""
SIDE = Range(low=1, high=2**16)
"""Frames of a clip, or pixels along a side."""


def check_fields(config: object, ranges: Mapping[str, Range]) -> None:
    """Raises UserError for the first field outside its range. A field may hold one number, None or several numbers."""
    for name, allowed in ranges.items():
        value = getattr(config, name)
        if isinstance(value, Sequence):
            if len(value) > MAX_LENGTH:
                raise UserError(f"{name} must hold at most {MAX_LENGTH} numbers, found {len(value):,}.")
            for i, item in enumerate(value):
                allowed.check(f"{name}[{i}]", item)
        else:
            allowed.check(name, value)
