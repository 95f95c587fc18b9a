"""Standard output and standard error that may vanish: a closed pipe or terminal, a reader that stops reading, a missing
descriptor. Progress and messages are not worth a night of training, so that losing them never ends a run.
"""

import errno
import io
import os
import select
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO, cast

PATIENCE = 1.0  # seconds that a message on standard error waits for a reader that is behind
CHUNK = 512  # bytes that a pipe which is ready for writing takes without blocking: POSIX's smallest PIPE_BUF
PAUSE = 0.02  # seconds between two attempts
HUNG_UP = {errno.EPIPE, errno.EIO, errno.EBADF, errno.ENXIO, errno.ECONNRESET, errno.ENOTCONN}
DESCRIPTORS = (0, 1, 2)


class LastingStream(io.TextIOBase):
    """A text stream in place of `stream`; once its reader is gone, text is dropped and `lost` says why.

    patience: seconds that a write waits for a reader that is behind; then text is dropped until it reads again, and
    `dropped` counts the characters. None waits as long as it takes, which is right for a report.
    """

    def __init__(self, stream: TextIO, patience: float | None):
        super().__init__()
        self.stream, self.patience = stream, patience
        self.lost: str | None = None
        self.dropped = 0
        self._descriptor = descriptor_of(stream)
        self._may_block = patience is not None and self._descriptor is not None and not is_file(self._descriptor)
        self._writes_to = non_blocking(self._descriptor) if self._may_block else self._descriptor

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.stream.encoding or "utf-8"

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return self.stream.errors

    @property
    def buffer(self) -> io.BufferedIOBase:
        """Bytes written here do not have the protection of `write`."""
        return cast(io.BufferedIOBase, self.stream.buffer)

    def write(self, text: str) -> int:
        if self.lost is None:
            try:
                self._write(text)
            except (OSError, ValueError) as error:
                self._failed(error)
        return len(text)

    def flush(self) -> None:
        if self.lost is None:
            try:
                self.stream.flush()
            except (OSError, ValueError) as error:
                self._failed(error)

    def fileno(self) -> int:
        return self.stream.fileno()

    def isatty(self) -> bool:
        with suppress(OSError, ValueError):
            return self.lost is None and self.stream.isatty()
        return False

    def writable(self) -> bool:
        return True

    def release(self) -> None:
        """Flushes, and closes what was opened here; the stream itself stays open."""
        self.flush()
        if self._writes_to is not None and self._writes_to != self._descriptor:
            os.close(self._writes_to)
        self._writes_to = self._descriptor

    def notice(self) -> str | None:
        """One sentence about what was not shown; None as long as everything was."""
        if self.lost is not None:
            return f"The reader of our messages is gone ({self.lost}): no progress is shown from here on."
        if self.dropped:
            return f"The reader of our messages is behind: {self.dropped:,} characters were not shown."
        return None

    def _write(self, text: str) -> None:
        if self._writes_to is None:
            self.stream.write(text if self.stream.encoding is None else self._encoded(text).decode(self.encoding))
            return
        self.stream.flush()  # what was written past this object comes first
        rest = memoryview(self._encoded(text))
        # A reader that was behind is given no second wait.
        deadline = time.monotonic() + (0.0 if self.dropped else self.patience or 0.0)
        while rest:
            written = self._write_some(rest)
            rest = rest[written:]
            if not written:
                if time.monotonic() >= deadline:
                    self.dropped += len(rest)
                    return
                time.sleep(PAUSE)

    def _encoded(self, text: str) -> bytes:
        """A letter that the stream cannot write is no reader that is gone: it is spelled out."""
        try:
            return text.encode(self.encoding, self.errors or "strict")
        except UnicodeEncodeError:
            return text.encode(self.encoding, "backslashreplace")

    def _write_some(self, data: memoryview) -> int:
        """Writes the beginning of `data`; the number of bytes, 0 where writing would block."""
        target = cast(int, self._writes_to)
        if not self._may_block:
            return os.write(target, data)
        watch = select.poll()
        watch.register(target, select.POLLOUT)
        try:
            return os.write(target, data[:CHUNK]) if watch.poll(0) else 0
        except BlockingIOError:  # another process was faster, or a terminal has room for less
            return 0

    def _failed(self, error: Exception) -> None:
        """Raises an error of standard output that is no hang-up, such as a full disk: a report is a result."""
        is_hang_up = isinstance(error, ValueError) or (isinstance(error, OSError) and error.errno in HUNG_UP)
        if not is_hang_up:
            if self.patience is None:
                raise error
            return
        self.lost = getattr(error, "strerror", None) or str(error)
        if self._descriptor in DESCRIPTORS:  # what is buffered, or written by C code, must not fail again at exit
            with suppress(OSError):
                null = os.open(os.devnull, os.O_RDWR)
                os.dup2(null, cast(int, self._descriptor))
                os.close(null)


def descriptor_of(stream: TextIO) -> int | None:
    """The file descriptor of a stream; None without one, and where writing past the stream would change its bytes."""
    if os.name != "posix":
        return None
    try:
        return stream.fileno()
    except (OSError, ValueError, AttributeError):
        return None


def is_file(descriptor: int) -> bool:
    """Whether a descriptor is one of a regular file, which never blocks."""
    try:
        return stat.S_ISREG(os.fstat(descriptor).st_mode)
    except OSError:
        return False


def fill_missing_descriptors() -> None:
    """Opens the null device as each of the descriptors 0, 1 and 2 that is closed.

    Otherwise the next file that is opened, for example a checkpoint, would get that number, and with it everything that
    C code prints.
    """
    for number in DESCRIPTORS:
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)


def non_blocking(descriptor: int | None) -> int | None:
    """Another opening of the same pipe or terminal, in which a write never blocks; the descriptor itself elsewhere.

    The flag of the descriptor itself would be shared with the shell and every other process that has it.
    """
    if descriptor is None:
        return None
    try:
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY
        return os.open(f"/proc/self/fd/{descriptor}", flags)
    except OSError:
        return descriptor


@contextmanager
def lasting_output() -> Iterator[None]:
    """While entered, `sys.stdout` and `sys.stderr` are lasting streams, also where Python found none at its start.

    Standard error drops text that nobody reads; standard output waits for its reader, unless both are the same pipe.
    """
    before = sys.stdout, sys.stderr
    fill_missing_descriptors()
    is_same = _are_one_pipe()
    sys.stderr = _lasting(sys.stderr, 2, PATIENCE)
    sys.stdout = _lasting(sys.stdout, 1, PATIENCE if is_same else None)
    try:
        yield
    finally:
        opened = [stream for stream in (sys.stdout, sys.stderr) if stream not in before]
        sys.stdout, sys.stderr = before
        for stream in opened:
            cast(LastingStream, stream).release()


def message_notice() -> str | None:
    """What was not shown on standard error, in one sentence; None as long as everything was."""
    return sys.stderr.notice() if isinstance(sys.stderr, LastingStream) else None


def _lasting(stream: TextIO | None, number: int, patience: float | None) -> TextIO:
    if isinstance(stream, LastingStream):
        return cast(TextIO, stream)
    if stream is None:
        stream = open(number, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    return cast(TextIO, LastingStream(stream, patience))


def _are_one_pipe() -> bool:
    """Whether both streams lead to the same pipe or socket, which progress may have filled before the report."""
    out, err = (os.fstat(number) for number in (1, 2))
    is_pipe = stat.S_ISFIFO(err.st_mode) or stat.S_ISSOCK(err.st_mode)
    return is_pipe and (out.st_dev, out.st_ino) == (err.st_dev, err.st_ino)
