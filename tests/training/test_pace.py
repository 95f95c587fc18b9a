import pytest

from mutoscope.training.config import LoopConfig
from mutoscope.training.pace import Estimate, Pace, TimeShares, duration


class Clock:
    """Time that passes only when it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def estimates(loop: LoopConfig, seconds: float, updates: int, start: int = 0, pause: float = 0.0) -> list[Estimate]:
    """Every estimate of a run whose updates take this long, except for the first one, which takes an hour."""
    clock, found = Clock(), []
    pace = Pace(loop, start, clock)
    for step in range(start, start + updates):
        clock.now += seconds if step > start else 3600
        found.append(pace.update(step))
        clock.now += pause
        pace.pause(pause)
    return [estimate for estimate in found if estimate is not None]


def test_one_estimate_after_a_minute_of_updates_without_the_first():
    loop = LoopConfig(1_000, 1, recognisable_after=400)
    [estimate] = estimates(loop, seconds=2.0, updates=100)
    assert estimate.updates_per_second == pytest.approx(0.5)
    assert estimate.seconds_to_end == pytest.approx((1_000 - 31) / 0.5)
    assert estimate.seconds_to_recognisable == pytest.approx((400 - 31) / 0.5)
    assert estimate.values().keys() == {"updates_per_second", "seconds_to_end", "seconds_to_recognisable"}
    assert "in about 32 min" in estimate.sentence() and "recognisable output (update 400)" in estimate.sentence()


def test_contact_sheets_and_validations_do_not_count():
    loop = LoopConfig(1_000, 1)
    [estimate] = estimates(loop, seconds=2.0, updates=100, pause=30.0)
    assert estimate.updates_per_second == pytest.approx(0.5)
    assert "seconds_to_recognisable" not in estimate.values() and "recognisable" not in estimate.sentence()


def test_short_runs_have_no_estimate_and_slow_ones_a_measured_one():
    assert estimates(LoopConfig(1_000, 1), seconds=1.0, updates=60) == []
    [estimate] = estimates(LoopConfig(1_000, 1), seconds=100.0, updates=5)
    assert estimate.seconds_to_end == pytest.approx((1_000 - 4) * 100)


def test_a_resumed_run_counts_from_where_it_is():
    [estimate] = estimates(LoopConfig(1_000, 1, recognisable_after=400), seconds=2.0, updates=50, start=500)
    assert estimate.seconds_to_end == pytest.approx((1_000 - 531) * 2)
    assert estimate.sentence().endswith("recognisable output (update 400) reached.")


def test_a_goal_after_the_end_of_the_run_is_no_promise():
    [estimate] = estimates(LoopConfig(100, 1, recognisable_after=400), seconds=2.0, updates=50)
    assert estimate.seconds_to_recognisable is None


def test_durations_are_for_people():
    assert [duration(s) for s in (40, 119, 120, 7100, 7200, 90_060)] == [
        "40 s", "119 s", "2 min", "118 min", "2 h 0 min", "25 h 1 min",
    ]  # fmt: skip


def test_the_time_of_a_run_is_divided():
    clock = Clock()
    shares = TimeShares(clock)

    def slow():
        for number in range(2):
            clock.now += 3
            yield {"number": number}

    for _ in shares.reading(slow()):
        clock.now += 6
    with shares.spent("sheets"):
        clock.now += 2
    sentence = shares.sentence()
    assert sentence == (
        "20.0 s so far, of which data 30.00%, sheets 10.00%, checkpoints 0.00%, validation 0.00%; the rest updates."
    )
    assert shares.would_exceed("sheets", share=0.02, free_seconds=3.9)
    assert not shares.would_exceed("sheets", share=0.02, free_seconds=4.0)  # those two seconds, and two more
    assert shares.would_exceed("sheets", share=0.18, free_seconds=0.0)
    assert not shares.would_exceed("sheets", share=0.2, free_seconds=0.0)
