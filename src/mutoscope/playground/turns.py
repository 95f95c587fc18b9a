"""Turns: one piece of work after another, in a thread, fair to all sessions.

A session first takes a place; sessions without one wait in order. Sessions with a place hand in one piece of work at a
time (a frame, or a step of a clip). The thread does these first in, first out, so that n sessions get a turn each
before anyone gets a second one, and a session that ends is gone after the piece in progress.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar

from mutoscope.errors import UserError

T = TypeVar("T")
TellPlace = Callable[[int], Awaitable[None]]
"""Receives the number of sessions ahead whenever it changes."""


class Turns:
    """The places, the queue and the thread of one server."""

    def __init__(self, active: int, waiting: int) -> None:
        """`active`: sessions with a place; `waiting`: sessions that may wait."""
        self.active, self.waiting = active, waiting
        self.taken = 0
        self.ended = 0  # sessions that gave their place back since the memory was tidied
        self._queue: deque[asyncio.Queue[int | None]] = deque()  # of each waiting session: its news, None for a place
        self._thread = ThreadPoolExecutor(1, "mutoscope-turns")

    @property
    def queued(self) -> int:
        """Sessions that wait for a place."""
        return len(self._queue)

    @asynccontextmanager
    async def place(self, tell: TellPlace) -> AsyncIterator[None]:
        """A place among the active sessions, after waiting for it. Raises UserError where too many wait already."""
        if self.taken < self.active and not self._queue:
            self.taken += 1
        else:
            await self._wait(tell)
        try:
            yield
        finally:
            self._give_back()

    async def _wait(self, tell: TellPlace) -> None:
        if len(self._queue) >= self.waiting:
            raise UserError("Too many people are waiting. Try again in a minute.")
        mine: asyncio.Queue[int | None] = asyncio.Queue()
        mine.put_nowait(len(self._queue))
        self._queue.append(mine)
        try:
            while (ahead := await mine.get()) is not None:
                await tell(ahead)
        except BaseException:
            if mine in self._queue:
                self._queue.remove(mine)
                self._announce()
            else:  # called and gone at the same moment
                self._give_back()
            raise

    def _give_back(self) -> None:
        self.taken -= 1
        self.ended += 1
        while self._queue and self.taken < self.active:
            self.taken += 1
            self._queue.popleft().put_nowait(None)
        self._announce()

    def _announce(self) -> None:
        for ahead, news in enumerate(self._queue):
            news.put_nowait(ahead)

    async def do(self, work: Callable[[], T]) -> T:
        """The result of a piece of work, done in the thread in its turn."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
