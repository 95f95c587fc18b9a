"""Actions: reduction over frames, scaling, and what a recording's numbers are taken for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mutoscope.actions import ActionSpec, reduced_rows
from mutoscope.errors import UserError


@given(st.integers(1, 9), st.integers(1, 40))
def test_sums_of_a_stride_add_up_to_the_whole_and_buttons_are_held_if_pressed_once(stride: int, count: int) -> None:
    rows = np.random.default_rng(count).integers(0, 2, (count, 2)).astype(np.float32)
    reduced = reduced_rows(rows, ("sum", "max"), stride)
    assert len(reduced) == -(-count // stride)
    assert reduced[:, 0].sum() == rows[:, 0].sum()
    for step, row in enumerate(reduced):
        assert row[1] == rows[step * stride : (step + 1) * stride, 1].max()


def test_a_mean_is_taken_over_the_rows_that_there_are() -> None:
    rows = np.array([[1.0], [3.0], [5.0]], np.float32)
    assert reduced_rows(rows, ("mean",), 2).tolist() == [[2.0], [5.0]]


def test_columns_of_zeros_and_ones_are_buttons_and_axes_are_scaled_to_one() -> None:
    rows = np.random.default_rng(0).normal(5, 3, (500, 2)).astype(np.float32)
    rows[:, 1] = rows[:, 1] > 5
    spec = ActionSpec.measured(("dx", "press"), [rows[:250], rows[250:]], frame_stride=2)
    assert spec.kind == "continuous" and spec.is_button == (False, True)
    scaled = spec.scaled(reduced_rows(rows, spec.reduction, 2))
    assert abs(scaled[:, 0].mean()) < 1e-3 and abs(scaled[:, 0].std() - 1) < 1e-3
    assert set(scaled[:, 1]) == {0.0, 1.0}


def test_all_columns_of_zeros_and_ones_are_buttons() -> None:
    assert ActionSpec.measured(("a", "b"), [np.eye(2, dtype=np.float32)]).kind == "buttons"


def test_an_action_that_never_changes_is_shifted_only() -> None:
    spec = ActionSpec.measured(("x",), [np.full((9, 1), 7.0, np.float32)])
    assert spec.scale == (1.0,) and (spec.scaled(np.full((3, 1), 7.0, np.float32)) == 0).all()


def test_unknown_actions_stay_unknown() -> None:
    spec = ActionSpec.measured(("x",), [np.array([[1.0], [np.nan], [3.0]], np.float32)])
    assert np.isnan(spec.scaled(np.full((1, 1), np.nan, np.float32))).all()
    assert spec.offset == (2.0,)


def test_one_name_twice_is_refused() -> None:
    with pytest.raises(UserError, match="different names"):
        ActionSpec.plain(("up", "up"), "buttons")


@given(st.lists(st.integers(0, 7), max_size=6), st.sampled_from([1, 2, 3]), st.integers(0, 99))
def test_scaling_measured_episode_by_episode_is_that_of_all_rows(lengths: list[int], stride: int, seed: int):
    rng = np.random.default_rng(seed)
    episodes = [1000 + rng.normal(size=(length, 2)).astype(np.float32) for length in lengths]
    spec = ActionSpec.measured(("x", "y"), iter(episodes), frame_stride=stride)
    rows = [reduced_rows(episode, ("sum", "sum"), stride) for episode in episodes]
    joined = np.concatenate([np.zeros((0, 2)), *rows]).astype(np.float64)
    if len(joined):
        np.testing.assert_allclose(spec.offset, joined.mean(0), rtol=1e-12)
    if len(joined) > 1:
        np.testing.assert_allclose(spec.scale, joined.std(0), rtol=1e-9)


def test_buttons_with_other_numbers_than_zero_and_one_are_refused() -> None:
    rows = np.array([[0, 1], [1, 3]], np.float32)
    with pytest.raises(UserError, match="'b' is 3 in row 2: call it continuous"):
        ActionSpec.measured(("a", "b"), [rows], kind="buttons")


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_cannot_be_divided_by_is_refused(scale: float) -> None:
    with pytest.raises(UserError, match="positive scale"):
        ActionSpec(("x",), "continuous", (0.0,), (scale,), ("sum",))
