"""One owner per output folder, and the temporaries of processes that died.

While a run writes into a folder, a lock file beside it (`.NAME.lock`) names the host, the process and its start time.
The lock is advisory: every verb that writes takes it, and other programs are free not to. A temporary has the same
three in its own name, so that the next run can tell the rest of a killed process from the work of a living one.
"""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from mutoscope.errors import UserError

SPACE = {
    errno.ENOSPC: "No space left on the disk",
    errno.EDQUOT: "The disk quota is used up",
    errno.EFBIG: "Files may not be that large here",
}
READ_ONLY = "The file system is read-only"
HEARTBEAT, SILENT = 15.0, 120.0  # seconds between two signs of life of a lock, and after which there is no life
FOREIGN_TEMPORARY = 24 * 3600.0  # seconds after which the temporary of another host is one of a dead process
GUARD_SECONDS = 5.0  # reading and writing a lock takes milliseconds
HIDDEN = "hidden"  # in place of the start of a process that is alive, where the system shows no more to this user
STEM = 40  # characters of a target's name in the name of its temporaries: file names end at 255 bytes
# No link is followed: in a folder of everyone's, a link by this name would have its target overwritten.
OPEN_LOCK = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
READ_LOCK = OPEN_LOCK & ~(os.O_RDWR | os.O_CREAT) | getattr(os, "O_NONBLOCK", 0)  # a named pipe must not block
TEMPORARY = re.compile(
    r"(?s)\.(?P<name>.+)\.(?P<pid>\d+)-(?P<host>[0-9a-f]{6})-(?P<start>[0-9a-f]{6})\.[0-9a-f]{8}\.tmp(?:\.\w+)?"
)


@dataclass(frozen=True)
class Writer:
    """A process that writes files.

    host: name and, on Linux, pid namespace, since a number means another process in another container. start: when the
    process began, in its kernel's own count and with the identity of the boot; a number that is used again has another.
    """

    host: str
    pid: int
    start: str

    def is_alive(self) -> bool | None:
        """Whether the process is running; None where this host cannot tell.

        A lock of another boot is one from before a restart, or of another host by the same name.
        """
        if self.host != host_name() or os.name != "posix" or not self.start.startswith(boot_id()):
            return None
        found = start_of(self.pid)
        return None if found == HIDDEN else found == self.start

    @property
    def token(self) -> str:
        """The process in the name of a file."""
        return f"{self.pid}-{_digest(self.host)}-{_digest(self.start)}"


@dataclass(frozen=True)
class Lock:
    """Contents of a lock file. work: the verb; since: local time."""

    writer: Writer
    work: str
    since: str

    def described(self) -> str:
        return (
            f"`mutoscope {self.work}` (process {self.writer.pid} on {self.writer.host.split()[0]}, since {self.since})"
        )


def this_writer() -> Writer:
    """The writer that this process is."""
    return Writer(host_name(), os.getpid(), start_of(os.getpid()) or "unknown")


@cache
def host_name() -> str:
    """The name of this host, with the pid namespace of this process where there is one.

    As it was first read: a laptop that changes networks may get another name, but its process stays the same writer.
    """
    try:
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def start_of(pid: int) -> str | None:
    """When a process of this host began; None for one that has ended, `HIDDEN` for one of which nothing is shown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else f"{boot_id()} {fields[19]}".strip()
    except (OSError, IndexError):
        if Path("/proc/self/stat").exists():
            return HIDDEN if _is_hidden(pid) else None
    found = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return " ".join(found.stdout.split()) or None


def boot_id() -> str:
    """Identity of this host's last start; empty on systems without one."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _is_hidden(pid: int) -> bool:
    """Whether a process exists although /proc lacks it (hidepid): another user's."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


# ---------------------------------------------------------------------------------------------------------------------
# The lock


def quit_now(sentence: str) -> None:
    """Ends the process although its main thread is at work, or waits where no exception reaches it."""
    if sentence:
        print(f"mutoscope: {sentence}", file=sys.stderr, flush=True)
    os._exit(2)


@contextmanager
def owned(folder: str | os.PathLike[str], work: str, give_up: Callable[[str], object] = quit_now) -> Iterator[None]:
    """While entered, this process is the one that writes into `folder`, which need not exist.

    Removes what killed processes left there. A folder that this process owns already stays its own. `work`: the verb,
    for the message to others. give_up: called with one sentence, from another thread, where another host took the
    folder over while this process stood still; two writers would destroy each other's files.
    Raises UserError naming the owner where another process holds the folder; a lock whose process is gone is taken over
    with a warning.
    """
    named, folder = Path(folder).expanduser(), real_folder(folder)
    created = _missing_parents(folder)
    path = lock_path(folder)
    try:
        if not _take(path, folder, work):
            yield
            return
        ended = threading.Event()
        threading.Thread(target=_show_life, args=(path, folder, ended, give_up), daemon=True).start()
        try:
            if named.is_symlink() and not folder.exists():
                created.insert(0, folder)
                with suppress(OSError):  # said by whoever writes there
                    folder.mkdir()
            remove_leftovers(folder)
            yield
        finally:
            ended.set()
            _release(path)
    finally:
        for parent in created:
            with suppress(OSError):  # something is in it now, as it should
                parent.rmdir()


def real_folder(folder: str | os.PathLike[str]) -> Path:
    """The path of a folder, which need not exist, without links, `.` and `..`: one folder has one lock."""
    return Path(os.path.realpath(Path(folder).expanduser()))


def tidy(folder: str | os.PathLike[str]) -> None:
    """Removes the lock and the temporaries of dead processes, for a folder that is only read."""
    folder = real_folder(folder)
    path = lock_path(folder)
    if path.exists():
        with suppress(OSError), _guarded(path) as descriptor:
            found = _read(descriptor)
            if found is None or _seconds_held(found, path) is None:
                path.unlink()
    _remove([path for path in _temporaries_of(folder) if _is_left(path)])


def lock_path(folder: Path) -> Path:
    """Beside the folder, which may have to be empty or absent; inside it where only the folder can be written to.

    The folder above a mount point belongs to one container or host, the mounted folder to all of them.
    """
    beside, inside = _lock_paths(folder)
    return inside if folder.is_dir() and (os.path.ismount(folder) or not os.access(folder.parent, os.W_OK)) else beside


def _lock_paths(folder: Path) -> tuple[Path, Path]:
    """Where the lock of a folder may be: beside it and inside it."""
    inside = folder / ".folder.lock"
    return (folder.with_name(f".{folder.name}.lock") if folder.name else inside), inside


def _missing_parents(folder: Path) -> list[Path]:
    """Creates the folders above `folder`; returns those that were missing, the innermost first."""
    missing = [parent for parent in folder.parents if not parent.exists()]
    with suppress(OSError):  # said by whoever writes there
        folder.parent.mkdir(parents=True, exist_ok=True)
    return missing


def _take(path: Path, folder: Path, work: str) -> bool:
    """Writes this process into the lock; False where it is in it already. Raises UserError for another owner."""
    own = Lock(this_writer(), work, time.strftime("%Y-%m-%d %H:%M:%S"))
    for other in set(_lock_paths(folder)) - {path}:  # of a process to which the folder above is another one
        found = _read_file(other)
        if found is not None and found.writer != own.writer and (wait := _seconds_held(found, other)) is not None:
            raise UserError(_refusal(folder, other, found, wait))
    try:
        with _guarded(path) as descriptor:
            found = _read(descriptor)
            if found is not None and found.writer == own.writer:
                return False
            if found is not None and (wait := _seconds_held(found, path)) is not None:
                raise UserError(_refusal(folder, path, found, wait))
            _write(descriptor, own)
    except OSError as error:
        if error.errno == errno.EROFS:
            raise UserError(
                f"Cannot write {folder}: {READ_ONLY}. Mount it for writing, or choose another folder."
            ) from None
        if error.errno in SPACE:
            sizes = f"{len(_content(own)):,} bytes needed, {shutil.disk_usage(path.parent).free:,} bytes free"
            raise UserError(
                f"Cannot write {folder}: {SPACE[error.errno]} ({sizes}). Free space, or choose another folder."
            ) from None
        raise UserError(
            f"Cannot write into {str(folder.parent)!r}: {error.strerror or error}. Choose another folder."
        ) from None
    if found is not None:
        warnings.warn(f"Taking over {folder} from {found.described()}, which is no longer running.", stacklevel=1)
    return True


def _seconds_held(found: Lock, path: Path) -> float | None:
    """None for a lock without a living process; otherwise the seconds after which a silent one could be taken over."""
    alive = found.writer.is_alive()
    if alive is None:
        silent = _now_at(path) - path.stat().st_mtime
        return max(0.0, SILENT - silent) if silent < SILENT else None
    return 0.0 if alive else None


def _refusal(folder: Path, path: Path, found: Lock, wait: float) -> str:
    """The sentence for whoever comes second."""
    rule = f"; if that process is gone, start again in {wait:.0f} s" if wait else ""
    return (
        f"{folder} is being written by {found.described()}: wait for its end or stop it{rule}, or choose another "
        f"folder (the lock is {path.name})."
    )


def _release(path: Path) -> None:
    with suppress(OSError), _guarded(path) as descriptor:
        found = _read(descriptor)
        if found is not None and found.writer == this_writer():
            path.unlink()


def _show_life(path: Path, folder: Path, ended: threading.Event, give_up: Callable[[str], object]) -> None:
    """A host that cannot see this process sees the lock's time of change."""
    while not ended.wait(HEARTBEAT):
        found = _read_file(path)
        if found is not None and found.writer != this_writer():
            if not ended.is_set():
                give_up(f"{folder} was taken over by {found.described()} while this process stood still; it ends here.")
            return
        with suppress(OSError):
            os.utime(path)


def _now_at(path: Path) -> float:
    """Now by the clock that dates the files beside `path`: a file server's, or another host's, may differ from ours."""
    with suppress(OSError), tempfile.TemporaryFile(dir=path.parent) as file:
        return os.fstat(file.fileno()).st_mtime
    return time.time()


@contextmanager
def _guarded(path: Path) -> Iterator[int]:
    """The open lock file, which no other process reads or changes meanwhile."""
    deadline = time.monotonic() + GUARD_SECONDS
    while True:
        descriptor = os.open(path, OPEN_LOCK, 0o666)
        try:
            if _lock(descriptor, deadline) and _is_file_of(descriptor, path):
                yield descriptor
                return
        finally:
            os.close(descriptor)


def _lock(descriptor: int, deadline: float) -> bool:
    """flock, for the moment of a change; file systems and systems without it go on unguarded."""
    try:
        import fcntl
    except ImportError:
        return True
    while time.monotonic() < deadline:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.01)
        except OSError:
            return True
    return True  # a process that was stopped between two lines


def _is_file_of(descriptor: int, path: Path) -> bool:
    """Whether the open file still has that name: its former owner may have removed it meanwhile."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _read(descriptor: int) -> Lock | None:
    """The owner in a lock; None for an empty one, whose process died while it wrote."""
    try:
        values = json.loads(os.pread(descriptor, 1 << 16, 0))
        lock = Lock(Writer(**values.pop("writer")), **values)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    texts = (lock.writer.host, lock.writer.start, lock.work, lock.since)
    is_whole = type(lock.writer.pid) is int and all(isinstance(text, str) and text.strip() for text in texts)
    return lock if is_whole else None


def _read_file(path: Path) -> Lock | None:
    """The owner in the lock at a path, which may be absent; it is not changed."""
    try:
        descriptor = os.open(path, READ_LOCK)
    except OSError:
        return None
    try:
        return _read(descriptor)
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _write(descriptor: int, lock: Lock) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, _content(lock), 0)


def _content(lock: Lock) -> bytes:
    return json.dumps(asdict(lock)).encode()


# ---------------------------------------------------------------------------------------------------------------------
# Temporaries


def temporary_beside(target: str | os.PathLike[str], suffix: str = "") -> Path:
    """A free hidden name in the folder of `target`, to be renamed to it; `suffix`: for encoders that go by it."""
    target = Path(target)
    return target.with_name(f".{target.name[:STEM]}.{this_writer().token}.{secrets.token_hex(4)}.tmp{suffix}")


def temporary_folder(target: Path) -> Path:
    """A free hidden name on the file system of the folder `target`: in it if it exists, otherwise beside it.

    A folder that exists may be a mount point, or one that a link leads to; nothing is renamed from one file system to
    another.
    """
    return temporary_beside(target / (target.name or "folder") if target.is_dir() else target)


def is_temporary(path: Path) -> bool:
    """Whether a file or folder is a temporary or a lock of ours, and no result."""
    return TEMPORARY.fullmatch(path.name) is not None or (path.name.startswith(".") and path.name.endswith(".lock"))


def remove_leftovers(folder: Path) -> None:
    """Removes the temporaries of dead processes in `folder` and beside it, with a warning that states their size.

    Folders that links in `folder` lead to, such as checkpoints on another disk, are searched without those below.
    """
    inside = [Path(root, name) for root, folders, files in os.walk(folder) for name in (*folders, *files)]
    linked = [entry for path in inside if path.parent == folder and path.is_symlink() for entry in _entries(path)]
    _remove([path for path in (*_temporaries_of(folder), *inside, *linked) if _is_left(path)])


def _entries(folder: Path) -> list[Path]:
    with suppress(OSError):
        return list(folder.iterdir())
    return []


def remove_leftovers_of(file: Path) -> None:
    """The same for the temporaries of one output file."""
    _remove([path for path in _temporaries_of(file) if _is_left(path)])


def _temporaries_of(target: Path) -> list[Path]:
    """The temporaries of one file or folder, of living processes too."""
    with suppress(OSError):
        return [path for path in target.parent.glob(".*.tmp*") if _target_of(path) == target.name[:STEM]]
    return []


def _target_of(path: Path) -> str | None:
    found = TEMPORARY.fullmatch(path.name)
    return found["name"] if found else None


def _is_left(path: Path) -> bool:
    """Whether a path is a temporary whose process is dead."""
    found = TEMPORARY.fullmatch(path.name)
    if found is None:
        return False
    host = host_name()
    if found["host"] != _digest(host) or os.name != "posix":
        with suppress(OSError):
            return time.time() - path.stat().st_mtime > FOREIGN_TEMPORARY
        return False
    start = start_of(int(found["pid"]))
    return start != HIDDEN and (start is None or found["start"] != _digest(start))


def _remove(paths: list[Path]) -> None:
    size, removed = 0, []
    for path in paths:
        if path.exists() or path.is_symlink():  # not if it was inside another one
            size += _size(path)
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
            removed.append(path)
    if removed:
        what = f"{removed[0]}" + (f" and {len(removed) - 1} more" if len(removed) > 1 else "")
        warnings.warn(f"Removed what a killed process left: {what}, {size / 1e6:,.2f} MB.", stacklevel=1)


def _size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    files = [path] if path.is_file() or path.is_symlink() else [file for file in path.rglob("*") if file.is_file()]
    total = 0
    for file in files:
        with suppress(OSError):
            total += file.lstat().st_size
    return total


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]
