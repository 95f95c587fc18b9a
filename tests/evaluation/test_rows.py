"""Rows of clips: chunks, interruption, and folders that hold something else."""

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from evaluation.distributed_run import main
from mutoscope.errors import UserError
from mutoscope.evaluation import rows
from mutoscope.evaluation.rows import Collected, Rows, State, agreed, chunk_ranges, gather_rows, read_rows, write_rows


class Measure:
    """Row i is [i, i²]; clip 3 cannot be read."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.seen: list[int] = []
        self.fail_at = fail_at

    def __call__(self, numbers: range) -> Rows:
        self.seen += list(numbers)
        if self.fail_at in numbers:
            raise KeyboardInterrupt
        kept = [i for i in numbers if i != 3]
        values = torch.tensor([[i, i**2] for i in kept], dtype=torch.float32).reshape(-1, 2)
        return Rows({"value": values} if kept else {}, ("clip 3 is broken",) if 3 in numbers else ())


def all_rows(chunk_size: int) -> Rows:
    rows = gather_rows(chunk_ranges(7, chunk_size), Measure(), "clips")
    assert rows is not None
    return rows


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 100])
def test_rows_are_joined_in_order_whatever_the_chunks(chunk_size: int):
    rows = all_rows(chunk_size=chunk_size)
    assert rows["value"][:, 0].tolist() == [0, 1, 2, 4, 5, 6] and rows.notes == ("clip 3 is broken",)


def test_a_killed_evaluation_continues_and_measures_nothing_twice(tmp_path):
    state = State.open(tmp_path / "state", {"a": 1})
    with pytest.raises(KeyboardInterrupt):
        gather_rows(chunk_ranges(7, 2), Measure(fail_at=4), "clips", state)
    state, again = State.open(tmp_path / "state", {"a": 1}), Measure()
    rows = gather_rows(chunk_ranges(7, 2), again, "clips", state)
    assert again.seen == [4, 5, 6]
    expected = all_rows(chunk_size=2)
    assert rows is not None and torch.equal(rows["value"], expected["value"]) and rows.notes == expected.notes
    assert not [path for path in (tmp_path / "state").iterdir() if path.name.endswith(".tmp")]


def test_rows_of_many_chunks_share_tensors_allocated_once():
    own = Collected(7)
    for number, part in enumerate(torch.arange(7.0).split(2)):
        own.add(number, Rows({"value": part[:, None]}, (str(number),)))
    (value,) = own.tensors.values()
    rows, parts = own.rows(), own.parts()
    assert value.shape == (7, 1) and rows["value"].data_ptr() == value.data_ptr()
    assert rows["value"].flatten().tolist() == list(range(7)) and rows.notes == ("0", "1", "2", "3")
    assert parts[3]["value"].tolist() == [[6]] and parts[1].notes == ("1",)


def test_a_folder_of_another_evaluation_is_refused(tmp_path):
    State.open(tmp_path / "state", {"a": 1})
    with pytest.raises(UserError, match="parts of another evaluation"):
        State.open(tmp_path / "state", {"a": 2})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UserError, match="not an empty folder"):
        State.open(tmp_path / "full", {})
    with pytest.raises(UserError, match="Cannot write"):
        State.open(tmp_path / "full" / "file" / "below", {})


def test_a_damaged_part_is_named(tmp_path):
    path = tmp_path / "part.safetensors"
    write_rows(path, Rows({"value": torch.ones(2, 1)}, ("note",)))
    assert read_rows(path).notes == ("note",)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(UserError, match="is damaged"):
        read_rows(path)


def torchrun(ranks: int, *arguments: Path) -> None:
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command += ["-m", "evaluation.distributed_run", *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def ranks_of(numbers: Sequence[bool], own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several processes, of which some have refused something."""

    def gathered(found: list[bool], mine: bool) -> None:
        found[:] = [*numbers, mine]

    monkeypatch.setattr(rows, "rank_and_world_size", lambda: (0 if own else 1, len(numbers) + 1))
    monkeypatch.setattr(rows.dist, "all_gather_object", gathered)


@pytest.mark.parametrize("own", [True, False])
def test_what_the_first_process_refuses_ends_all_with_one_message(monkeypatch: pytest.MonkeyPatch, own: bool):
    """Without a word from it the others would wait for hours."""
    ranks_of([not own], own, monkeypatch)
    waited = []
    with pytest.raises(UserError, match="taken" if own else "^$"), agreed(lambda: nullcontext(waited.append(True))):
        if own:
            raise UserError("taken")
    assert waited == [True]
    ranks_of([False], own, monkeypatch)
    with agreed(nullcontext):
        pass


@pytest.mark.slow
def test_two_processes_give_the_number_of_one(tmp_path):
    main(str(tmp_path / "alone.pt"))
    torchrun(2, tmp_path / "two.pt", tmp_path / "state")
    alone, two = (torch.load(tmp_path / name, weights_only=True) for name in ("alone.pt", "two.pt"))
    assert set(two["ranks"]) == {0, 1} and set(alone["ranks"]) == {0}
    assert two["figure"] == alone["figure"] and two["notes"] == alone["notes"] == ("clip 7",)
    # What two processes left on disk, one continues.
    main(str(tmp_path / "again.pt"), str(tmp_path / "state"))
    assert torch.load(tmp_path / "again.pt", weights_only=True) == two
