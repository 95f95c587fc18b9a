"""Whether a file was cut, by its parts: boxes of MP4 and QuickTime (ISO/IEC 14496-12 §4.2), or RIFF of AVI."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

HEADER_BYTES, LONG_HEADER_BYTES = 8, 16


@dataclass(frozen=True)
class Boxes:
    """What the top level of a file says. whole_bytes: where its last whole box ends that is of use alone.

    has_index: whether it holds the box without which nothing can be decoded ("moov").
    """

    is_fragmented: bool
    is_cut: bool
    whole_bytes: int
    has_index: bool


def scan_boxes(path: Path) -> Boxes:
    """Read the headers of a file's top-level boxes. A fragment without its data counts as cut."""
    size, at, whole = path.stat().st_size, 0, 0
    kinds: list[bytes] = []
    with path.open("rb") as file:
        while at < size:
            length, kind = _box(file, at, size)
            if length is None or at + length > size:
                return Boxes(b"moof" in kinds, True, whole, b"moov" in kinds)
            kinds.append(kind)
            at += length
            whole = whole if kind == b"moof" else at
    return Boxes(b"moof" in kinds, bool(kinds) and kinds[-1] == b"moof", whole, b"moov" in kinds)


def _box(file: BinaryIO, at: int, size: int) -> tuple[int | None, bytes]:
    """Length and kind of the box at an offset; None where not even its header is whole."""
    file.seek(at)
    header = file.read(LONG_HEADER_BYTES)
    if len(header) < HEADER_BYTES:
        return None, b""
    length, kind = int.from_bytes(header[:4], "big"), header[4:8]
    if length == 1 and len(header) == LONG_HEADER_BYTES:
        length = int.from_bytes(header[8:], "big")
    # Length 0 means up to the end; what is no box (zeros that fill up a file) is passed over.
    return (length if length >= HEADER_BYTES else size - at), kind


def is_cut_riff(path: Path) -> bool:
    """Whether an AVI file ends before the last of its RIFF parts does."""
    size, at = path.stat().st_size, 0
    with path.open("rb") as file:
        while at + HEADER_BYTES <= size:
            file.seek(at)
            header = file.read(HEADER_BYTES)
            length = int.from_bytes(header[4:], "little")
            if header[:4] != b"RIFF" or not length:  # a recorder that was interrupted leaves 0
                return False
            at += HEADER_BYTES + length + length % 2
    return at > size + 1


class Beginning(io.RawIOBase):
    """The first `length` bytes of a file, as a file."""

    def __init__(self, path: Path, length: int):
        self._file, self._length = path.open("rb"), length

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        left = max(0, self._length - self._file.tell())
        return self._file.read(left if size < 0 else min(size, left))

    def seek(self, offset: int, whence: int = 0, /) -> int:
        start = {0: 0, 1: self._file.tell(), 2: self._length}[whence]
        return self._file.seek(start + offset)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
        super().close()
