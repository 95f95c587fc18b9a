"""Motion, flicker, drift, and the best of several samples."""

import pytest
import torch
from torch.nn import functional as F

from mutoscope.data.sources.shapes.world import ShapesConfig
from mutoscope.errors import UserError
from mutoscope.evaluation.metrics.best_of import best_of
from mutoscope.evaluation.metrics.temporal import (
    drift,
    flicker,
    frame_curves,
    mean_squared_motion,
    motion,
    psnr_against_index,
    squared_statistics,
)
from mutoscope.evaluation.sources.shapes_clips import real_clips


def still(num_frames: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    picture = torch.randint(50, 200, (1, 1, 12, 12, 3), generator=generator, dtype=torch.uint8)
    return picture.repeat(1, num_frames, 1, 1, 1)


def test_a_still_clip_neither_moves_nor_flickers_nor_drifts():
    assert motion(still()).item() == flicker(still()).item() == 0
    assert all(abs(drift(curve).item()) < 1e-9 for curve in frame_curves(still()).values())


def test_alternation_flickers_more_than_steady_change():
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


def test_fading_and_blurring_show_in_the_frames_they_happen_in():
    clips = real_clips(ShapesConfig(num_frames=24), 0, 3).video
    plain = squared_statistics(clips)
    assert {name: len(values) for name, values in plain.items()} == {
        "mean_pixel": 24, "pixel_deviation": 24, "squared_gradient": 24, "squared_motion": 23
    }  # fmt: skip
    faded = clips.clone()
    faded[:, 12:] = (faded[:, 12:].float() * 0.5).to(torch.uint8)
    found = squared_statistics(faded)
    assert found["mean_pixel"][:12] == plain["mean_pixel"][:12]
    for before, after in zip(plain["mean_pixel"][12:], found["mean_pixel"][12:], strict=True):
        assert after == pytest.approx(before / 2, abs=0.6)
    assert found["squared_motion"][11] > 3 * max(plain["squared_motion"])  # the change between frames 11 and 12
    soft = F.avg_pool2d(clips[:, 20].movedim(-1, 1).float(), 3, 1, 1, count_include_pad=False).movedim(1, -1)
    blurred = clips.clone()
    blurred[:, 20] = soft.to(torch.uint8)
    gradient = squared_statistics(blurred)["squared_gradient"]
    assert gradient[20] < 0.6 * plain["squared_gradient"][20] and gradient[19] == plain["squared_gradient"][19]


def test_a_flat_clip_has_no_deviation_gradient_or_motion():
    found = squared_statistics(torch.full((2, 3, 4, 5, 3), 100, dtype=torch.uint8))
    assert found == {
        "mean_pixel": [100] * 3, "pixel_deviation": [0] * 3, "squared_gradient": [0] * 3, "squared_motion": [0] * 2
    }  # fmt: skip


def test_absolute_and_squared_motion_of_a_known_step():
    step = still(2) + torch.tensor([0, 3], dtype=torch.uint8)[None, :, None, None, None]
    assert motion(step).item() == pytest.approx(3)
    assert mean_squared_motion(step) == pytest.approx(9) == squared_statistics(step)["squared_motion"][0]


def test_psnr_falls_where_the_prediction_departs_from_the_real_clip():
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
