"""The papers whose comparisons can be run, each imported when it is needed."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from mutoscope.errors import UserError

if TYPE_CHECKING:
    from mutoscope.studies.claims import Laboratory


def _magvit() -> "type[Laboratory]":
    from mutoscope.studies import claims_magvit

    return claims_magvit.Laboratory


def _par() -> "type[Laboratory]":
    from mutoscope.studies import claims_par

    return claims_par.Laboratory


def _nova() -> "type[Laboratory]":
    from mutoscope.studies import claims_nova

    return claims_nova.Laboratory


def _magi() -> "type[Laboratory]":
    from mutoscope.studies import claims_magi

    return claims_magi.Laboratory


LABORATORIES: "dict[str, Callable[[], type[Laboratory]]]" = {
    "magvit": _magvit,
    "par": _par,
    "nova": _nova,
    "magi": _magi,
}
"""Name of a paper -> its laboratory."""


def laboratory(paper: str) -> "type[Laboratory]":
    """The laboratory of a paper. Raises UserError for a name that is not in LABORATORIES."""
    if paper not in LABORATORIES:
        raise UserError(f"There are no claims of {paper!r} to check; papers: {', '.join(LABORATORIES)}.")
    return LABORATORIES[paper]()
