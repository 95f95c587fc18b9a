"""One owner per folder; locks and temporaries of dead processes are recognised, those of living ones respected."""

import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from mutoscope.errors import UserError
from mutoscope.ownership import (
    FOREIGN_TEMPORARY,
    SILENT,
    is_temporary,
    lock_path,
    owned,
    remove_leftovers_of,
    temporary_beside,
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
    found["writer"] |= {"pid": 1, "start": "long ago"}
    lock_path(tmp_path / "run").write_text(json.dumps(found))
    with pytest.warns(UserWarning, match="no longer running"), owned(tmp_path / "run", "train"):
        pass


@pytest.mark.parametrize("content", ["", "{", "[]", '{"writer": 3}'])
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
