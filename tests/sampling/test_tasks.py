import pytest
import torch

from mutoscope.errors import UserError
from mutoscope.models.magvit import TASK_TOKENS
from mutoscope.sampling.tasks import (
    TASKS,
    balanced_task_order,
    condition_video,
    needs_video,
    pixel_mask,
)

VIDEO = torch.rand(2, 3, 8, 16, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1
PADDED_WITH_BLACK = ("outpaint-dynamic", "inpaint-central", "inpaint-dynamic", "class-conditional")


@pytest.mark.parametrize("task", TASKS)
def test_given_pixels_are_shown_and_the_clip_is_left_alone(task: str):
    original = VIDEO.clone()
    shown = condition_video(task, VIDEO)
    given = pixel_mask(task, 8, 16, 12).expand_as(VIDEO)
    assert shown.shape == VIDEO.shape and torch.equal(VIDEO, original)
    assert torch.equal(shown[given], VIDEO[given])
    assert bool((shown[~given] == -1).all()) == (task in PADDED_WITH_BLACK)


@pytest.mark.parametrize("task", TASKS)
def test_hidden_pixels_never_leak(task: str):
    given = pixel_mask(task, 8, 16, 12)
    other = torch.where(given, VIDEO, -VIDEO)
    assert torch.equal(condition_video(task, VIDEO), condition_video(task, other))


def test_frame_prediction_repeats_the_last_given_frame():
    shown = condition_video("frame-prediction", VIDEO, context_frames=3)
    assert torch.equal(shown[:, :, :3], VIDEO[:, :, :3])
    assert bool((shown[:, :, 3:] == VIDEO[:, :, 2:3]).all())


def test_interpolation_is_linear_between_the_inner_frames():
    shown = condition_video("frame-interpolation", VIDEO, context_frames=2)
    start, end = VIDEO[:, :, 1], VIDEO[:, :, 6]
    for j in range(1, 5):
        torch.testing.assert_close(shown[:, :, 1 + j], start + (end - start) * j / 5)


def test_outpainting_repeats_the_nearest_given_pixel():
    shown = condition_video("outpaint-central", VIDEO)
    assert torch.equal(shown[..., 0, 0], VIDEO[..., 4, 3])
    assert torch.equal(shown[..., -1, -1], VIDEO[..., 11, 8])
    assert torch.equal(shown[..., 6, 0], VIDEO[..., 6, 3])


def test_only_full_generation_needs_no_video():
    assert [task for task in TASKS if not needs_video(task)] == ["class-conditional"]


def test_impossible_contexts_are_refused():
    with pytest.raises(UserError, match="context frames"):
        condition_video("frame-prediction", VIDEO, context_frames=9)
    with pytest.raises(UserError, match="do not fit"):
        condition_video("frame-interpolation", VIDEO, context_frames=5)


def test_every_task_has_a_token():
    assert set(TASK_TOKENS) == set(TASKS)


def test_task_order_is_balanced_shuffled_and_reproducible():
    weights = {task: 1.0 for task in TASKS[:8]}
    order = balanced_task_order(weights, torch.Generator().manual_seed(1))
    assert len(order) == 800 and all(order.count(task) == 100 for task in weights)
    assert order == balanced_task_order(weights, torch.Generator().manual_seed(1)) != sorted(order)
    uneven = balanced_task_order({TASKS[0]: 2.0, TASKS[1]: 0.5}, torch.Generator().manual_seed(1))
    assert (uneven.count(TASKS[0]), uneven.count(TASKS[1])) == (400, 100)


@pytest.mark.parametrize("weights", [{}, {"frame-prediction": 0.0}, {"painting": 1.0}], ids=str)
def test_impossible_mixes_are_refused(weights: dict):
    with pytest.raises(UserError):
        balanced_task_order(weights, torch.Generator())
