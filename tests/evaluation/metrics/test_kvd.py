"""Kernel distance: its formula, its bias, and what it refuses."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mutoscope.errors import UserError
from mutoscope.evaluation.metrics import kvd as module
from mutoscope.evaluation.metrics.kvd import kvd


def rows(seed: int, n: int, d: int, shift: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) + shift


@given(st.integers(0, 2**31), st.integers(2, 9), st.integers(2, 9), st.integers(1, 5))
def test_the_distance_follows_its_formula_in_any_blocks(seed: int, n: int, m: int, d: int):
    x, y = rows(seed, n, d), rows(seed + 1, m, d, 0.5)
    k = lambda a, b: ((a * b).sum() / d + 1) ** 3  # noqa: E731
    within_x = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within_y = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    between = sum(k(a, b) for a in x for b in y) / (n * m)
    expected = float(within_x + within_y - 2 * between)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", 2)
        assert kvd(x, y) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_few_clips_do_not_raise_the_distance_of_equal_distributions():
    few = torch.tensor([kvd(rows(2 * seed, 10, 4), rows(2 * seed + 1, 10, 4)) for seed in range(300)])
    assert abs(few.mean()) < 4 * few.std() / 300**0.5 and few.min() < 0


def test_bad_rows_are_refused():
    with pytest.raises(UserError, match="at least 2 clips on each side, found 1 and 5"):
        kvd(rows(0, 1, 3), rows(0, 5, 3))
    with pytest.raises(UserError, match="one width"):
        kvd(rows(0, 4, 3), rows(0, 5, 4))
    with pytest.raises(UserError, match="not finite"):
        kvd(rows(0, 4, 3), rows(0, 5, 3) * torch.nan)
