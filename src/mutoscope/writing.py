"""Writing files: one sentence for whatever the system says about a write, whole files, and reserved space.

Every write of this package goes through `writing`, so that a full disk, an exhausted quota and a file system that
became read-only end in the same words wherever they happen.
"""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

from mutoscope.errors import UserError, reason
from mutoscope.ownership import READ_ONLY, SPACE, temporary_beside

CHUNK = 2**20  # bytes that are allocated together where the system cannot reserve space
NOT_SUPPORTED = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
REFUSED_WRITES = (*SPACE, errno.EROFS)


class WriteError(UserError):
    """A write that the system refused."""

    def __init__(
        self, message: str, path: Path = Path(), cause: BaseException | None = None, needed: int | None = None
    ) -> None:
        super().__init__(message)
        self.path, self.cause, self.needed = path, cause, needed


def write_problem(
    path: Path | str,
    error: BaseException,
    needed: int | None = None,
    name: str | None = None,
    more_than: bool = False,
) -> WriteError:
    """What the system said about a write, as a sentence with the path and, where space is short, the bytes.

    needed: bytes that the file has when it is whole; None where that is not known before its end. name: of the file
    where its path is of no use to the reader. more_than: `needed` bytes were not enough.
    """
    sentence = _sentence(Path(path), error, needed, name or str(path), "more than " if more_than else "")
    return WriteError(sentence, Path(path), error, needed)


def _sentence(path: Path, error: BaseException, needed: int | None, name: str, at_least: str) -> str:
    found = _of_the_system(error)
    number = getattr(found, "errno", None)
    free = free_bytes(path)
    if number == errno.EROFS:
        return f"Cannot write {name}: {READ_ONLY}. Mount it for writing, or choose another folder."
    short = free is not None and needed is not None and free < needed
    if number in SPACE or (short and not isinstance(found, OSError)):  # torch's words do not say why
        what = SPACE.get(number or errno.ENOSPC, SPACE[errno.ENOSPC])
        sizes = _bytes(needed, "needed", at_least) + ("" if number == errno.EFBIG else f", {_bytes(free, 'free')}")
        return f"Cannot write {name}: {what} ({sizes}). Free space, or choose another folder."
    return f"Cannot write {name}: {reason(found)}. Free space, or choose another folder."


def _of_the_system(error: BaseException) -> BaseException:
    """The exception of the system behind a library's own, if there is one."""
    found: BaseException | None = error
    while found is not None:
        if getattr(found, "errno", None) in REFUSED_WRITES:
            return found
        found = found.__cause__ or found.__context__
    return error


def _bytes(count: int | None, what: str, at_least: str = "") -> str:
    return f"{at_least}{count:,} bytes {what}" if count is not None else f"{what}: unknown"


def free_bytes(path: Path) -> int | None:
    """Bytes that may still be written to the file system of a path, which need not exist; None if unknown."""
    try:
        return shutil.disk_usage(next(p for p in (path, *path.absolute().parents) if p.exists())).free
    except (OSError, StopIteration):
        return None


@contextlib.contextmanager
def writing(
    path: Path | str, needed: int | None = None, temporary: Path | None = None, name: str | None = None
) -> Iterator[None]:
    """Around the write of a file: whatever the system refuses becomes a UserError (`write_problem`).

    temporary: file or folder that is removed if the block fails, before free space is measured. Files in it are named
    by where they would have been below `path`.
    """
    path = Path(path)
    try:
        yield
    except BaseException as error:
        written = None if temporary is None else _size(temporary)
        _remove(temporary)
        if isinstance(error, WriteError) and error.cause and temporary in (error.path, *error.path.parents):
            raise write_problem(path / error.path.relative_to(temporary), error.cause, error.needed) from error
        if isinstance(error, UserError | BrokenPipeError) or not _is_of_writing(error):
            raise
        raise write_problem(path, error, written if needed is None else needed, name, needed is None) from error


def _is_of_writing(error: BaseException) -> bool:
    """Whether an exception is the system's: its own, FFmpeg's with a number, or torch's around one."""
    if isinstance(error, OSError) or isinstance(_of_the_system(error), OSError):
        return True
    return getattr(error, "errno", None) is not None or "PytorchStreamWriter" in str(error)


def _size(path: Path) -> int | None:
    with contextlib.suppress(OSError):
        return sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())
    return None


def _remove(path: Path | None) -> None:
    if path is None:
        return
    with contextlib.suppress(OSError):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes | str) -> None:
    """Writes a file so that no reader ever sees part of it. Raises UserError where the system refuses."""
    data = content.encode() if isinstance(content, str) else content
    temporary = temporary_beside(path)
    with writing(path, len(data), temporary):
        with temporary.open("wb") as file:
            file.write(data)
            flush(file)
        os.replace(temporary, path)


def flush(file: IO[bytes]) -> None:
    """Brings what was written to the disk, where the file system can: some rename at once and write later.

    A power cut would otherwise leave an empty file under the final name.
    """
    file.flush()
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise


def move_entries(source: Path, target: Path, last: str) -> None:
    """Moves everything in one folder into another one of the same file system, where it replaces entries of that name.

    last: the entry without which the target is unfinished. The replaced folders are left in `source`.
    """
    for entry in sorted(source.iterdir(), key=lambda entry: (entry.name == last, entry.name)):
        _replace(entry, target / entry.name, temporary_beside(entry))


def _replace(source: Path, target: Path, former: Path) -> None:
    if not target.is_dir():
        os.replace(source, target)
        return
    # A folder cannot be renamed over another one: the old one is moved out of the way.
    target.rename(former)
    try:
        os.replace(source, target)
    except BaseException:
        former.rename(target)
        raise


def workspace(prefix: str) -> "TemporaryDirectory[str]":
    """A new folder for temporary files, which goes when it is left. Raises UserError where there is no room for one."""
    with writing(os.environ.get("TMPDIR") or "/tmp", name="temporary files"):
        return TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True)


def new_folder(path: Path) -> Path:
    """A folder with its parents, which may exist. Raises UserError where the system refuses."""
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def reserve(path: Path, size: int) -> None:
    """Allocates `size` bytes of disk for an existing file, whose content stays; it is at least that long then.

    Later writes inside it cannot find the disk full. Raises UserError where there is not enough space.
    """
    with writing(path, size), path.open("r+b") as file:
        try:
            _reserve(file.fileno(), size)
        except OSError as error:
            if error.errno not in NOT_SUPPORTED:
                raise
            _rewrite(file.fileno(), size)


def _reserve(descriptor: int, size: int) -> None:
    if not hasattr(os, "posix_fallocate"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if size:
        os.posix_fallocate(descriptor, 0, size)


def _rewrite(descriptor: int, size: int) -> None:
    """Writes every byte as it is, which fills the holes of a sparse file."""
    for offset in range(0, size, CHUNK):
        found = os.pread(descriptor, min(CHUNK, size - offset), offset)
        data = found + bytes(min(CHUNK, size - offset) - len(found))
        while data:
            written = os.pwrite(descriptor, data, offset)
            offset, data = offset + written, data[written:]


def allocated_bytes(path: Path) -> int:
    """Bytes of disk that a file has already; 0 for one that does not exist."""
    try:
        return path.stat().st_blocks * 512
    except (OSError, AttributeError):
        return 0
