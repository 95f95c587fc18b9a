"""Sums of recognised actions: scores, intervals, and unknown actions."""

import math

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from mutoscope.evaluation.metrics.control import Recognised, action_sums, scores

BUTTON, AXIS = (True,), (False,)
numbers = st.floats(-100, 100, allow_nan=False, width=32)


def column(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)[None, :, None]  # (1, t, 1)


@given(st.lists(st.booleans(), min_size=2, max_size=30), st.lists(st.booleans(), min_size=30, max_size=30))
def test_balanced_accuracy_is_the_mean_of_two_rates(true: list[bool], said: list[bool]):
    said = said[: len(true)]
    sums = action_sums(column(list(map(float, said))), column(list(map(float, true))), BUTTON)
    [found] = scores(sums.sum(dim=0).numpy(), BUTTON)
    if len(set(true)) < 2:
        assert math.isnan(found)
        return
    rates = [np.mean([s == t for s, t in zip(said, true, strict=True) if t is kind]) for kind in (True, False)]
    assert math.isclose(found, np.mean(rates))


@given(st.lists(st.tuples(numbers, numbers), min_size=3, max_size=30))
def test_r2_is_one_minus_the_share_of_the_variance(pairs: list[tuple[float, float]]):
    found, true = (np.array(values, dtype=np.float64) for values in zip(*pairs, strict=True))
    [score] = scores(action_sums(column(list(found)), column(list(true)), AXIS).sum(dim=0).numpy(), AXIS)
    total = np.square(true - true.mean()).sum()
    if total > 1e-3 * np.square(true).sum() and total > 1e-3:
        assert math.isclose(score, 1 - np.square(found - true).sum() / total, rel_tol=1e-3, abs_tol=1e-3)


def test_unknown_actions_are_ignored():
    true, found = column([1, math.nan, 0]), column([1, 0, 0])
    assert action_sums(found, true, BUTTON)[0, 0].tolist() == [1, 1, 1, 1]
    assert scores(action_sums(found, true, AXIS).sum(dim=0).numpy(), AXIS).tolist() == [1.0]


def test_figures_have_intervals_a_mean_and_a_ratio():
    generator = torch.Generator().manual_seed(0)
    true = torch.randint(2, (40, 30, 2), generator=generator).float()
    chance = torch.randint(2, true.shape, generator=generator).float()
    both = (True, True)
    mine, real = (action_sums(found, true, both) for found in (chance, true))
    found = Recognised(mine, real, ("left", "fire"), both, seed=0).figures()
    assert found["action_accuracy_real"] == {"value": 1.0, "ci95": [1.0, 1.0]}
    low, high = found["action_accuracy_fire_ratio"]["ci95"] or (0, 0)
    assert low < 0.5 < high and low > 0.4 and high < 0.6
    assert found["action_accuracy"]["value"] is not None


def test_actions_that_never_change_have_no_figure():
    true = torch.zeros(3, 5, 2)
    true[..., 1] = torch.arange(5) % 2
    sums = action_sums(true, true, (True, True))
    found = Recognised(sums, sums, ("never", "often"), (True, True), seed=0)
    assert found.unmeasured == ["never"] and "action_accuracy_never" not in found.figures()
    assert found.figures()["action_accuracy"]["value"] == 1.0
