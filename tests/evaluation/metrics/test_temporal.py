"""Motion, flicker, drift, and the best of several samples."""

import pytest
import torch

from mutoscope.errors import UserError
from mutoscope.evaluation.metrics.best_of import best_of
from mutoscope.evaluation.metrics.temporal import drift, flicker, frame_curves, motion, psnr_against_index


def still(num_frames: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    picture = torch.randint(50, 200, (1, 1, 12, 12, 3), generator=generator, dtype=torch.uint8)
    return picture.repeat(1, num_frames, 1, 1, 1)


def test_a_still_clip_neither_moves_nor_flickers_nor_drifts():
    assert motion(still()).item() == flicker(still()).item() == 0
    assert all(abs(drift(curve).item()) < 1e-9 for curve in frame_curves(still()).values())


def test_going_to_and_fro_flickers_more_than_steady_change():
    ramp = still() + 4 * torch.arange(8, dtype=torch.uint8)[None, :, None, None, None]
    alternating = still() + 4 * (torch.arange(8, dtype=torch.uint8) % 2)[None, :, None, None, None]
    assert motion(ramp).item() == pytest.approx(4) and motion(alternating).item() == pytest.approx(4)
    assert flicker(ramp).item() == pytest.approx(0) and flicker(alternating).item() == pytest.approx(4)
    assert drift(frame_curves(ramp)["brightness"]).item() == pytest.approx(28)


def test_a_clip_that_fades_to_grey_loses_contrast_saturation_and_sharpness():
    weight = torch.linspace(1, 0.2, 8)[None, :, None, None, None]
    fading = (128 + (still().float() - 128) * weight).round().to(torch.uint8)
    curves = frame_curves(fading)
    assert all(curves[name].shape == (1, 8) for name in curves)
    assert all(drift(curves[name]).item() < -1 for name in ("contrast", "saturation", "sharpness"))


def test_psnr_falls_where_the_prediction_leaves_what_happened():
    error = torch.arange(1, 9, dtype=torch.uint8)[None, :, None, None, None]
    curve = psnr_against_index(still(), still() + error)
    assert curve.shape == (8,) and (curve.diff() < 0).all()


def test_clips_that_are_too_short_are_refused():
    with pytest.raises(UserError, match="at least 3 frames"):
        flicker(still(2))
    with pytest.raises(UserError, match="at least 2 frames"):
        drift(torch.ones(1, 1))


def test_the_best_sample_counts_and_a_missing_value_is_refused():
    values = torch.tensor([[1.0, 5.0, 3.0], [7.0, 2.0, 6.0]])
    assert best_of(values).tolist() == [5, 7]
    assert best_of(values, "min").tolist() == [1, 2]
    assert best_of(values, "mean").tolist() == [3, 5]
    with pytest.raises(UserError, match="NaN"):
        best_of(values * torch.nan)
