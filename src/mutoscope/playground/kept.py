"""Bytes that wait to be used or fetched: uploads and results, by names that cannot be guessed."""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from jaxtyping import UInt8

from mutoscope.errors import UserError

T = TypeVar("T")


class NotHere(UserError):
    """A name of nothing that is here, or is here any longer."""


Picture = UInt8[np.ndarray, "t h w 3"]
"""What an upload becomes."""


@dataclass(frozen=True)
class File:
    """A result to be fetched."""

    content: bytes
    media_type: str
    name: str


@dataclass(frozen=True)
class _Kept(Generic[T]):
    value: T
    size: int
    since: float


class Kept(Generic[T]):
    """A bounded store: what is oldest is forgotten first, and everything after a while."""

    def __init__(self, count: int, num_bytes: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.count, self.num_bytes, self.seconds, self.clock = count, num_bytes, seconds, clock
        self._items: dict[str, _Kept[T]] = {}

    def __len__(self) -> int:
        self._forget()
        return len(self._items)

    def add(self, value: T, size: int) -> str:
        """Keep a value of `size` bytes; returns its name. Raises UserError for one larger than everything together."""
        if size > self.num_bytes:
            raise UserError(f"{size:,} bytes are too many to keep: at most {self.num_bytes:,}.")
        name = secrets.token_urlsafe(16)
        self._items[name] = _Kept(value, size, self.clock())
        self._forget()
        return name

    def get(self, name: str) -> T:
        """Raises NotHere for a name that is unknown or forgotten."""
        self._forget()
        if name not in self._items:
            raise NotHere("This file is no longer here. Make it again.")
        return self._items[name].value

    def remove(self, name: str) -> None:
        self._items.pop(name, None)

    def _forget(self) -> None:
        now = self.clock()
        for name in [name for name, item in self._items.items() if now - item.since > self.seconds]:
            del self._items[name]
        while len(self._items) > self.count or sum(item.size for item in self._items.values()) > self.num_bytes:
            del self._items[next(iter(self._items))]
