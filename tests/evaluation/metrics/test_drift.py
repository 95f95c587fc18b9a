"""Figures per frame index, on clips whose drift is known."""

import pytest
import torch
from torch.nn import functional as F

from mutoscope.data.sources.shapes.world import ShapesConfig
from mutoscope.errors import UserError
from mutoscope.evaluation.metrics.drift import accuracies_by_start, drift, frame_statistics
from mutoscope.evaluation.networks.shapes_features import ShapesFeatures, ShapesFeaturesConfig
from mutoscope.evaluation.protocols.protocol import Judge, real_clips

WORLD = ShapesConfig(num_frames=24)


@pytest.fixture(scope="module")
def judge() -> Judge:
    torch.manual_seed(0)
    config = ShapesFeaturesConfig(stem_channels=8, stage_channels=(8, 16, 16), embedding_size=6)
    return Judge(ShapesFeatures(config).eval(), "0" * 64)


def test_fading_and_blurring_show_in_the_frames_they_happen_in():
    clips = real_clips(WORLD, 0, 3).video
    plain = frame_statistics(clips)
    assert {name: len(values) for name, values in plain.items()} == {
        "mean_pixel": 24, "contrast": 24, "sharpness": 24, "movement": 23
    }  # fmt: skip
    faded = clips.clone()
    faded[:, 12:] = (faded[:, 12:].float() * 0.5).to(torch.uint8)
    found = frame_statistics(faded)
    assert found["mean_pixel"][:12] == plain["mean_pixel"][:12]
    for before, after in zip(plain["mean_pixel"][12:], found["mean_pixel"][12:], strict=True):
        assert after == pytest.approx(before / 2, abs=0.6)
    assert found["movement"][11] > 3 * max(plain["movement"])  # the jump between frames 11 and 12
    soft = F.avg_pool2d(clips[:, 20].movedim(-1, 1).float(), 3, 1, 1, count_include_pad=False).movedim(1, -1)
    blurred = clips.clone()
    blurred[:, 20] = soft.to(torch.uint8)
    sharpness = frame_statistics(blurred)["sharpness"]
    assert sharpness[20] < 0.6 * plain["sharpness"][20] and sharpness[19] == plain["sharpness"][19]


def test_a_flat_frame_has_neither_contrast_nor_sharpness_nor_movement():
    found = frame_statistics(torch.full((2, 3, 4, 5, 3), 100, dtype=torch.uint8))
    assert found == {"mean_pixel": [100] * 3, "contrast": [0] * 3, "sharpness": [0] * 3, "movement": [0] * 2}


def test_windows_cover_the_clip_and_equal_clips_have_equal_figures(judge: Judge):
    real = real_clips(WORLD, 0, 4)
    found = accuracies_by_start(judge, real.video, real, length=16, stride=4)
    assert found["start"] == [0, 4, 8] and all(0 <= value <= 1 for value in found["color_accuracy"])
    alone = judge.read(real.video[:, 8:]).correct("shape", real.attributes).double().mean().item()
    assert found["shape_accuracy"][2] == alone
    both = drift(judge, real.video, real, 16, 8)
    assert both["made"] == both["real"] and both["made"]["windows"]["start"] == [0, 8]


def test_what_does_not_fit_is_told(judge: Judge):
    real = real_clips(WORLD, 0, 2)
    with pytest.raises(UserError, match="one shape"):
        drift(judge, real.video[:, :16], real, 16, 8)
    with pytest.raises(UserError, match="Windows of 30 frames"):
        drift(judge, real.video, real, 30, 8)
