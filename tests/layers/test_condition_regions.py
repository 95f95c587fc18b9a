import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mutoscope.errors import UserError
from mutoscope.layers.condition_regions import (
    RECTANGULAR,
    TASKS,
    Rectangle,
    check_task,
    condition_region,
    strip_starts,
    touched_tokens,
)

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
    assert strip_starts(64, 16) == [0, 4, 9, 13, 17, 21, 26, 30, 34, 38, 43, 47, 51, 55, 60, 64]
    assert strip_starts(32, 16) == [0, 2, 4, 6, 9, 11, 13, 15, 17, 19, 21, 23, 26, 28, 30, 32]
    assert strip_starts(8, 4) == [0, 3, 5, 8]
    assert strip_starts(8, 1) == [0]


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


CENTRE = Rectangle(0.25, 0.25, 0.75, 0.75)


@pytest.mark.parametrize("task", RECTANGULAR)
@given(shape=st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5)))
def test_the_central_rectangle_is_the_papers_region(task: str, shape: tuple[int, int, int]):
    shape = (shape[0], 4 * shape[1], 4 * shape[2])
    assert torch.equal(condition_region(task, shape, rectangle=CENTRE), condition_region(task, shape))


def test_a_rectangle_is_shown_by_outpainting_and_hidden_by_inpainting():
    corner = Rectangle(0, 0.5, 0.25, 1)
    shown = condition_region("outpaint-central", (2, 4, 8), rectangle=corner)
    assert shown[0].nonzero().tolist() == [[2, 0], [2, 1], [3, 0], [3, 1]]
    assert torch.equal(condition_region("inpaint-central", (2, 4, 8), rectangle=corner), ~shown)
    assert condition_region("outpaint-vertical", (2, 4, 8), rectangle=corner).sum() == 2 * 4 * 2
    assert condition_region("outpaint-horizontal", (2, 4, 8), rectangle=corner).sum() == 2 * 2 * 8


def test_the_dynamic_tasks_move_the_rectangle_to_the_right_edge():
    narrow = Rectangle(0.5, 0.5, 0.75, 1)
    hidden = ~condition_region("inpaint-dynamic", (3, 4, 8), rectangle=narrow)
    assert hidden[:, 3].nonzero().tolist() == [[0, 0], [0, 1], [1, 3], [1, 4], [2, 6], [2, 7]]
    assert not hidden[:, :2].any()


sides = st.lists(st.floats(0, 1), min_size=2, max_size=2, unique=True).map(sorted)


@given(sides, sides, st.integers(1, 9), st.integers(1, 9))
def test_every_rectangle_covers_part_of_every_grid(across: list[float], down: list[float], h: int, w: int):
    region = condition_region(
        "outpaint-central", (1, h, w), rectangle=Rectangle(across[0], down[0], across[1], down[1])
    )
    assert region.any()


@pytest.mark.parametrize("found", [(0.5, 0, 0.5, 1), (0, 0, 1.5, 1), (0, -0.1, 1, 1), (0, 0.6, 1, 0.4)])
def test_a_rectangle_outside_the_frame_or_without_area_is_refused(found: tuple[float, float, float, float]):
    with pytest.raises(UserError, match="left < right"):
        Rectangle(*found)


@pytest.mark.parametrize(
    "found", [None, "0,0,1,1", [0, 0, 1], [0, 0, 1, "1"], [0, 0, 1, float("nan")], 3, [[0], 0, 1, 1]]
)
def test_a_rectangle_is_four_numbers(found: object):
    with pytest.raises(UserError, match="four numbers"):
        Rectangle.of(found)


def test_a_task_of_whole_frames_takes_no_rectangle():
    with pytest.raises(UserError, match="whole frames"):
        condition_region("frame-prediction", (4, 4, 4), rectangle=CENTRE)
