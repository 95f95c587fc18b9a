"""The rule for streams on windows of numbers: what is frozen, out of range, far, or none of these."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mutoscope.evaluation.metrics.alive import LARGEST_PART, AliveRule, Windows


def windows(count: int, seed: int, motion: float = 4.0) -> Windows:
    """Windows that move in proportion to their only action, which is 0.5 to 1."""
    generator = torch.Generator().manual_seed(seed)
    action = 0.5 + 0.5 * torch.rand(count, 1, generator=generator, dtype=torch.float64)
    return Windows(
        features=torch.randn(count, 6, generator=generator, dtype=torch.float64),
        statistics=30 + 5 * torch.rand(count, 3, generator=generator, dtype=torch.float64),
        motion=motion * action[:, 0] * (0.8 + 0.4 * torch.rand(count, generator=generator, dtype=torch.float64)),
        actions=action,
    )


@pytest.fixture(scope="module")
def rule() -> AliveRule:
    return AliveRule.fit(windows(400, 0), windows(300, 1))


@given(seed=st.integers(2, 10_000))
def test_real_windows_are_accepted(seed: int):
    rule = AliveRule.fit(windows(100, 0), windows(100, 1))
    assert rule.alive(windows(100, seed)).double().mean() >= 0.9


def test_the_limits_accept_the_windows_that_set_them(rule: AliveRule):
    assert rule.alive(windows(300, 1)).double().mean() >= 0.985


def test_each_part_of_the_rule_finds_its_windows(rule: AliveRule):
    real = windows(50, 7)
    still = replace(real, motion=torch.zeros_like(real.motion))
    assert rule.part == LARGEST_PART and rule.frozen(still).all() and not rule.frozen(real).any()
    bright = replace(real, statistics=real.statistics + torch.tensor([0, 0, 50.0]))
    assert rule.out_of_range(bright).all() and not rule.out_of_range(real).any()
    odd = replace(real, features=real.features + 20)
    assert rule.far(odd).all()
    for dead in (still, bright, odd, replace(real, features=real.features * torch.nan)):
        assert not rule.alive(dead).any()


def test_windows_may_stand_still_where_real_ones_do():
    calm = windows(100, 0, motion=0.0)
    rule = AliveRule.fit(calm, windows(100, 1, motion=0.0))
    assert rule.alive(windows(50, 2, motion=0.0)).double().mean() > 0.9


@given(st.floats(0.0, 100.0))
def test_more_motion_is_never_more_frozen(motion: float):
    rule, real = AliveRule.fit(windows(60, 0), windows(60, 1)), windows(20, 3)
    slow, fast = (replace(real, motion=torch.full_like(real.motion, value)) for value in (motion, motion + 1))
    assert not (rule.frozen(fast) & ~rule.frozen(slow)).any()


def test_equal_windows_do_not_divide_by_zero():
    one = Windows(
        torch.ones(8, 3).double(), torch.ones(8, 3).double(), torch.ones(8).double(), torch.ones(8, 1).double()
    )
    rule = AliveRule.fit(one, one)
    assert rule.alive(one).all()
