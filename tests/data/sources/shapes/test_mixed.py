from dataclasses import replace

import numpy as np
import pytest
import torch

from mutoscope.data.sources.shapes.mixed import MIXED_CLASS_NAMES, VariedShapesSource, corrupted
from mutoscope.data.sources.shapes.world import CLASS_NAMES, ShapesConfig, ShapesWorld
from mutoscope.errors import UserError
from mutoscope.evaluation.networks.shapes_detector import colors_in_sight

WORLD = ShapesWorld(ShapesConfig(num_frames=5), seed=3)
AGENTS = ShapesWorld(ShapesConfig(num_frames=5, controllable=True), seed=3)


def test_frames_of_an_interval_are_those_of_a_longer_clip():
    long = ShapesWorld(ShapesConfig(num_frames=13), seed=3)
    for index in range(6):
        np.testing.assert_array_equal(WORLD.clip(index, interval=3).frames, long.clip(index).frames[::3])


def test_intervals_cover_the_range_and_are_stated():
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


def test_controllable_shapes_have_no_intervals():
    with pytest.raises(UserError, match="1 step apart"):
        AGENTS.clip(0, interval=2)


def test_a_gap_omits_frames_after_the_first_one():
    source = VariedShapesSource(WORLD, 2, AGENTS, max_jump=6)
    batch, gaps = source[range(60)], set()
    assert batch["history_only"].any(1).tolist() == [False, False, True, True] * 15
    for index in (i for i in range(60) if i % 4 > 1):
        world, interval = (WORLD, AGENTS)[index % 2], int(batch["interval"][index])
        longer = ShapesWorld(replace(world.config, num_frames=11), 3).clip(index, interval=interval)
        shown = batch["video"][index].numpy()
        fits = [j for j in range(1, 7) if np.array_equal(shown, longer.frames[[0, *range(j + 1, j + 5)]])]
        assert fits
        gaps.add(fits[0])
        if longer.actions is not None:  # the action that leads to the next frame shown
            led = longer.actions[[fits[0] + i for i in range(4)]]
            np.testing.assert_array_equal(batch["actions"][index, :4].numpy(), led)
    assert gaps == set(range(1, 7))


def test_only_the_frame_after_the_gap_is_no_target():
    batch = VariedShapesSource(WORLD, max_jump=6)[range(8)]
    frames = batch["history_only"].nonzero()
    assert frames.tolist() == [[2, 1], [3, 1], [6, 1], [7, 1]]


def test_clips_without_a_gap_do_not_depend_on_max_jump():
    plain, jumping = VariedShapesSource(WORLD, 2, AGENTS)[range(4)], VariedShapesSource(WORLD, 2, AGENTS, 6)[range(4)]
    assert "history_only" not in plain
    for name in ("video", "label", "interval"):
        assert torch.equal(plain[name][:2], jumping[name][:2])


def test_clips_with_a_gap_are_corrupted_where_they_are_context():
    source = VariedShapesSource(WORLD, 2, AGENTS, max_jump=6, flawed_history=True)
    plain, batch = VariedShapesSource(WORLD, 2, AGENTS, max_jump=6)[range(64)], source[range(64)]
    for name in ("video", "label", "interval", "history_only", "actions"):
        assert torch.equal(plain[name].nan_to_num(), batch[name].nan_to_num())
    changed = (batch["video"] != batch["history"]).flatten(2).any(-1)  # (b, t)
    assert not changed[:, 0].any() and not changed[[i for i in range(64) if i % 4 < 2]].any()
    assert changed.any(1).sum() > 28  # a shape that is hidden may change unseen
    starts = changed.long().argmax(1)[changed.any(1)]
    assert {1, 2, 3} <= set(starts.tolist()) and 0.6 < (starts == 1).float().mean() < 0.9
    assert 0.4 < changed[changed.any(1)][:, -1].float().mean() < 0.8


def test_corruptions_of_every_kind_are_drawn_and_leave_the_clip_alone():
    world, colours = ShapesWorld(ShapesConfig(num_frames=8), seed=5), []
    for seed in range(150):
        clip = world.clip(seed)
        before = colors_in_sight(torch.from_numpy(clip.frames)).sum(-1)
        wrong = corrupted(clip, np.random.default_rng(seed))
        np.testing.assert_array_equal(clip.frames, world.clip(seed).frames)
        colours += (colors_in_sight(torch.from_numpy(wrong)).sum(-1) - before).tolist()
    assert {-2, -1, 0, 1} <= set(colours)  # two missing or one, changed, one too many


def test_corruptions_depend_on_the_index_of_a_clip_alone():
    source = VariedShapesSource(WORLD, 3, AGENTS, 6, flawed_history=True)
    together, alone = source[[6, 7, 15]], source[[15]]
    assert torch.equal(together["history"][2:], alone["history"])
