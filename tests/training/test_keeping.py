import json
from dataclasses import replace

import torch

from mutoscope.training.checkpoint import step_of
from mutoscope.training.health import PROBATION, Health
from mutoscope.training.keeping import BEST, CheckpointKeeper
from training.fakes import LOOP


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def keeper_of(folder, start=0, clock=None, **loop) -> CheckpointKeeper:
    """A keeper whose checkpoints are empty files."""
    folder.mkdir(exist_ok=True)
    loop = replace(LOOP, **loop)

    def write(steps_done, spare):
        (folder / f"step-{steps_done:08d}.pt").touch()
        for old in sorted(folder.glob("step-*.pt"))[: -loop.checkpoints_total_limit]:
            if step_of(old) not in spare:
                old.unlink()

    return CheckpointKeeper(folder, loop, start, Health(), write, clock or Clock())


def follow(keeper, first, count, loss=1.0):
    for step in range(first, first + count):
        keeper.observe(step, torch.tensor(loss), torch.tensor(1.0))


def test_a_checkpoint_is_due_by_time(tmp_path):
    clock = Clock()
    keeper = keeper_of(tmp_path, clock=clock, checkpoint_minutes=10.0)
    clock.now = 599.0
    assert not keeper.is_due()
    clock.now = 600.0
    assert keeper.is_due()
    keeper.save(5)
    assert not keeper.is_due()
    assert not keeper_of(tmp_path, clock=lambda: 0.0, checkpoint_minutes=0.0).is_due()


def test_the_checkpoint_with_the_lowest_held_back_loss_stays(tmp_path):
    keeper = keeper_of(tmp_path)
    assert keeper.improves(3.0)
    keeper.save_best(10, 3.0)
    follow(keeper, 0, 100)
    for step in (20, 30, 40):
        keeper.save(step)
    assert keeper.steps() == [10, 30, 40]
    assert not keeper.improves(3.5) and keeper.improves(2.0)
    assert not keeper_of(tmp_path, start=40).improves(3.5)  # a continued run knows it too
    assert keeper_of(tmp_path, start=5).improves(3.5)  # and repeats what came after its start
    follow(keeper, 100, 1)
    keeper.save_best(50, 2.0)
    keeper.save(60)
    assert keeper.steps() == [40, 50, 60]  # 40 because no newer one is confirmed yet
    assert json.loads((tmp_path / BEST).read_text())["step"] == 50


def test_a_confirmed_checkpoint_stays_until_a_newer_one_is_confirmed(tmp_path):
    keeper = keeper_of(tmp_path, checkpoints_total_limit=1)
    keeper.save(30)
    follow(keeper, 0, 30 + PROBATION)
    for step in (55, 60, 65):  # each before the updates that could confirm the one before
        keeper.save(step)
    assert keeper.steps() == [30, 65]
    follow(keeper, 50, 15 + PROBATION)
    keeper.save(90)
    assert keeper.steps() == [65, 90]


def test_after_a_divergence_the_confirmed_checkpoint_is_named_and_the_others_are_set_aside(tmp_path):
    keeper = keeper_of(tmp_path)
    follow(keeper, 0, 30)
    keeper.save(30)
    follow(keeper, 30, PROBATION)
    keeper.save(50)
    follow(keeper, 50, 5, loss=float("nan"))
    message = keeper.after_divergence()
    assert "step-00000030.pt (not confirmed, and set aside: step-00000050.pt)" in message
    assert keeper.steps() == [30] and (tmp_path / "suspect-00000050.pt").exists()


def test_checkpoints_just_before_a_run_was_continued_wait_for_their_updates(tmp_path):
    for step in (10, 95, 100):
        (tmp_path / f"step-{step:08d}.pt").touch()
    keeper = keeper_of(tmp_path, start=100)
    follow(keeper, 100, 3)
    follow(keeper, 103, 1, loss=float("nan"))
    assert "step-00000010.pt (not confirmed, and set aside: step-00000095.pt, step-00000100.pt)" in (
        keeper.after_divergence()
    )
    assert keeper.steps() == [10]


def test_a_checkpoint_that_is_not_good_is_judged_once(tmp_path, monkeypatch):
    """Every judgement waits for the device."""
    keeper, read = keeper_of(tmp_path), []
    follow(keeper, 0, 60)
    keeper.save(60)
    follow(keeper, 60, PROBATION, loss=100.0)  # exploded
    monkeypatch.setattr(keeper.health, "_read", lambda: read.append(True))
    follow(keeper, 60 + PROBATION, 50, loss=100.0)
    assert not read
    keeper.save(130)
    assert keeper.steps() == [60, 130]  # no good one is there to be kept


def test_where_no_checkpoint_is_confirmed_the_oldest_is_named(tmp_path):
    """The newest may hold the weights that led to the loss."""
    keeper = keeper_of(tmp_path)
    keeper.save(4)
    keeper.save(8)
    follow(keeper, 8, 3, loss=float("nan"))
    message = keeper.after_divergence()
    assert "step-00000004.pt, which the updates after it do not confirm" in message
    assert "set aside: step-00000008.pt" in message and keeper.steps() == [4]


def test_without_another_checkpoint_the_only_one_stays(tmp_path):
    keeper = keeper_of(tmp_path)
    assert keeper.after_divergence() == "there is no earlier checkpoint"
    keeper.save(4)
    follow(keeper, 4, 3, loss=float("inf"))
    assert "do not confirm" in keeper.after_divergence() and keeper.steps() == [4]
