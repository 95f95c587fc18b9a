"""Figures and their intervals."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mutoscope.errors import UserError
from mutoscope.evaluation.metrics import intervals
from mutoscope.evaluation.metrics.intervals import (
    Figure,
    checked_count,
    codebook_figure,
    frechet_figure,
    histogram_figure,
    mean_figure,
    ratio_figure,
)

SEEDS = st.integers(0, 2**32 - 1)


def ends(found: Figure) -> tuple[float, float]:
    assert found["ci95"] is not None
    low, high = found["ci95"]
    return low, high


def value(found: Figure) -> float:
    assert found["value"] is not None
    return found["value"]


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_mean_has_an_interval_that_shrinks_with_the_count():
    few, many = (mean_figure(normal(0, n), seed=0) for n in (20, 2000))
    for figure in (few, many):
        low, high = ends(figure)
        assert low < value(figure) < high
    width = {name: ends(f)[1] - ends(f)[0] for name, f in (("few", few), ("many", many))}
    assert width["few"] == pytest.approx(2 * 1.96 / math.sqrt(20), rel=0.5)
    assert width["many"] == pytest.approx(2 * 1.96 / math.sqrt(2000), rel=0.2)


def test_figures_repeat_with_the_seed_and_leave_no_global_trace():
    np.random.seed(0)
    state = np.random.get_state(legacy=False)["state"]["key"].copy()
    values = normal(1, 30)
    assert mean_figure(values, seed=3) == mean_figure(values, seed=3) != mean_figure(values, seed=4)
    assert (np.random.get_state(legacy=False)["state"]["key"] == state).all()


def test_booleans_are_counted():
    assert mean_figure(torch.tensor([True, True, True, False]), seed=0)["value"] == 0.75


def test_an_infinite_value_becomes_null_for_json():
    figure = mean_figure(torch.tensor([30.0, math.inf]), seed=0)
    assert figure == {"value": None, "ci95": None}
    json.dumps(figure, allow_nan=False)


def test_a_ratio_of_equal_sides_is_one_and_paired_it_is_certain():
    right = torch.arange(40) % 5 > 0
    alone, paired = ratio_figure(right, right, seed=0), ratio_figure(right, right, seed=0, paired=True)
    assert value(alone) == value(paired) == 1
    assert paired["ci95"] == [1.0, 1.0]
    assert ends(alone)[0] < 1 < ends(alone)[1]


def test_a_ratio_over_nothing_has_no_value():
    assert ratio_figure(torch.ones(5), torch.zeros(5), seed=0) == {"value": None, "ci95": None}


@settings(max_examples=4)
@given(SEEDS, st.integers(4, 40), st.integers(4, 40))
def test_the_interval_of_a_distance_never_goes_below_zero_and_holds_the_value(seed, n, m):
    figure = frechet_figure(normal(seed, n, 3), normal(seed + 1, m, 3), seed=0)
    low, high = ends(figure)
    assert 0 <= low <= high
    # Centred on the value by its mean, so the interval holds it unless the resamples are extremely skewed.
    assert low <= value(figure) * 1.5 + 1e-9 and value(figure) <= high * 1.5 + 1e-9


def test_a_distance_grows_with_the_shift():
    x = normal(0, 50, 4)
    near, far = frechet_figure(x, normal(1, 50, 4), seed=0), frechet_figure(x, normal(1, 50, 4) + 3, seed=0)
    assert ends(far)[0] > ends(near)[1]


def test_histogram_distance_is_zero_for_equal_and_one_for_disjoint_predictions():
    x, y = torch.tensor([0, 1, 1, 2]), torch.tensor([3, 3, 4, 4])
    assert histogram_figure(x, x.flip(0), 5, seed=0)["value"] == 0
    assert histogram_figure(x, y, 5, seed=0)["value"] == 1
    assert histogram_figure(x, torch.tensor([0, 1, 2, 2]), 5, seed=0)["value"] == 0.25


def test_codebook_use_counts_distinct_codes():
    tokens = torch.tensor([[[0, 1]], [[1, 1]], [[1, 7]]])
    figure = codebook_figure(tokens, vocab_size=10)
    assert value(figure) == pytest.approx(0.3)
    assert ends(figure)[0] < 0.3 < ends(figure)[1]


def test_codebook_use_is_certain_where_no_code_depends_on_one_clip():
    figure = codebook_figure(torch.tensor([[0, 1], [1, 0], [0, 1]]), vocab_size=4)
    assert figure == {"value": 0.5, "ci95": [0.5, 0.5]}


@pytest.mark.parametrize("count", [-3, 0, 1])
def test_fewer_than_two_clips_are_refused(count):
    with pytest.raises(UserError, match=f"at least 2 clips, {count} requested"):
        checked_count(count)


def test_intervals_do_not_depend_on_how_many_resamples_are_drawn_at_once(monkeypatch):
    values = torch.randn(50, generator=torch.Generator().manual_seed(0)).numpy()
    whole = mean_figure(values, 3)
    monkeypatch.setattr(intervals, "RESAMPLED_AT_ONCE", 120)  # two resamples
    assert mean_figure(values, 3) == whole
