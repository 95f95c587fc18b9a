"""Ranges of numbers: which are inside, and what an error says."""

import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mutoscope.checks import COUNT, DECAY, POSITIVE, SHARE, Range, check_fields, check_range
from mutoscope.errors import UserError


@given(st.floats(allow_nan=True, allow_infinity=True), st.floats(-10, 10), st.floats(0, 10))
def test_a_number_passes_exactly_if_it_is_finite_and_between_the_bounds(value: float, low: float, length: float):
    inside = math.isfinite(value) and low <= value <= low + length
    try:
        check_range("x", value, low=low, high=low + length)
        assert inside
    except UserError as error:
        assert not inside and str(error).startswith("x must be at least ")


@pytest.mark.parametrize(
    ("allowed", "good", "bad"),
    [
        (COUNT, (1, 10**9, None), (0, -1)),
        (POSITIVE, (1e-9,), (0.0, -1.0, math.inf, math.nan)),
        (SHARE, (0, 1, 0.5), (-0.1, 1.1, math.nan)),
        (DECAY, (0, 0.999), (1, 2)),
        (Range(), (-5, 5), (math.inf, math.nan)),
    ],
)
def test_bounds_are_inside_or_outside_as_they_say(allowed: Range, good, bad):
    for value in good:
        allowed.check("x", value)
    for value in bad:
        with pytest.raises(UserError, match="x must be .*, found"):
            allowed.check("x", value)


def test_an_infinite_number_is_called_so():
    with pytest.raises(UserError, match="^rate must be at least 0 and finite, found inf.$"):
        Range(low=0).check("rate", math.inf)


def test_several_numbers_of_a_field_are_checked_one_by_one():
    @dataclass
    class Sizes:
        shape: tuple[int, int] = (4, 0)
        name: None = None

    with pytest.raises(UserError, match=r"^shape\[1\] must be at least 1, found 0.$"):
        check_fields(Sizes(), {"name": COUNT, "shape": COUNT})
