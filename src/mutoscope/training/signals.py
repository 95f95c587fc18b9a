"""Signals during training: the ones that save a checkpoint and stop, and the one that saves and goes on.

SIGINT is Ctrl-C, SIGTERM and SIGUSR1 are what cluster schedulers send before they end a job (SLURM: --signal=USR1@120),
SIGHUP says that the terminal was closed. A run goes on at a signal that it was started to ignore, as nohup does with
SIGHUP.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import FrameType

from mutoscope.training.distributed import Process

STOPPING = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")  # by name: some systems lack some of them
SAVING = ("SIGUSR2",)
NOTHING, SAVE, STOP = 0, 1, 2  # requests of a rank to all others; the largest one counts

Handler = Callable[[int, FrameType | None], object] | int | None  # what `signal.signal` takes and returns


def numbers(names: tuple[str, ...]) -> list[int]:
    """The signals of these names that this system has, without those that the run was started to ignore.

    `nohup` ignores SIGHUP; a script that starts a run in the background with `&` lets it ignore SIGINT.
    """
    found = [int(getattr(signal, name)) for name in names if hasattr(signal, name)]
    return [number for number in found if signal.getsignal(number) != signal.SIG_IGN]


@contextmanager
def handled(handlers: Mapping[int, Handler]) -> Iterator[None]:
    """While entered, these signals have these handlers; only on the main thread, as Python demands."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def early_signals(process: Process) -> AbstractContextManager[None]:
    """Before the first update there is nothing to save: a signal that stops interrupts, one that saves does nothing.

    In a group SIGTERM keeps its meaning, since a rank that waits for others runs no handler.
    """
    own = os.getpid()

    def interrupt(number: int, frame: FrameType | None) -> None:
        if os.getpid() == own:  # not in a process that reads clips
            raise KeyboardInterrupt

    stopping = [number for number in numbers(STOPPING) if process.world_size == 1 or number != signal.SIGTERM]
    return handled(dict.fromkeys(stopping, interrupt) | dict.fromkeys(numbers(SAVING), _nothing))


def _nothing(number: int, frame: FrameType | None) -> None:
    """A handler instead of SIG_IGN, which new programs would inherit."""


class StopSignals:
    """While entered, the signals of STOPPING let the loop finish its update, save and return; SIGUSR2 lets it save.

    A second Ctrl-C interrupts at once.
    """

    def __init__(self) -> None:
        self.requested = False
        self.save_requested = False
        self.name = ""
        self._handlers = handled(
            dict.fromkeys(numbers(STOPPING), self._stop) | dict.fromkeys(numbers(SAVING), self._save)
        )

    def __enter__(self) -> "StopSignals":
        self._handlers.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._handlers.__exit__(None, None, None)

    def take(self) -> int:
        """The request since the last call: NOTHING, SAVE or STOP."""
        saving, self.save_requested = self.save_requested, False
        return STOP if self.requested else SAVE if saving else NOTHING

    def take_name(self) -> str:
        """The signal that was received last; "" from then on."""
        name, self.name = self.name, ""
        return name

    def _stop(self, number: int, frame: FrameType | None) -> None:
        # torchrun passes on the signal that Ctrl-C has sent already, so its ranks finish the update all the same.
        if self.requested and number == signal.SIGINT and "TORCHELASTIC_RUN_ID" not in os.environ:
            raise KeyboardInterrupt
        self.requested, self.name = True, signal.Signals(number).name

    def _save(self, number: int, frame: FrameType | None) -> None:
        self.save_requested, self.name = True, signal.Signals(number).name
