from dataclasses import replace

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


def test_a_jump_leaves_out_frames_behind_the_first_one():
    source = VariedShapesSource(WORLD, 2, AGENTS, max_jump=6)
    batch = source[range(60)]
    jumps = batch["jump"].tolist()
    assert [jump > 0 for jump in jumps] == [False, False, True, True] * 15
    assert {jump for jump in jumps if jump} == set(range(1, 7))
    for index in (2, 3, 6, 7):
        world, interval, shown = (WORLD, AGENTS)[index % 2], int(batch["interval"][index]), [0]
        shown += range(jumps[index] + 1, jumps[index] + 5)
        longer = ShapesWorld(replace(world.config, num_frames=11), 3).clip(index, interval=interval)
        np.testing.assert_array_equal(batch["video"][index].numpy(), longer.frames[shown])
        if longer.actions is not None:  # what leads to the next frame shown
            np.testing.assert_array_equal(batch["actions"][index, :4].numpy(), longer.actions[np.array(shown[1:]) - 1])


def test_clips_without_a_jump_are_what_they_are_without_jumps():
    plain, jumping = VariedShapesSource(WORLD, 2, AGENTS)[range(4)], VariedShapesSource(WORLD, 2, AGENTS, 6)[range(4)]
    assert "jump" not in plain
    for name in ("video", "label", "interval"):
        assert torch.equal(plain[name][:2], jumping[name][:2])
