"""A server of the playground in a thread, for tests that talk to it as clients do."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from websockets.sync.client import ClientConnection

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


def received(socket: ClientConnection, timeout: float = 60) -> tuple[dict, bytes]:
    """The next message: its header, and its bytes."""
    data = socket.recv(timeout=timeout)
    if isinstance(data, str):
        return json.loads(data), b""
    length = int.from_bytes(data[:4], "big")
    return json.loads(data[4 : 4 + length]), data[4 + length :]


def said(socket: ClientConnection, **message: object) -> None:
    socket.send(json.dumps(message))


def until(socket: ClientConnection, kind: str) -> tuple[dict, bytes]:
    """The next message of a type; frames on the way are acknowledged."""
    while True:
        header, content = received(socket)
        if header["type"] == "frame":
            said(socket, type="shown", frame=header["index"])
        if header["type"] == kind:
            return header, content
        if header["type"] == "error":
            raise AssertionError(header["message"])


def settled(server: Server, seconds: float = 20) -> bool:
    """Whether all places are free again within some seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if server.turns.taken == server.turns.queued == server.metrics.connections == 0:
            return True
        time.sleep(0.02)
    return False
