"""What the system says about a write: one sentence with path and bytes, earlier files whole, nothing temporary left."""

import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from mutoscope.data.media import write_png
from mutoscope.data.sources import tokens
from mutoscope.data.sources.tokens import TokenCacheInfo, TokenCacheWriter
from mutoscope.data.video.read import write_video
from mutoscope.errors import UserError
from mutoscope.evaluation.rows import Rows, State, write_rows
from mutoscope.hub import save_pretrained
from mutoscope.training.checkpoint import save_checkpoint, write_recipe
from mutoscope.training.tracking import JsonlTracker, read_log
from mutoscope.writing import new_folder, reserve, write_whole, writing
from tiny_models import tiny_index, tiny_model, tiny_tokenizer

RED = np.full((3, 16, 16, 3), (200, 0, 0), np.uint8)
INFO = TokenCacheInfo(4, (2, 4, 4), "int16", "x", "y")
REFUSALS = {
    errno.ENOSPC: "No space left on the disk",
    errno.EDQUOT: "The disk quota is used up",
    errno.EROFS: "The file system is read-only",
}
WRITES: dict[str, Callable[[Path], object]] = {
    "a file": lambda folder: write_whole(folder / "new.txt", "x" * 100),
    "an image": lambda folder: write_png(folder / "new.png", RED[0]),
    "a video": lambda folder: write_video(folder / "new.mp4", RED, 8),
    "a picture of frames": lambda folder: write_video(folder / "new.png", RED, 8),
    "a recipe": lambda folder: write_recipe(folder, {"a": 1}),
    "a checkpoint": lambda folder: save_checkpoint(folder, 1, {"w": torch.nn.Linear(2, 2)}, torch.Generator(), {}),
    "a model": lambda folder: save_pretrained(folder / "new", tiny_index(), tiny_tokenizer(), tiny_model()),
    "a token cache": lambda folder: TokenCacheWriter(folder / "new", INFO),
    "rows of an evaluation": lambda folder: write_rows(folder / "new", Rows({"a": torch.zeros(2)})),
    "state of an evaluation": lambda folder: State.open(folder / "new", {"a": 1}),
}


def everything(folder: Path) -> dict[str, bytes]:
    """Every file below, hidden ones too, with its content."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("what", ["a file", "a checkpoint"])
def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch, what: str):
    """A power cut between the two must not leave an empty file under the final name."""
    order: list[str] = []
    replace, rename = os.replace, Path.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: order.append("disk"))
    monkeypatch.setattr(os, "replace", lambda *paths: (order.append("name"), replace(*paths))[1])
    monkeypatch.setattr(Path, "replace", lambda *paths: (order.append("name"), rename(*paths))[1])
    WRITES[what](tmp_path)
    assert order[:2] == ["disk", "name"]


def test_a_file_system_that_cannot_be_flushed_is_written_to_all_the_same(tmp_path: Path, monkeypatch):
    def refused(descriptor: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", refused)
    for what in WRITES:
        (tmp_path / what).mkdir()
        WRITES[what](tmp_path / what)
    assert (tmp_path / "a file" / "new.txt").read_text() == "x" * 100


@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_below_one_that_is_read_only_is_written_if_it_exists(tmp_path: Path, monkeypatch, exists: bool):
    """As a volume in a container whose own disk is read-only."""
    if exists:
        (tmp_path / "out").mkdir()
    before = tempfile.TemporaryFile

    def refusing(dir: Path):
        if Path(dir) == tmp_path:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return before(dir=dir)

    monkeypatch.setattr(tempfile, "TemporaryFile", refusing)
    if exists:
        save_pretrained(tmp_path / "out", tiny_index(), tiny_tokenizer(), tiny_model())
    else:
        with pytest.raises(UserError, match="read-only"):
            save_pretrained(tmp_path / "out", tiny_index(), tiny_tokenizer(), tiny_model())


@pytest.mark.parametrize("number", REFUSALS, ids=errno.errorcode.get)
@pytest.mark.parametrize("what", WRITES)
def test_a_refused_rename_is_one_sentence_and_leaves_what_was_there(
    tmp_path: Path, monkeypatch, what: str, number: int
):
    (tmp_path / "old.txt").write_text("whole")

    def refused(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    for owner, name in ((os, "replace"), (Path, "replace"), (Path, "mkdir")):
        monkeypatch.setattr(owner, name, refused)
    if what == "a token cache":
        monkeypatch.setattr(tokens, "reserve", refused)
    with pytest.raises(UserError, match=f"Cannot write .*{REFUSALS[number]}") as caught:
        WRITES[what](tmp_path)
    monkeypatch.undo()
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)
    assert everything(tmp_path) == {"old.txt": b"whole"}


def test_a_full_disk_says_the_bytes_needed_and_those_free(tmp_path: Path):
    with pytest.raises(UserError, match=r"\(1,234 bytes needed, [\d,]+ bytes free\)"), writing(tmp_path / "a", 1234):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_file_without_a_known_size_says_how_much_did_not_suffice(tmp_path: Path):
    temporary = tmp_path / "a.tmp"
    with pytest.raises(UserError, match=r"more than 50 bytes needed"), writing(tmp_path / "a", temporary=temporary):
        temporary.write_bytes(bytes(50))
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not temporary.exists()


def test_the_systems_word_is_found_behind_a_librarys_own(tmp_path: Path):
    with pytest.raises(UserError, match="No space left"), writing(tmp_path / "a"):
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise RuntimeError("PytorchStreamWriter failed") from error


def test_other_exceptions_pass_and_the_temporary_file_is_removed_all_the_same(tmp_path: Path):
    temporary = tmp_path / "a.tmp"
    with pytest.raises(ZeroDivisionError), writing(tmp_path / "a", temporary=temporary):
        temporary.write_bytes(b"x")
        raise ZeroDivisionError
    assert not temporary.exists()


def test_files_in_a_temporary_folder_are_named_by_where_they_belong(tmp_path: Path):
    temporary = new_folder(tmp_path / ".model.tmp")
    inner = temporary / "part" / "a.bin"
    expected = pytest.raises(UserError, match=f"Cannot write {tmp_path}/model/part/a.bin")
    with expected, writing(tmp_path / "model", temporary=temporary), writing(inner, 10):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not temporary.exists()


@pytest.mark.parametrize("supported", [True, False])
def test_reserved_space_is_allocated_and_the_content_stays(tmp_path: Path, monkeypatch, supported: bool):
    if not supported:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    path = tmp_path / "a"
    path.write_bytes(b"begin")
    reserve(path, 3_000_000)
    assert path.stat().st_size == 3_000_000 and path.stat().st_blocks * 512 >= 3_000_000
    assert path.read_bytes()[:6] == b"begin\0"


def test_a_token_cache_is_allocated_before_its_first_clip(tmp_path: Path):
    writer = TokenCacheWriter(tmp_path / "cache", INFO)
    for name, (dtype, shape) in INFO.arrays().items():
        path = writer.partial / f"{name}.npy"
        size = np.dtype(dtype).itemsize * int(np.prod(shape))
        assert path.stat().st_size >= size and path.stat().st_blocks * 512 >= size


def test_a_log_keeps_whole_lines_where_the_disk_is_full(tmp_path: Path):
    """The system refuses files beyond 300 bytes, as a full disk would."""
    program = """
import resource, sys
from mutoscope.training.tracking import JsonlTracker
tracker = JsonlTracker(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
try:
    for step in range(100):
        tracker.log(step, {"loss": 1.0})
except ValueError as error:
    print(error)
"""
    command = [sys.executable, "-c", program, str(tmp_path / "log.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.startswith(f"Cannot write {tmp_path}/log.jsonl"), done.stderr
    text = (tmp_path / "log.jsonl").read_text()
    assert text.endswith("\n") and 200 < len(text) <= 300 and len(read_log(tmp_path / "log.jsonl")) == text.count("\n")
    assert JsonlTracker(tmp_path / "log.jsonl", 3).path.read_text().count("\n") == 3
