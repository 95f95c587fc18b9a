import numpy as np
import pytest
import torch

from mutoscope.data.shapes import CLASS_NAMES, ShapesConfig, ShapesWorld
from mutoscope.data.shapes_mixed import MIXED_CLASS_NAMES, VariedShapesSource
from mutoscope.errors import UserError

WORLD = ShapesWorld(ShapesConfig(num_frames=5), seed=3)
AGENTS = ShapesWorld(ShapesConfig(num_frames=5, controllable=True), seed=3)


def test_frames_of_an_interval_are_those_of_a_longer_clip():
    long = ShapesWorld(ShapesConfig(num_frames=13), seed=3)
    for index in range(6):
        np.testing.assert_array_equal(WORLD.clip(index, interval=3).frames, long.clip(index).frames[::3])


def test_intervals_cover_the_range_and_are_told():
    batch = VariedShapesSource(WORLD, max_interval=3)[range(40)]
    assert set(batch["interval"].tolist()) == {1, 2, 3}
    for index in range(4):
        clip = WORLD.clip(index, interval=int(batch["interval"][index]))
        np.testing.assert_array_equal(batch["video"][index].numpy(), clip.frames)
    assert "actions" not in batch


def test_every_second_clip_has_actions_and_classes_of_its_own():
    batch = VariedShapesSource(WORLD, 3, AGENTS)[range(8)]
    known = batch["actions"].isfinite().all(-1).all(-1)
    assert known.tolist() == [False, True] * 4
    assert (batch["label"][1::2] >= len(CLASS_NAMES)).all()
    assert (batch["label"][::2] < len(CLASS_NAMES)).all()
    assert batch["label"].max() < len(MIXED_CLASS_NAMES)
    assert (batch["interval"][1::2] == 1).all()
    np.testing.assert_array_equal(batch["actions"][1].numpy(), AGENTS.clip(1).actions)


def test_clips_depend_on_their_index_alone():
    source = VariedShapesSource(WORLD, 3, AGENTS)
    together, alone = source[[4, 7]], source[[7]]
    for name in ("video", "label", "interval", "actions"):
        assert torch.equal(together[name][1:], alone[name])


def test_a_world_with_actions_has_no_intervals():
    with pytest.raises(UserError, match="1 step apart"):
        AGENTS.clip(0, interval=2)
