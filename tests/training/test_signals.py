import signal

import pytest
import torch

from mutoscope.training.checkpoint import checkpoint_paths
from mutoscope.training.distributed import Process
from mutoscope.training.signals import NOTHING, SAVE, STOP, StopSignals, early_signals
from mutoscope.training.trainer import train_model
from training.fakes import FakeModel, FakeSource, features_recipe

ALONE = Process(0, 1, torch.device("cpu"))


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"])
def test_signals_that_stop(name):
    with StopSignals() as stop:
        assert stop.take() == NOTHING
        signal.raise_signal(getattr(signal, name))
        assert stop.take() == STOP and stop.take() == STOP and stop.take_name() == name


def test_a_signal_that_saves_counts_once():
    with StopSignals() as stop:
        signal.raise_signal(signal.SIGUSR2)
        assert stop.take() == SAVE and stop.take() == NOTHING


def test_only_a_second_interrupt_interrupts_at_once():
    with StopSignals():
        signal.raise_signal(signal.SIGHUP)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("name", ["SIGHUP", "SIGINT"])
def test_a_run_that_was_started_to_ignore_a_signal_ignores_it(name):
    """nohup ignores SIGHUP, `&` in a script SIGINT: Ctrl-C is meant for the script."""
    number = getattr(signal, name)
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with early_signals(ALONE), StopSignals() as stop:
            signal.raise_signal(number)
            assert stop.take() == NOTHING
    finally:
        signal.signal(number, before)


def test_before_the_first_update_a_signal_interrupts_and_one_that_saves_does_nothing():
    before = signal.getsignal(signal.SIGUSR1)
    with early_signals(ALONE):
        signal.raise_signal(signal.SIGUSR2)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGUSR1)
    assert signal.getsignal(signal.SIGUSR1) is before


def during_update(name: str, out, **loop):
    class Signalling(FakeSource):
        def __getitem__(self, indices):
            if 4 * 5 in indices:
                signal.raise_signal(getattr(signal, name))
            return super().__getitem__(indices)

    return train_model(FakeModel(), features_recipe(checkpoint_every=100, **loop), Signalling(), out)


@pytest.mark.parametrize("name", ["SIGHUP", "SIGUSR1"])
def test_a_run_saves_and_stops(tmp_path, name):
    result = during_update(name, tmp_path)
    assert not result.finished and result.steps_done == 6
    assert [path.name for path in checkpoint_paths(tmp_path / "checkpoints")] == ["step-00000006.pt"]
    assert f"{name}: checkpoint saved after update 6." in (tmp_path / "run.log").read_text()


def test_a_run_saves_and_goes_on(tmp_path):
    assert during_update("SIGUSR2", tmp_path).finished
    names = [path.name for path in checkpoint_paths(tmp_path / "checkpoints")]
    assert names == ["step-00000006.pt", "step-00000012.pt"]
