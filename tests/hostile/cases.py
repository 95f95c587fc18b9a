"""All hostile files."""

from collections.abc import Iterator

from hostile.case import Case
from hostile.media import media_cases
from hostile.settings import setting_cases
from hostile.state import state_cases
from hostile.weights import weight_cases


def all_cases() -> Iterator[Case]:
    """Every case once; files are created when a case is opened."""
    for cases in (weight_cases, setting_cases, media_cases, state_cases):
        yield from cases()
