"""Statistics of rollouts by window, beside real clips."""

import pytest

from mutoscope.data.sources.shapes.world import ShapesConfig
from mutoscope.errors import UserError
from mutoscope.evaluation.metrics.rollouts import accuracies_by_start, rollout_statistics
from mutoscope.evaluation.networks.shapes_classifier import ShapesClassifier
from mutoscope.evaluation.sources.shapes_clips import real_clips

WORLD = ShapesConfig(num_frames=24)


def test_windows_cover_the_clip_and_equal_clips_have_equal_figures(classifier: ShapesClassifier):
    real = real_clips(WORLD, 0, 4)
    found = accuracies_by_start(classifier, real.video, real, length=16, stride=4)
    assert found["start"] == [0, 4, 8] and all(0 <= value <= 1 for value in found["color_accuracy"])
    alone = classifier.read(real.video[:, 8:]).correct("shape", real.attributes).double().mean().item()
    assert found["shape_accuracy"][2] == alone
    both = rollout_statistics(classifier, real.video, real, 16, 8)
    assert both["made"] == both["real"] and both["made"]["windows"]["start"] == [0, 8]
    dark = rollout_statistics(classifier, real.video // 2, real, 16, 8)
    assert dark["real"] == both["real"] and max(dark["made"]["frames"]["mean_pixel"]) < 128
    assert dark["made"]["frames"]["squared_motion"][0] < 0.3 * dark["real"]["frames"]["squared_motion"][0]


def test_clips_of_other_shapes_are_refused(classifier: ShapesClassifier):
    real = real_clips(WORLD, 0, 2)
    with pytest.raises(UserError, match="same shape"):
        rollout_statistics(classifier, real.video[:, :16], real, 16, 8)
    with pytest.raises(UserError, match="Windows of 30 frames"):
        rollout_statistics(classifier, real.video, real, 30, 8)
