import math

import pytest
import torch

from mutoscope.training.health import EXPLODED, PROBATION, WINDOW, Health


def observed(losses, norms=None) -> Health:
    health = Health()
    for step, loss in enumerate(losses):
        norm = 1.0 if norms is None else norms[step]
        health.observe(step, torch.tensor(loss), torch.tensor(norm))
    return health


def test_a_checkpoint_is_judged_once_enough_updates_followed():
    health = observed([1.0] * (50 + PROBATION - 1))
    assert health.verdict(50) is None and health.verdict(49) is True


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_one_update_that_is_not_finite_is_enough(bad):
    assert observed([1.0] * 55 + [bad]).verdict(50) is False
    assert observed([1.0] * 60, [1.0] * 55 + [bad] + [1.0] * 4).verdict(50) is False


def test_a_loss_or_norm_that_stays_ten_times_as_high_has_exploded():
    up = EXPLODED * 1.1
    assert observed([1.0] * 50 + [up] * PROBATION).verdict(50) is False
    assert observed([1.0] * 80, [0.3] * 50 + [0.3 * up] * 30).verdict(50) is False
    assert observed([-1.0] * 50 + [-up] * PROBATION).verdict(50) is False


def test_single_peaks_and_slow_changes_are_healthy():
    peaks = ([1.0] * 4 + [500.0]) * 40
    assert observed(peaks, peaks).verdict(100) is True
    falling = [100.0 * 0.9**step for step in range(200)]
    assert observed(falling).verdict(100) is True


def test_the_beginning_of_a_run_has_nothing_to_compare_with():
    assert observed([1.0] * 5 + [100.0] * PROBATION).verdict(5) is True


def test_the_updates_of_an_earlier_process_come_from_its_log():
    lines = [{"step": step, "loss": 1.0, "grad_norm": 1.0} for step in range(WINDOW)]
    health = Health([*lines, {"step": WINDOW, "validation_loss": 1.0}])
    for step in range(WINDOW, WINDOW + PROBATION):
        health.observe(step, torch.tensor(1000.0), torch.tensor(1.0))
    assert health.verdict(WINDOW) is False


def test_an_earlier_process_need_not_have_logged_every_update():
    lines = [{"step": step, "loss": 1.0, "grad_norm": 1.0} for step in range(0, 60, 10)]
    health = Health(lines)
    for step in range(60, 70):
        health.observe(step, torch.tensor(1.0), torch.tensor(1.0))
    assert health.verdict(50) is True and health.verdict(55) is None
