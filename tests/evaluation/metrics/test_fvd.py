"""The Fréchet figure of many clips and its interval."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mutoscope.errors import UserError
from mutoscope.evaluation.metrics import fvd
from mutoscope.evaluation.metrics.frechet import FeatureStatistics, frechet_distance_between
from mutoscope.evaluation.metrics.fvd import GroupedStatistics, repeated_frechet_figure, statistics


def rows(seed: int, n: int, d: int = 3, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + shift


@given(st.integers(0, 2**31), st.integers(2, 200), st.integers(1, 4))
def test_groups_pooled_once_each_are_the_whole_and_drawn_twice_are_repeated_rows(seed: int, n: int, d: int):
    values = rows(seed, n, d, 5.0)
    groups = GroupedStatistics.of(values)
    whole, pooled = statistics(values), groups.pooled(torch.ones(len(groups.counts), dtype=torch.float64))
    assert pooled.count == n
    torch.testing.assert_close(pooled.mean, whole.mean)
    torch.testing.assert_close(pooled.scatter, whole.scatter, rtol=1e-9, atol=1e-9)
    times = torch.ones(len(groups.counts), dtype=torch.float64)
    times[0] = 3
    first = values[:: len(groups.counts)]
    repeated = FeatureStatistics.of(torch.cat([values, first, first]))
    torch.testing.assert_close(groups.pooled(times).scatter, repeated.scatter, rtol=1e-9, atol=1e-9)


def test_the_figure_is_the_mean_distance_inside_its_interval():
    real, repeats = rows(0, 100), [rows(1, 90, shift=1.0), rows(2, 90, shift=2.0)]
    found = repeated_frechet_figure(repeats, real, False, seed=0)
    expected = sum(frechet_distance_between(part, real) for part in repeats) / 2
    assert found["value"] == pytest.approx(expected, rel=1e-9)
    low, high = found["ci95"] or (0, 0)
    assert 0 <= low < expected < high < 4 * expected
    assert found == repeated_frechet_figure(repeats, real, False, seed=0)


def test_biased_covariances_give_another_value():
    real, generated = rows(0, 10), rows(1, 10, shift=1.0)
    unbiased, biased = (repeated_frechet_figure([generated], real, b, seed=0)["value"] for b in (False, True))
    assert biased == pytest.approx(frechet_distance_between(generated, real, biased=True)) != unbiased


def test_wide_features_have_no_interval(monkeypatch):
    monkeypatch.setattr(fvd, "WIDEST_RESAMPLED", 2)
    assert repeated_frechet_figure([rows(0, 9)], rows(1, 9), False, 0)["ci95"] is None


def test_one_clip_and_values_that_are_not_finite_are_refused():
    with pytest.raises(UserError, match="at least 2 clips on each side, found 1"):
        repeated_frechet_figure([rows(0, 1)], rows(1, 9), False, 0)
    with pytest.raises(UserError, match="not finite"):
        repeated_frechet_figure([rows(0, 9) * torch.nan], rows(1, 9), False, 0)
