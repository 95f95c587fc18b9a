"""Tables of MP4 and QuickTime files, whose declared lengths are checked before FFmpeg allocates them.

A file of one kilobyte may declare a billion frames of the same size (ISO/IEC 14496-12 §8.7.3), and FFmpeg builds an
index entry of 24 bytes for each.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mutoscope.errors import UserError

MAX_SAMPLES = 2**24  # of a track of video: 77 hours at 60 frames per second
MAX_EDITS = 4096  # entries of an edit list, for each of which FFmpeg copies the index
MAX_BOXES = 100_000  # headers that are read
MAX_LEVELS = 12  # of boxes inside boxes
CONTAINERS = frozenset(b"moov trak mdia minf stbl edts moof traf mvex".split())
FIRST = frozenset(b"ftyp moov mdat free skip wide styp moof".split())
HEADER, COUNT, SIZES = struct.Struct(">I4s"), struct.Struct(">I"), struct.Struct(">II")
LONG = struct.Struct(">Q")
FULL = 4  # bytes of version and flags that begin a table
SOUND = b"soun"


@dataclass(frozen=True)
class Box:
    """A box: its kind, and where its content is in the file."""

    kind: bytes
    start: int
    end: int


def check_tables(path: Path) -> None:
    """Raises UserError for a file whose tables declare more frames or edits than it can hold. Others pass."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if not _is_iso(file):
            return
        handler = b""
        for box in _boxes(file, 0, size, 0, [0]):
            if box.kind == b"hdlr":  # it comes before the tables of its track
                file.seek(box.start + FULL + COUNT.size)
                handler = file.read(4)
            elif box.kind in CHECKED:
                _check(file, box, path, size, handler)


def _is_iso(file: BinaryIO) -> bool:
    file.seek(0)
    start = file.read(HEADER.size)
    return start[4:] in FIRST


def _boxes(file: BinaryIO, start: int, end: int, level: int, count: list[int]) -> Iterator[Box]:
    """The boxes of a part of a file and those inside them, in order; what is no box ends the part."""
    while start + HEADER.size <= end and level < MAX_LEVELS and count[0] < MAX_BOXES:
        count[0] += 1
        file.seek(start)
        length, kind = HEADER.unpack(file.read(HEADER.size))
        content = start + HEADER.size
        if length == 1:
            content += LONG.size
            length = LONG.unpack(file.read(LONG.size).ljust(LONG.size, b"\0"))[0]
        stop = end if length == 0 else min(start + length, end)
        if stop < content:
            return
        box = Box(kind, content, stop)
        yield box
        if kind in CONTAINERS:
            yield from _boxes(file, content, stop, level + 1, count)
        start = stop


def _numbers(file: BinaryIO, at: int) -> tuple[int, int]:
    file.seek(at)
    return SIZES.unpack(file.read(SIZES.size).ljust(SIZES.size, b"\0"))


def _samples(file: BinaryIO, box: Box, handler: bytes) -> int:
    """Frames that a table of sizes declares; of sound, packets of one size cost no entries."""
    size, count = _numbers(file, box.start + FULL)
    return 0 if size and handler == SOUND else count


def _of_sums(file: BinaryIO, box: Box, handler: bytes) -> int:
    """Frames that a table of times declares as runs of equal values."""
    count = min(_numbers(file, box.start + FULL)[0], (box.end - box.start) // SIZES.size)
    file.seek(box.start + FULL + COUNT.size)
    data = file.read(count * SIZES.size)
    return 0 if handler == SOUND else sum(run for run, _ in SIZES.iter_unpack(data[: len(data) // 8 * 8]))


def _of_run(file: BinaryIO, box: Box, handler: bytes) -> int:
    """Frames of a fragment."""
    return _numbers(file, box.start + FULL)[0]


def _edits(file: BinaryIO, box: Box, handler: bytes) -> int:
    return _numbers(file, box.start + FULL)[0]


CHECKED = {
    b"stsz": (_samples, MAX_SAMPLES, "frames"),
    b"stz2": (_samples, MAX_SAMPLES, "frames"),
    b"stts": (_of_sums, MAX_SAMPLES, "frames"),
    b"ctts": (_of_sums, MAX_SAMPLES, "frames"),
    b"trun": (_of_run, MAX_SAMPLES, "frames"),
    b"elst": (_edits, MAX_EDITS, "edits"),
}


def _check(file: BinaryIO, box: Box, path: Path, size: int, handler: bytes) -> None:
    counted, most, what = CHECKED[box.kind]
    count = counted(file, box, handler)
    if count > min(most, size):  # no frame is smaller than a byte
        raise UserError(f"{path} declares {count:,} {what} in a file of {size:,} bytes; it is damaged, and not opened")
