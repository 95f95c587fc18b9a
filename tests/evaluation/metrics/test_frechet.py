"""Fréchet distance: known values, and the laws it must obey for any features."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mutoscope.errors import UserError
from mutoscope.evaluation.metrics.frechet import FeatureStatistics, frechet_distance, frechet_distance_between

SEEDS = st.integers(0, 2**32 - 1)


def features(seed: int, n: int, d: int, scale: float = 1.0, offset: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=generator, dtype=torch.float64)
    rows = torch.randn(n, d, generator=generator, dtype=torch.float64) @ mixing
    return rows * scale + offset


def traces(*sets: torch.Tensor) -> float:
    return sum(FeatureStatistics.of(rows).covariance().trace().item() for rows in sets)


@given(SEEDS, st.integers(2, 40), st.integers(2, 40), st.integers(1, 12))
def test_distance_is_symmetric(seed, n, m, d):
    x, y = features(seed, n, d), features(seed + 1, m, d)
    there, back = frechet_distance_between(x, y), frechet_distance_between(y, x)
    assert there == pytest.approx(back, abs=1e-10 * traces(x, y))


@given(SEEDS, st.integers(2, 30), st.integers(1, 50))
def test_equal_sets_are_at_zero_even_with_fewer_clips_than_features(seed, n, d):
    x = features(seed, n, d)
    distance = frechet_distance(FeatureStatistics.of(x), FeatureStatistics.of(x.clone()))
    assert abs(distance.raw) <= 1e-10 * (1 + traces(x))
    assert distance.value == max(distance.raw, 0)  # rounding never shows as a negative distance


@given(SEEDS, st.integers(2, 30), st.integers(1, 12), st.floats(-100, 100))
def test_a_shift_costs_its_squared_length(seed, n, d, shift):
    x = features(seed, n, d)
    assert frechet_distance_between(x, x + shift) == pytest.approx(d * shift**2, abs=1e-9 * (1 + traces(x)), rel=1e-9)


@given(SEEDS, st.integers(2, 30), st.integers(1, 40), st.floats(0.1, 10))
def test_scaling_about_the_mean_costs_the_squared_change_of_spread(seed, n, d, factor):
    x = features(seed, n, d)
    mean = x.mean(dim=0)
    scaled = mean + factor * (x - mean)
    expected = (1 - factor) ** 2 * traces(x)
    assert frechet_distance_between(x, scaled) == pytest.approx(expected, abs=1e-9 * (1 + traces(x, scaled)))


def test_commuting_covariances_have_the_closed_form():
    # +-1 in every coordinate in turn: mean zero, diagonal covariance.
    d = 4
    x = torch.cat([torch.eye(d), -torch.eye(d)]).double() * torch.tensor([1.0, 2.0, 3.0, 0.0])
    y = torch.cat([torch.eye(d), -torch.eye(d)]).double() * torch.tensor([2.0, 2.0, 0.0, 5.0])
    expected = (1 + 0 + 9 + 25) * 2 / (2 * d - 1)
    assert frechet_distance_between(x, y) == pytest.approx(expected, rel=1e-12)


@given(SEEDS, st.lists(st.integers(0, 9), min_size=1, max_size=8), st.integers(1, 6), st.floats(-1e4, 1e4))
def test_streaming_gives_what_one_batch_gives(seed, sizes, d, offset):
    rows = features(seed, sum(sizes) + 2, d, offset=offset)
    stream = FeatureStatistics(d)
    for batch in rows.split([*sizes, 2]):
        stream.update(batch)
    whole = FeatureStatistics.of(rows)
    assert stream.count == whole.count == len(rows)
    scale = 1 + abs(offset)
    torch.testing.assert_close(stream.mean, whole.mean, atol=1e-12 * scale, rtol=0)
    torch.testing.assert_close(stream.covariance(), whole.covariance(), atol=1e-11 * scale, rtol=1e-11)
    np.testing.assert_allclose(
        whole.covariance().numpy(), np.atleast_2d(np.cov(rows.numpy(), rowvar=False)), atol=1e-11 * scale, rtol=1e-11
    )


@given(SEEDS, st.integers(0, 9), st.integers(0, 9), st.integers(2, 9), st.integers(1, 6))
def test_merging_is_associative_and_equals_one_stream(seed, a, b, c, d):
    rows = features(seed, a + b + c, d, offset=7.0)
    x, y, z = (FeatureStatistics(d).update(part) for part in rows.split([a, b, c]))
    left, right, whole = x.merge(y).merge(z), x.merge(y.merge(z)), FeatureStatistics.of(rows)
    for merged in (left, right):
        assert merged.count == whole.count
        torch.testing.assert_close(merged.mean, whole.mean, atol=1e-12, rtol=1e-12)
        torch.testing.assert_close(merged.scatter, whole.scatter, atol=1e-10, rtol=1e-10)


def test_merging_leaves_both_sides_as_they_were():
    x, y = FeatureStatistics.of(features(0, 5, 3)), FeatureStatistics.of(features(1, 6, 3))
    before = x.mean.clone(), x.scatter.clone(), y.mean.clone()
    x.merge(y)
    assert (x.count, y.count) == (5, 6)
    assert torch.equal(x.mean, before[0]) and torch.equal(x.scatter, before[1]) and torch.equal(y.mean, before[2])


def test_input_is_never_changed():
    rows = features(0, 6, 3)
    before = rows.clone()
    first = frechet_distance_between(rows, rows + 1)
    assert torch.equal(rows, before)
    assert frechet_distance_between(rows, rows + 1) == first


def test_biased_covariance_divides_by_the_count():
    x = FeatureStatistics.of(features(0, 5, 3))
    torch.testing.assert_close(x.covariance(biased=True) * 5, x.covariance() * 4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_features_that_are_not_finite_are_refused(bad):
    rows = features(0, 6, 3)
    rows[2, 1] = bad
    with pytest.raises(UserError, match="1 of 6 clips are not finite"):
        FeatureStatistics.of(rows)
    with pytest.raises(UserError, match="not finite"):
        FeatureStatistics(3).update(rows)


def test_widths_that_differ_are_refused():
    with pytest.raises(UserError, match="width 3 and 4"):
        frechet_distance_between(features(0, 6, 3), features(0, 6, 4))
    with pytest.raises(UserError, match="width"):
        FeatureStatistics(3).update(features(0, 6, 4))
    with pytest.raises(UserError, match="width"):
        FeatureStatistics(3).merge(FeatureStatistics(4))


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_clips_are_refused(n):
    with pytest.raises(UserError, match=f"at least 2 clips on each side, found {n}"):
        frechet_distance_between(features(0, n, 3), features(0, 6, 3))


def test_features_that_are_no_rows_are_refused():
    with pytest.raises(UserError, match="rows"):
        FeatureStatistics.of(np.zeros((2, 3, 4)))
