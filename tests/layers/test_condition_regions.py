import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mutoscope.errors import UserError
from mutoscope.layers.condition_regions import TASKS, check_task, condition_region, strip_starts, touched_tokens

# Share of latent positions that have to be generated, 4x16x16 latents (arXiv 2212.05199, Tab. 12).
GENERATED_TOKENS = {
    "frame-prediction": 0.75,
    "frame-interpolation": 0.5,
    "outpaint-central": 0.75,
    "outpaint-vertical": 0.5,
    "outpaint-horizontal": 0.5,
    "outpaint-dynamic": 0.5,
    "inpaint-central": 0.25,
    "inpaint-dynamic": 0.25,
    "class-conditional": 1.0,
    "class-conditional-frame-prediction": 0.75,
}


@pytest.mark.parametrize("task", TASKS)
def test_generated_share_is_the_published_one(task: str):
    condition_share = condition_region(task, (4, 16, 16)).float().mean().item()
    assert 1 - condition_share == GENERATED_TOKENS[task]


def test_the_strip_moves_from_left_to_right_and_rounds_half_to_even():
    assert strip_starts(128, 16) == [0, 4, 9, 13, 17, 21, 26, 30, 34, 38, 43, 47, 51, 55, 60, 64]
    assert strip_starts(64, 16) == [0, 2, 4, 6, 9, 11, 13, 15, 17, 19, 21, 23, 26, 28, 30, 32]
    assert strip_starts(16, 4) == [0, 3, 5, 8]
    assert strip_starts(16, 1) == [0]


@given(st.sampled_from(TASKS), st.tuples(st.integers(1, 5), st.integers(4, 20), st.integers(4, 20)))
def test_every_shape_has_a_region(task: str, shape: tuple[int, int, int]):
    region = condition_region(task, shape)
    assert region.shape == shape and region.dtype == torch.bool
    assert bool(region.any()) == (task != "class-conditional")


def test_context_frames_count_from_both_ends():
    region = condition_region("frame-interpolation", (6, 2, 2), first_frames=2, last_frames=1)
    assert region[:, 0, 0].tolist() == [True, True, False, False, False, True]


def test_an_unknown_task_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match="frame-prediction"):
        condition_region("frame_prediktion", (4, 4, 4))
    with pytest.raises(UserError, match="not trained for"):
        check_task("inpaint-central", ("class-conditional",))


@pytest.mark.parametrize("task", TASKS)
def test_touched_tokens_exceed_the_latent_rule_in_dynamic_tasks_alone(task: str):
    latent, pixels = condition_region(task, (4, 16, 16)), condition_region(task, (16, 128, 128))
    touched = touched_tokens(pixels, (4, 16, 16))
    missed = {"outpaint-dynamic": 128, "inpaint-dynamic": 64}
    assert int((touched & ~latent).sum()) == missed.get(task, 0)
    if task != "frame-interpolation":  # one context frame at each end touches the same two latent frames
        assert not (latent & ~touched).any()
