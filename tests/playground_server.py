"""A server of the playground in a thread, for tests that talk to it as clients do."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from mutoscope.commands.play import listening
from mutoscope.playground.app import Server, create_app
from mutoscope.playground.guard import Guard
from mutoscope.playground.limits import Limits
from mutoscope.playground.messages import MAX_TEXT
from mutoscope.playground.shelf import Shelf


@dataclass(frozen=True)
class Running:
    """A server that listens on this machine."""

    port: int
    server: Server

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def ws(self) -> str:
        return f"ws://127.0.0.1:{self.port}"


@contextmanager
def running(folders: dict[str, Path], limits: Limits | None = None, guard: Guard | None = None) -> Iterator[Running]:
    """Serve some models until the block ends."""
    limits = limits or Limits()
    shelf = Shelf(folders, limits.loaded_models, limits.unused_seconds)
    server = Server(shelf, guard or Guard.of("127.0.0.1"), limits)
    listener = listening("127.0.0.1", 0)
    config = uvicorn.Config(
        create_app(server), log_level="warning", ws="websockets-sansio", ws_max_size=4 * MAX_TEXT, lifespan="on"
    )
    web = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: web.run(sockets=[listener]), daemon=True)
    thread.start()
    while not web.started:
        time.sleep(0.01)
    try:
        yield Running(listener.getsockname()[1], server)
    finally:
        web.should_exit = True
        thread.join(timeout=20)
        listener.close()
