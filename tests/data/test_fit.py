"""Frames are brought to a size by one rule: scaled to cover it, then cropped."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mutoscope.data.fit import fit_frames, offset


def test_crops_are_taken_at_their_offset():
    frames = np.zeros((1, 10, 30, 3), np.uint8)
    frames[:, :, 10:20] = 255
    assert fit_frames(frames, 10, 10).min() == 255
    assert fit_frames(frames, 10, 10, 0.0).max() == fit_frames(frames, 10, 10, 1.0).max() == 0
    assert fit_frames(frames.swapaxes(1, 2), 5, 5).shape == (1, 5, 5, 3)


def test_frames_of_the_right_size_are_unchanged():
    frames = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    np.testing.assert_array_equal(fit_frames(frames, 4, 5), frames)


def test_shrinking_averages_instead_of_dropping_pixels():
    stripes = np.zeros((1, 8, 64, 3), np.uint8)
    stripes[:, :, ::2] = 255
    assert np.abs(fit_frames(stripes, 1, 8).astype(int) - 127.5).max() <= 5  # the first and last column cover less


@given(st.tuples(st.integers(1, 40), st.integers(1, 40)), st.tuples(st.integers(1, 40), st.integers(1, 40)))
def test_any_size_is_reached_from_any_other(size, wanted):
    assert fit_frames(np.zeros((2, *size, 3), np.uint8), *wanted).shape == (2, *wanted, 3)


@pytest.mark.parametrize("count", [2, 3, 4, 7])
def test_even_shares_of_a_room_are_whole_offsets(count):
    for room in range(30):
        assert [offset(room, crop / (count - 1)) for crop in range(count)] == [
            room * crop // (count - 1) for crop in range(count)
        ]
