"""Uploaded pictures and videos: counted while they arrive, and decoded elsewhere."""

import asyncio
import io
import os
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from mutoscope.errors import UserError
from mutoscope.playground.limits import Limits
from mutoscope.writing import workspace, writing

MAX_FRAMES = 64  # of an upload: no model here reads more
SIDE = 512  # pixels of the shorter side that are kept
MAX_MESSAGE = 500  # characters of a reader's complaint that are passed on
READER = "mutoscope.playground.reading"


class TooLarge(UserError):
    """More bytes than allowed."""


async def read_upload(
    parts: AsyncIterator[bytes], limits: Limits, one_at_a_time: asyncio.Semaphore
) -> UInt8[np.ndarray, "t h w 3"]:
    """The first frames of a file that arrives in parts. Raises UserError for whatever is no picture or video."""
    with workspace("mutoscope-upload-") as folder:
        path = Path(folder) / "upload"
        await _store(parts, path, limits.upload_bytes)
        async with one_at_a_time:
            return await _decoded(path, limits)


async def at_most(parts: AsyncIterator[bytes], most: int) -> AsyncGenerator[bytes, None]:
    """The parts of a body while they arrive. Raises TooLarge with the first byte that is too many."""
    count = 0
    async for part in parts:
        count += len(part)
        if count > most:
            raise TooLarge(f"The request is too large: at most {most:,} bytes.")
        yield part


async def _store(parts: AsyncIterator[bytes], path: Path, most: int) -> None:
    with writing(path, name="the upload"), path.open("wb") as file:
        async for part in at_most(parts, most):
            file.write(part)
        if file.tell() == 0:
            raise UserError("The file is empty.")


async def _decoded(path: Path, limits: Limits) -> UInt8[np.ndarray, "t h w 3"]:
    numbers = MAX_FRAMES, SIDE, limits.upload_pixels, limits.upload_seconds
    bounds = int(limits.decode_seconds), limits.decode_bytes
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", READER, str(path), *map(str, (*numbers, *bounds))),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=path.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        # Twice the processor time: a busy machine may not give it all at once.
        async with asyncio.timeout(2 * limits.decode_seconds):
            output, complaint = await process.communicate()
    except TimeoutError:
        raise UserError("The file takes too long to read.") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode == 0:
        return np.load(io.BytesIO(output), allow_pickle=False)
    if process.returncode == 2:
        raise UserError(complaint.decode(errors="replace").strip()[-MAX_MESSAGE:])
    raise UserError("The file cannot be read: it takes too much time or memory, or is damaged.")
