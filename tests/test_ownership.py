"""One owner per folder; locks and temporaries of dead processes are recognised, those of living ones respected."""

import errno
import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from mutoscope import ownership
from mutoscope.errors import UserError
from mutoscope.ownership import (
    FOREIGN_TEMPORARY,
    HIDDEN,
    SILENT,
    Writer,
    boot_id,
    host_name,
    is_temporary,
    lock_path,
    owned,
    remove_leftovers_of,
    temporary_beside,
    temporary_folder,
    this_writer,
    tidy,
)

HOLD = """
import os, sys
from pathlib import Path
from mutoscope.ownership import owned, temporary_beside
folder = Path(sys.argv[1])
with owned(folder, "train"):
    folder.mkdir(exist_ok=True)
    for target in (folder, folder / "inside.pt"):
        temporary_beside(target).write_bytes(bytes(500_000))
    print(os.getpid(), flush=True)
    sys.stdin.read()
    if sys.argv[2] == "die":
        os._exit(9)
"""


@contextmanager
def holder(folder: Path, end: str = "leave"):
    """Another process that owns the folder until the block ends; its number."""
    command = [sys.executable, "-c", HOLD, str(folder), end]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())


def _touched(path: Path, seconds: float) -> None:
    """The file as if it had last been written so long ago."""
    then = time.time() - seconds
    os.utime(path, (then, then))


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob(".*"))


def test_whoever_comes_second_is_refused_with_the_owners_name(tmp_path):
    with holder(tmp_path / "run") as number:
        message = rf"being written by `mutoscope train` \(process {number} on .*, since 20"
        with pytest.raises(UserError, match=message), owned(tmp_path / "run", "tokenize"):
            pytest.fail("both own the folder")
        assert sum(map(is_temporary, tmp_path.rglob(".*"))) == 3  # the lock and two temporaries, all of the living
    with pytest.warns(UserWarning, match="Removed"), owned(tmp_path / "run", "tokenize"):
        pass
    assert not lock_path(tmp_path / "run").exists()


def test_the_same_folder_by_another_name_is_the_same_folder(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("run")
    second = owned(tmp_path / "link", "train")
    with holder(tmp_path / "run"), pytest.raises(UserError, match="being written"), second:
        pass


def test_a_lock_of_a_dead_process_is_taken_over_and_its_temporaries_are_removed(tmp_path):
    with holder(tmp_path / "run", "die") as number:
        pass
    with pytest.warns(UserWarning) as said, owned(tmp_path / "run", "train"):
        assert hidden(tmp_path) == [".run.lock"]
    lines = [str(warning.message) for warning in said]
    assert f"Taking over {tmp_path / 'run'}" in lines[0] and f"process {number} on" in lines[0]
    assert "and 1 more, 1.00 MB" in lines[1]
    assert hidden(tmp_path) == []


def test_a_number_that_is_used_again_is_another_process(tmp_path):
    with owned(tmp_path / "run", "train"):
        found = json.loads(lock_path(tmp_path / "run").read_text())
    found["writer"] |= {"pid": 1, "start": f"{boot_id()} 12"}
    lock_path(tmp_path / "run").write_text(json.dumps(found))
    with pytest.warns(UserWarning, match="no longer running"), owned(tmp_path / "run", "train"):
        pass


WRONG_KINDS = json.dumps({"writer": {"host": 3, "pid": "1", "start": []}, "work": "train", "since": ""})


@pytest.mark.parametrize("content", ["", "{", "[]", '{"writer": 3}', WRONG_KINDS])
def test_a_lock_that_nobody_finished_writing_belongs_to_nobody(tmp_path, content):
    lock_path(tmp_path / "run").write_text(content)
    with owned(tmp_path / "run", "train"):
        pass


def test_another_host_is_alive_as_long_as_it_shows_life(tmp_path):
    path = lock_path(tmp_path / "run")
    writer = {"host": "elsewhere", "pid": 1, "start": "x"}
    path.write_text(json.dumps({"writer": writer, "work": "train", "since": "2026-01-01"}))
    with pytest.raises(UserError, match=r"on elsewhere.*start again in \d+ s"), owned(tmp_path / "run", "train"):
        pass
    _touched(path, SILENT + 1)
    with pytest.warns(UserWarning, match="Taking over"), owned(tmp_path / "run", "train"):
        pass


def test_a_process_may_own_what_it_owns_already(tmp_path):
    with owned(tmp_path / "run", "train"):
        with owned(tmp_path / "run", "convert"):
            pass
        assert lock_path(tmp_path / "run").exists()
    assert hidden(tmp_path) == []


def test_folders_above_are_created_for_the_lock_and_removed_if_nothing_came_of_it(tmp_path):
    with pytest.raises(RuntimeError), owned(tmp_path / "a" / "b" / "run", "train"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with owned(tmp_path / "a" / "b" / "run", "train"):
        (tmp_path / "a" / "b" / "run").mkdir()
    assert (tmp_path / "a" / "b" / "run").is_dir()


def test_a_folder_that_is_only_read_is_tidied(tmp_path):
    with holder(tmp_path / "run", "die"):
        pass
    with pytest.warns(UserWarning, match="Removed what a killed process left"):
        tidy(tmp_path / "run")
    assert [name for name in hidden(tmp_path) if not name.startswith(".inside")] == []
    with holder(tmp_path / "other"):
        tidy(tmp_path / "other")
        assert lock_path(tmp_path / "other").exists()


def test_temporaries_of_this_process_of_others_and_of_other_targets_stay(tmp_path):
    mine, other = temporary_beside(tmp_path / "clip.mp4", ".mp4"), temporary_beside(tmp_path / "clip.mp4.txt")
    foreign = tmp_path / f".clip.mp4.12-{'0' * 6}-{'0' * 6}.{'0' * 8}.tmp"
    theirs = tmp_path / ".clip.mp4.tmp"
    for path in (mine, other, foreign, theirs):
        path.touch()
    remove_leftovers_of(tmp_path / "clip.mp4")
    assert all(path.exists() for path in (mine, other, foreign, theirs))
    _touched(foreign, FOREIGN_TEMPORARY + 1)
    with pytest.warns(UserWarning, match="Removed"):
        remove_leftovers_of(tmp_path / "clip.mp4")
    assert not foreign.exists() and theirs.exists()


def test_names_stay_within_what_a_file_system_takes(tmp_path):
    path = temporary_beside(tmp_path / ("ä" * 120 + ".json"))
    path.touch()
    assert is_temporary(path)


def lock_of(path: Path, **writer: object) -> None:
    """A lock as another process would have written it."""
    values = {"host": "elsewhere", "pid": 1, "start": "x"} | writer
    path.write_text(json.dumps({"writer": values, "work": "train", "since": "2026-01-01"}))


def test_a_host_of_the_same_name_is_another_host(tmp_path):
    """Or this one before it was started again: only time tells."""
    path = lock_path(tmp_path / "run")
    lock_of(path, host=host_name(), start="another-boot 12")
    with pytest.raises(UserError, match=r"start again in \d+ s"), owned(tmp_path / "run", "train"):
        pass
    _touched(path, SILENT + 1)
    with pytest.warns(UserWarning, match="Taking over"), owned(tmp_path / "run", "train"):
        pass


def test_a_process_that_the_system_hides_is_no_dead_one(tmp_path, monkeypatch):
    monkeypatch.setattr(ownership, "start_of", lambda pid: HIDDEN)
    assert Writer(host_name(), 1, f"{boot_id()} 12").is_alive() is None
    theirs = temporary_beside(tmp_path / "clip.mp4")
    theirs.touch()
    remove_leftovers_of(tmp_path / "clip.mp4")
    assert theirs.exists()


def test_without_the_identity_of_a_boot_processes_are_told_apart_by_their_start(monkeypatch):
    monkeypatch.setattr(ownership, "boot_id", lambda: "")
    assert this_writer().is_alive() is True
    assert Writer(host_name(), os.getpid(), "12").is_alive() is False


def test_a_host_that_gets_another_name_leaves_its_process_the_owner(tmp_path, monkeypatch):
    """As a laptop does between two networks, while it trains."""
    with owned(tmp_path / "run", "train"):
        monkeypatch.setattr(ownership.socket, "gethostname", lambda: "elsewhere")
        with owned(tmp_path / "run", "convert"):
            pass
    assert hidden(tmp_path) == []


def test_silence_is_measured_by_the_clock_of_the_file_system(tmp_path, monkeypatch):
    """A clock that is ten minutes fast must not make a living host's lock look silent."""
    lock_of(lock_path(tmp_path / "run"))
    now = time.time()
    monkeypatch.setattr(ownership.time, "time", lambda: now + 600)
    with pytest.raises(UserError, match=r"start again in 1\d\d s"), owned(tmp_path / "run", "train"):
        pass


def test_a_process_that_stood_still_ends_once_another_host_took_over(tmp_path, monkeypatch):
    monkeypatch.setattr(ownership, "HEARTBEAT", 0.02)
    said: list[str] = []
    with owned(tmp_path / "run", "train", give_up=said.append):
        lock_of(lock_path(tmp_path / "run"))
        until = time.monotonic() + 20
        while not said and time.monotonic() < until:
            time.sleep(0.02)
    assert "was taken over by `mutoscope train` (process 1 on elsewhere" in said[0]
    assert json.loads(lock_path(tmp_path / "run").read_text())["writer"]["host"] == "elsewhere"


def test_a_mount_point_is_locked_inside_and_its_other_lock_counts_too(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    inside = tmp_path / "out" / ".folder.lock"
    lock_of(inside)  # of a container in which the folder is a mount point
    with pytest.raises(UserError, match=r"the lock is .folder.lock"), owned(tmp_path / "out", "train"):
        pass
    inside.unlink()
    monkeypatch.setattr(ownership.os.path, "ismount", lambda path: str(path) == str(tmp_path / "out"))
    with owned(tmp_path / "out", "train"):
        assert hidden(tmp_path) == [".folder.lock"]


@pytest.mark.parametrize("number, sentence", [(errno.EROFS, "is read-only"), (errno.ENOSPC, r"\d+ bytes needed")])
def test_a_lock_that_the_disk_refuses_is_the_sentence_of_every_write(tmp_path, monkeypatch, number, sentence):
    def refused(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(ownership, "_write", refused)
    with pytest.raises(UserError, match=sentence), owned(tmp_path / "run", "train"):
        pass


def test_a_link_in_place_of_a_lock_is_not_followed(tmp_path):
    theirs = tmp_path / "precious"
    theirs.write_text("whole")
    lock_path(tmp_path / "run").symlink_to(theirs)
    with pytest.raises(UserError, match="Cannot write into"), owned(tmp_path / "run", "train"):
        pass
    assert theirs.read_text() == "whole"


def test_a_link_to_nothing_becomes_a_folder_that_goes_if_nothing_came_of_it(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "run")
    with pytest.raises(RuntimeError), owned(tmp_path / "link", "train"):
        assert (tmp_path / "disk" / "run").is_dir()
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


def test_leftovers_in_a_folder_on_another_disk_are_removed(tmp_path):
    """`checkpoints` may be a link; and names may contain line ends."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "disk")
    token = f"99999999-{this_writer().token.split('-', 1)[1]}"
    left = [tmp_path / "disk" / f".{name}.{token}.{'0' * 8}.tmp" for name in ("step-00000001.pt", "two\nlines")]
    for path in left:
        path.touch()
    with pytest.warns(UserWarning, match="and 1 more"), owned(tmp_path / "run", "train"):
        pass
    assert not any(path.exists() for path in left)


def test_a_folder_is_written_on_its_own_file_system(tmp_path):
    assert temporary_folder(tmp_path / "new").parent == tmp_path
    (tmp_path / "old").mkdir()
    assert temporary_folder(tmp_path / "old").parent == tmp_path / "old"
