from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mutoscope.data.loader import StepSampler, make_loader
from mutoscope.data.sources.shapes.source import ShapesSource
from mutoscope.data.sources.shapes.world import (
    CLASS_NAMES,
    CLASSES,
    COLORS,
    HELD_BACK_SEED,
    MOTIONS,
    PALETTE,
    SHAPES,
    ShapesConfig,
    ShapesWorld,
    render,
    shapes_batch,
)
from mutoscope.errors import UserError


def frames_of(seed: int, index: int) -> np.ndarray:
    return ShapesWorld(seed=seed).clip(index).frames


def clips_where(condition, count: int, config: ShapesConfig | None = None) -> list:
    world = ShapesWorld(config or ShapesConfig(max_objects=1))
    return [clip for clip in (world.clip(i) for i in range(400)) if condition(clip)][:count]


@given(seed=st.integers(0, 2**40), index=st.integers(0, 2**40))
def test_a_clip_is_a_function_of_seed_and_index(seed: int, index: int):
    assert np.array_equal(frames_of(seed, index), frames_of(seed, index))


def test_another_process_draws_the_same_clip():
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        elsewhere = pool.submit(frames_of, 7, 11).result()
    assert np.array_equal(elsewhere, frames_of(7, 11))


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_worker_count_does_not_change_the_batches(num_workers: int):
    sampler = StepSampler(None, 3, 2, 0, 0, 0, 1)
    batches = list(make_loader(ShapesSource(ShapesWorld()), sampler, num_workers))
    assert torch.equal(batches[1]["video"], shapes_batch(ShapesWorld(), [3, 4, 5])["video"])


def test_neighbouring_clips_and_seeds_differ():
    assert not np.array_equal(frames_of(0, 0), frames_of(0, 1))
    assert not np.array_equal(frames_of(0, 0), frames_of(HELD_BACK_SEED, 0))


def test_every_class_appears_about_equally_often():
    counts = np.bincount([ShapesWorld().clip(i).label for i in range(2_300)], minlength=len(CLASS_NAMES))
    assert counts.min() > 60 and counts.max() < 150


@given(index=st.integers(0, 10_000), height=st.integers(8, 70), width=st.integers(8, 70), num_frames=st.integers(1, 24))
def test_any_size_and_length(index: int, height: int, width: int, num_frames: int):
    clip = ShapesWorld(ShapesConfig(height, width, num_frames)).clip(index)
    assert clip.frames.shape == (num_frames, height, width, 3)
    assert clip.tracks.shape == (len(clip.objects), num_frames, 4)


@given(index=st.integers(0, 10_000))
def test_labels_caption_and_attributes_agree(index: int):
    clip = ShapesWorld().clip(index)
    main = clip.objects[0]
    assert CLASSES[clip.label] == (SHAPES[main.shape], MOTIONS[main.motion])
    assert clip.caption.startswith(("a ", "an "))
    assert f"{COLORS[main.color]} {SHAPES[main.shape]}" in clip.caption
    assert clip.attributes["num_objects"] == len(clip.objects) == np.sum(clip.attributes["colors_present"])
    assert all(clip.attributes["shapes_present"][o.shape] for o in clip.objects)
    assert clip.tracks[0, :, 2].max() > clip.tracks[1:, :, 2].max(initial=0.0)


def test_the_main_shape_is_painted_in_its_colour_at_its_track():
    for clip in clips_where(lambda c: SHAPES[c.objects[0].shape] != "cross", 20):
        for frame, (x, y, *_) in zip(clip.frames, clip.tracks[0], strict=True):
            pixel = frame[min(int(y * 32), 31), min(int(x * 32), 31)] / 255.0
            assert np.allclose(pixel, PALETTE[clip.objects[0].color], atol=0.01)


def test_shapes_have_their_own_outlines():
    background = np.zeros((64, 64, 3), np.float32)
    track = np.array([[[0.5, 0.5, 0.3, 0.0]]], np.float32)
    clip = clips_where(lambda c: True, 1)[0]
    info = type(clip.objects[0])
    pictures = [render(background, (info(s, 7, 0),), track)[0, :, :, 0] > 127 for s in range(len(SHAPES))]
    areas = [picture.mean() for picture in pictures]
    assert max(areas) < 1.6 * min(areas)
    for i, first in enumerate(pictures):
        assert all((first != second).mean() > 0.03 for second in pictures[i + 1 :])


def motion_of(name: str, count: int = 12) -> list[np.ndarray]:
    return [clip.tracks[0] for clip in clips_where(lambda c: MOTIONS[c.objects[0].motion] == name, count)]


def test_gliding_is_straight_and_steady_and_stays_inside():
    for track in motion_of("glide"):
        steps = np.diff(track[:, :2], axis=0)
        assert np.allclose(steps, steps[0], atol=1e-4)
        assert np.hypot(*steps[0]) > 0.02
        assert (track[:, :2] > track[:, 2:3] - 1e-3).all() and (track[:, :2] < 1 - track[:, 2:3] + 1e-3).all()


def test_bouncing_falls_with_constant_acceleration_and_returns():
    for track in motion_of("bounce"):
        acceleration = np.diff(track[:, 1], n=2)
        assert (np.abs(acceleration - np.median(acceleration)) < 1e-3).sum() >= 8
        assert np.median(acceleration) > 0 and (acceleration < 0).any()


def test_orbiting_keeps_its_distance_from_a_centre():
    for track in motion_of("orbit"):
        a = np.column_stack([2 * track[:, :2], np.ones(len(track))])
        solution, *_ = np.linalg.lstsq(a, (track[:, :2] ** 2).sum(1), rcond=None)
        distances = np.hypot(*(track[:, :2] - solution[:2]).T)
        assert np.ptp(distances) < 1e-3 and distances.mean() > 0.15


def test_spinning_and_pulsing_keep_their_position():
    for track in motion_of("spin"):
        assert np.ptp(track[:, :3], axis=0).max() < 1e-6 and np.ptp(track[:, 3]) > 2
    for track in motion_of("pulse"):
        assert np.ptp(track[:, :2], axis=0).max() < 1e-6 and track[:, 2].max() / track[:, 2].min() > 1.5


def test_swinging_goes_both_ways_and_tilts():
    for track in motion_of("swing"):
        sideways = np.diff(track[:, 0])
        assert sideways.max() > 0.01 and sideways.min() < -0.01 and np.ptp(track[:, 3]) > 0.5


def test_the_agent_follows_its_actions_and_pushes_shapes_it_touches():
    config = ShapesConfig(controllable=True, max_objects=2)
    pushed = 0
    for index in range(30):
        right = np.tile(np.array([1.0, 0.0], np.float32), (config.num_frames, 1))
        clip = ShapesWorld(config).clip(index, actions=right)
        agent, other = clip.tracks
        assert (np.diff(agent[:, 0]) >= -1e-6).all() and agent[-1, 0] > 0.75
        gap = np.hypot(*(agent[:, :2] - other[:, :2]).T) - agent[:, 2] - other[:, 2]
        moved = np.abs(np.diff(other[:, :2], axis=0)).max()
        pushed += moved > 0.02
        walls = (other[:, :2] - other[:, 2:3] < 1e-3) | (1 - other[:, :2] - other[:, 2:3] < 1e-3)
        assert ((gap > -1e-3) | walls.any(1)).all()
    assert pushed >= 3


def test_wrong_actions_and_sizes_are_explained():
    world = ShapesWorld(ShapesConfig(controllable=True))
    with pytest.raises(UserError, match="16 rows"):
        world.clip(0, actions=np.zeros((3, 2), np.float32))
    with pytest.raises(UserError, match="not controllable"):
        ShapesWorld().clip(0, actions=np.zeros((16, 2), np.float32))
    with pytest.raises(UserError, match="at least 8×8"):
        ShapesConfig(height=4)
