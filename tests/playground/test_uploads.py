"""Uploads are bounded while they arrive, and what cannot be read is a sentence, whatever it does to its reader."""

import asyncio
import io
import struct
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mutoscope.errors import UserError
from mutoscope.playground.limits import Limits
from mutoscope.playground.uploads import MAX_FRAMES, SIDE, TooLarge, read_upload


async def parts(content: bytes, size: int = 10_000) -> AsyncIterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


def read(content: bytes, limits: Limits = Limits()) -> np.ndarray:  # noqa: B008
    async def run() -> np.ndarray:
        return await read_upload(parts(content), limits, asyncio.Semaphore(1))

    return asyncio.run(run())


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (9, 90, 200)).save(buffer, "PNG")
    return buffer.getvalue()


def png_bomb(side: int) -> bytes:
    """A small file that claims side×side pixels and compresses them all."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    compressor = zlib.compressobj(9)
    row = bytes(3 * side + 1)
    body = b"".join(compressor.compress(row) for _ in range(side)) + compressor.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def test_a_picture_becomes_one_frame():
    frames = read(png(30, 20))
    assert frames.shape == (1, 20, 30, 3) and (frames == np.array([9, 90, 200])).all()


def test_large_frames_are_scaled_down():
    assert min(read(png(1600, 1200)).shape[1:3]) == SIDE


def test_too_many_bytes_are_refused_before_the_last_one_arrives():
    arrived = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal arrived
        while True:
            arrived += 1000
            yield bytes(1000)

    with pytest.raises(TooLarge, match="at most 20,000 bytes"):
        asyncio.run(read_upload(endless(), Limits(upload_bytes=20_000), asyncio.Semaphore(1)))
    assert arrived <= 22_000


@pytest.mark.parametrize("content", [b"", b"text", bytes(1000), png(30, 20)[:60], b"\x89PNG\r\n\x1a\n", b"GIF89a"])
def test_what_is_no_picture_is_a_sentence(content: bytes):
    with pytest.raises(UserError) as found:
        read(content)
    assert "upload" not in str(found.value).split("The file")[0] and "/tmp" not in str(found.value)


@pytest.mark.slow
def test_a_bomb_is_refused():
    with pytest.raises(UserError, match="too large"):
        read(png_bomb(12_000))


@pytest.mark.slow
def test_a_reader_that_uses_too_much_is_ended():
    with pytest.raises(UserError, match="cannot be read|memory"):
        read(png(400, 400), Limits(decode_bytes=60 * 2**20))
    with pytest.raises(UserError, match="takes too"):
        read(png(400, 400), Limits(decode_seconds=0.05))


@pytest.mark.slow
def test_every_real_clip_is_read_or_refused_with_a_sentence(clips_dir: Path):
    for file in sorted(clips_dir.iterdir()):
        try:
            frames = read(file.read_bytes())
        except UserError as error:
            assert any(word in file.name for word in ("README", "invalid", "truncated", "corrupted")), (file, error)
        else:
            assert 1 <= len(frames) <= MAX_FRAMES and min(frames.shape[1:3]) <= SIDE
