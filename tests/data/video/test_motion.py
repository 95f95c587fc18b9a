import sys

import numpy as np
import pytest

from mutoscope.data.video.motion import motion_score
from mutoscope.errors import UserError


def moving_square(step: int) -> np.ndarray:
    """A textured square that moves `step` pixels a frame over a grey ground."""
    texture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    frames = np.full((5, 48, 64, 3), 90, np.uint8)
    for i, frame in enumerate(frames):
        frame[16:32, 8 + i * step : 24 + i * step] = texture
    return frames


def test_faster_motion_scores_higher_and_rest_scores_zero():
    pytest.importorskip("cv2")
    scores = [motion_score(moving_square(step)) for step in (0, 1, 3)]
    assert scores[0] < 0.01 < scores[1] < scores[2]
    assert motion_score(moving_square(1)[:1]) == 0.0


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(UserError, match="extra \\[data\\]"):
        motion_score(moving_square(1))
