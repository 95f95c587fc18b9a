"""What all sessions of a server share, and what they need of a connection."""

from typing import Protocol

from mutoscope.model_index import Json
from mutoscope.playground.kept import File, Kept, Picture
from mutoscope.playground.limits import Limits
from mutoscope.playground.metrics import Metrics
from mutoscope.playground.shelf import Shelf
from mutoscope.playground.turns import Turns

SECONDS_TO_SEND = 30.0  # a client that reads nothing for so long is sent away


class Shared:
    """The models, the turns, and what is kept for clients."""

    def __init__(self, shelf: Shelf, limits: Limits) -> None:
        self.shelf, self.limits, self.metrics = shelf, limits, Metrics()
        self.turns = Turns(limits.active_sessions, limits.waiting_sessions)
        kept = limits.kept_files, limits.kept_bytes, limits.kept_seconds
        self.uploads: Kept[Picture] = Kept(*kept)
        self.results: Kept[File] = Kept(*kept)


class Socket(Protocol):
    """What a session needs of a connection."""

    async def receive_text(self) -> str: ...
    async def send_json(self, data: dict[str, Json]) -> None: ...
    async def send_bytes(self, data: bytes) -> None: ...


class Session:
    """One client with one socket."""

    def __init__(self, socket: Socket, shared: Shared) -> None:
        self.socket, self.shared = socket, shared

    async def tell_place(self, ahead: int) -> None:
        """Tells how many sessions are ahead in the queue."""
        await self.socket.send_json({"type": "queued", "ahead": ahead})
