"""PSNR in both conventions."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mutoscope.errors import UserError
from mutoscope.evaluation.metrics.pixel import psnr_mean_of_frames, psnr_of_clip, psnr_per_frame


def clip(seed: int, shape=(2, 3, 4, 5, 3)) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_a_constant_difference_has_the_known_value():
    black = torch.zeros(2, 3, 4, 5, 3, dtype=torch.uint8)
    expected = torch.full((2, 3), 20 * math.log10(255 / 51), dtype=torch.float64)
    torch.testing.assert_close(psnr_per_frame(black, black + 51), expected)
    torch.testing.assert_close(psnr_of_clip(black, black + 51), expected[:, 0])


def test_integers_and_unit_floats_mean_the_same():
    real, fake = clip(0), clip(1)
    torch.testing.assert_close(
        psnr_per_frame(real, fake), psnr_per_frame(real / 255, fake.double().numpy() / 255), rtol=1e-5, atol=0
    )


def test_integer_differences_do_not_wrap_around():
    low, high = np.zeros((1, 2, 2, 3), np.uint8), np.full((1, 2, 2, 3), 255, np.uint8)
    assert psnr_of_clip(low, high).item() == psnr_of_clip(high, low).item() == 0.0


@given(st.integers(0, 2**32 - 1))
def test_mean_of_frames_is_never_below_psnr_of_the_clip(seed):
    real, fake = clip(seed), clip(seed + 1)
    fake[:, 0] = (fake[:, 0].int() + 7 * real[:, 0].int()).div(8, rounding_mode="floor").byte()
    assert (psnr_mean_of_frames(real, fake) > psnr_of_clip(real, fake)).all()


def test_one_equal_frame_makes_the_mean_of_frames_infinite_and_leaves_the_clip_finite():
    real, fake = clip(0), clip(1)
    fake[0, 1] = real[0, 1]
    assert psnr_per_frame(real, fake)[0].isinf().tolist() == [False, True, False]
    assert psnr_mean_of_frames(real, fake).isinf().tolist() == [True, False]
    assert psnr_of_clip(real, fake).isfinite().all()


def test_clips_of_different_shapes_are_refused():
    with pytest.raises(UserError, match="one shape"):
        psnr_of_clip(clip(0), clip(0)[:, :2])
