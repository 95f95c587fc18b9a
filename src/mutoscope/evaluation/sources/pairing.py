"""Which videos of two folders belong together: by their names, or by order if the user says so."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mutoscope.errors import UserError

Pairs = Literal["names", "order", "none"]
NUMBERED = re.compile(r"(.+)[-_/]\d+")  # "walk-3" is sample 3 of the real video "walk"


@dataclass(frozen=True)
class Pairing:
    """Pairs of indices (mine, real), and how they were found, in words."""

    how: str
    pairs: tuple[tuple[int, int], ...] = ()


def pair_videos(mine: Sequence[str], real: Sequence[str], by: Pairs) -> Pairing:
    """Pairs of videos of two lists of names.

    "names": equal names below both folders, or "name-0", "name_1" ... for several samples of "name"; if there are none,
    equal file names in whatever sub-folders, as long as each occurs once. "order": first with first, for folders of
    equally many. Raises UserError if "order" finds other counts.
    """
    if by == "none":
        return Pairing("not paired, as requested")
    if by == "order":
        if len(mine) != len(real):
            raise UserError(
                f"--pairs order needs equally many videos on both sides, found {len(mine)} and {len(real)}: remove the "
                "others, or give pairs equal names and use --pairs names."
            )
        return Pairing("in order of path", tuple((i, i) for i in range(len(mine))))
    if pairs := _by_name(mine, real):
        return Pairing("by name below the folders", pairs)
    if pairs := _by_name(_unique_stems(mine), _unique_stems(real)):
        return Pairing("by file name, in different sub-folders", pairs)
    return Pairing("not paired: no names are equal")


def _by_name(mine: Sequence[str], real: Sequence[str]) -> tuple[tuple[int, int], ...]:
    known = {name: number for number, name in enumerate(real) if name}
    pairs = []
    for number, name in enumerate(mine):
        match = NUMBERED.fullmatch(name)
        found = known.get(name, known.get(match[1]) if match else None)
        if found is not None:
            pairs.append((number, found))
    return tuple(pairs)


def _unique_stems(names: Sequence[str]) -> list[str]:
    """Last parts of names; "" for those that occur more than once."""
    stems = [name.rsplit("/", 1)[-1] for name in names]
    counts = Counter(stems)
    return [stem if counts[stem] == 1 else "" for stem in stems]
