"""Which of several processes has died, stopped or fallen behind, by heartbeats in the store that they all joined.

A rank that waits in an exchange of gradients cannot tell why the others are late: one of them may encode a dataset for
hours, or be dead. So a thread of every rank writes a heartbeat, and reads those of the others. Ranks that wait for the
main one to finish work of its own do so in the store (`meet`), for as long as its heart beats; in exchanges, nobody
should be late.
"""

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from torch.distributed import DistError

from mutoscope.errors import UserError
from mutoscope.ownership import quit_now

BEAT = 5.0  # seconds between heartbeats
SILENCE = 60.0  # seconds without a heartbeat after which a rank counts as dead
LATE = 120.0  # seconds that a living rank may keep the others waiting before its name is printed
POLL = 0.05, 1.0  # shortest and longest pause between two looks at who has arrived
KEY = "mutoscope"
AGAIN = "the same command continues, a training with --resume"
STORE_GONE = f"The process that started the ranks answers no more; {AGAIN}."
LEFT = "left"  # in place of the heartbeat of a process that has ended


class SharedStore(Protocol):
    """The part of torch's key-value store that a watch needs; none of these calls waits for a key."""

    def set(self, key: str, value: str, /) -> None: ...
    def get(self, key: str, /) -> bytes: ...
    def check(self, keys: list[str], /) -> bool: ...
    def add(self, key: str, amount: int, /) -> int: ...


@dataclass
class Peer:
    """What this rank knows of another one."""

    value: str = ""
    """The latest heartbeat: a number that grows and the exchanges begun so far; or `LEFT`."""
    changed: float = 0.0
    """When the heartbeat was last seen to change."""
    gone: bool = False
    """Whether the rank has ended, died or been stopped."""
    behind: float | None = None
    """Since when others wait for the rank in an exchange; None if nobody does."""

    @property
    def exchanges(self) -> int:
        """Exchanges begun so far."""
        return int(self.value.split()[1]) if " " in self.value else 0


class Watch:
    """Heartbeats of this rank, and what those of the others say. Thread-safe for one main thread.

    store: where heartbeats are kept. give_up: called with one sentence, on one rank, and with an empty one on the
    others, where the main thread waits for a rank that will not come.
    """

    def __init__(
        self,
        store: SharedStore,
        rank: int,
        world_size: int,
        clock: Callable[[], float] = time.monotonic,
        give_up: Callable[[str], None] = quit_now,
    ):
        self.store, self.rank, self.world_size, self.clock, self.give_up = store, rank, world_size, clock, give_up
        self.failure = ""
        self._beats, self._exchanges, self._met, self._left = 0, 0, 0, False
        self._waiting = self._blocked = False  # for other ranks; in an exchange, which no exception interrupts
        self._looked = clock()
        self.peers = {other: Peer(changed=self._looked) for other in range(world_size) if other != rank}
        store.set(f"{KEY}/name/{rank}", f"process {os.getpid()} on {socket.gethostname()}")
        self._beat()

    def start(self) -> "Watch":
        """Begins to beat and to look in a thread of its own."""
        threading.Thread(target=self._run, daemon=True, name="heartbeat").start()
        return self

    def leave(self) -> None:
        """Says that this process ends, so that its silence is no failure."""
        self._left = True
        self._beat()

    # ------------------------------------------------------------------------------------------- the main thread

    @contextmanager
    def exchange(self) -> Iterator[None]:
        """Around work that ends with all ranks, such as an update. Raises UserError once a rank is known to be gone."""
        self.check()
        self._exchanges += 1
        self._waiting = self._blocked = True
        try:
            yield
        except RuntimeError as error:
            if not (isinstance(error, DistError) or "gloo" in str(error)):
                raise
            raise UserError(self._explained()) from error
        finally:
            self._waiting = self._blocked = False

    def meet(self) -> None:
        """Waits until every rank has arrived, however long one of them works alone. Raises UserError for a dead one."""
        self._met += 1
        key, pause = f"{KEY}/meeting/{self._met}", POLL[0]
        self._waiting = True
        try:
            arrived = self.store.add(key, 1)
            while arrived < self.world_size:
                self.check()
                time.sleep(pause)
                pause, arrived = min(2 * pause, POLL[1]), self.store.add(key, 0)
        except RuntimeError:  # a UserError is none
            self._fail(STORE_GONE)
            raise UserError(self.failure if self._speaks() else "") from None
        finally:
            self._waiting = False

    def check(self) -> None:
        """Raises UserError if a rank is known to be gone."""
        if self.failure:
            raise UserError(self.failure if self._speaks() else "")

    def _explained(self) -> str:
        """The sentence for an exchange that broke off, which happens before heartbeats of a dead rank are missed."""
        until = self.clock() + SILENCE
        while self.clock() < until and not self.failure:
            time.sleep(POLL[1])
            try:
                self.look(silence=3 * BEAT)
            except RuntimeError:
                self._fail(STORE_GONE)
            for other, peer in self.peers.items():
                if peer.value == LEFT:
                    self._fail(self._ended(other))
        self._fail("An exchange between the ranks broke off, though all of them answer; use --resume.")
        return self.failure if self._speaks() else ""

    # ------------------------------------------------------------------------------------------------ the thread

    def _run(self) -> None:
        lost: float | None = None
        while not self._left:
            time.sleep(BEAT)
            try:
                self._beat()
                self.look()
                lost = None
            except RuntimeError:  # the store is gone: its process ends last, so this one has ended or its machine has
                lost = self.clock() if lost is None else lost
                if self.clock() - lost > SILENCE:
                    return self._fail(STORE_GONE)

    def _beat(self) -> None:
        self._beats += 1
        value = LEFT if self._left else f"{self._beats} {self._exchanges}"
        self.store.set(f"{KEY}/beat/{self.rank}", value)

    def look(self, silence: float | None = None) -> None:
        """Reads the heartbeats of the others, and acts on those that stay away for `silence` seconds (`SILENCE`)."""
        now, silence = self.clock(), SILENCE if silence is None else silence
        # After a pause of its own (a laptop that slept, Ctrl-Z) this rank has missed heartbeats, not the others.
        paused = now - self._looked > SILENCE / 2
        self._looked = now
        for other, peer in self.peers.items():
            key = f"{KEY}/beat/{other}"
            value = self.store.get(key).decode() if self.store.check([key]) else ""
            if value != peer.value or paused:
                peer.value, peer.changed = value, now
        for other, peer in self.peers.items():
            self._act_on(other, peer, now, silence)

    def _act_on(self, other: int, peer: Peer, now: float, silence: float) -> None:
        quiet = now - peer.changed
        peer.gone = peer.value == LEFT or quiet > silence
        if peer.value == LEFT:
            if self._waiting and quiet > silence:
                self._fail(self._ended(other))
            return
        if quiet > silence:
            self._fail(
                f"{self._name(other)} has died or was stopped: it has not answered for {quiet:.0f} seconds; {AGAIN}."
            )
        latest = max([self._exchanges, *(p.exchanges for p in self.peers.values())])
        if peer.exchanges >= latest:
            peer.behind = None
        elif peer.behind is None:
            peer.behind = now
        elif now - peer.behind > LATE:
            peer.behind = now
            self._say(f"{self._name(other)} has kept the others waiting for {LATE:.0f} seconds; it is alive.")

    def _ended(self, other: int) -> str:
        return f"{self._name(other)} has ended while the others work; {AGAIN}."

    def _name(self, other: int) -> str:
        return f"Rank {other} ({self.store.get(f'{KEY}/name/{other}').decode()})"

    def _speaks(self) -> bool:
        """Whether this rank is the first of those that are alive: it prints."""
        return not any(other < self.rank and not peer.gone for other, peer in self.peers.items())

    def _say(self, sentence: str) -> None:
        if self._speaks():
            print(f"mutoscope: {sentence}", file=sys.stderr, flush=True)

    def _fail(self, sentence: str) -> None:
        self.failure = self.failure or sentence
        if self._blocked and threading.current_thread() is not threading.main_thread():
            self.give_up(self.failure if self._speaks() else "")
