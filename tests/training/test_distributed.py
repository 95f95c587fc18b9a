import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mutoscope.training.distributed import Process, any_rank, barrier, mean_over_ranks
from mutoscope.training.launch import INTERRUPTED
from mutoscope.training.tracking import read_log
from training.split_runs import STEPS, main

ALONE = Process(0, 1, torch.device("cpu"))
LAUNCH, TORCHRUN = "mutoscope.training.launch", "torch.distributed.run"


def started(launcher: str, ranks: int, *arguments: str) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", launcher, "--standalone", "--nproc-per-node", str(ranks), *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def train_on(ranks: int, out: Path, stop_after: int) -> None:
    process = started(TORCHRUN, ranks, "-m", "training.split_runs", str(out), "1", str(stop_after), str(STEPS))
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said[-3000:]


def logged(folder: Path, name: str) -> list[float]:
    return [line[name] for line in read_log(folder / "log.jsonl") if name in line]


@pytest.mark.slow
def test_a_run_that_goes_on_with_other_numbers_of_processes_is_the_same_run(tmp_path: Path):
    """Every family and tokenizer: two processes, stopped by a signal; one with two micro-batches; then four."""
    main(tmp_path / "alone", 1)
    train_on(2, tmp_path / "split", stop_after=2)
    main(tmp_path / "split", 1, stop_after=4)
    train_on(4, tmp_path / "split", stop_after=0)
    runs = sorted(folder.name for folder in (tmp_path / "alone").iterdir())
    assert len(runs) == 13
    for run in runs:
        alone, split = tmp_path / "alone" / run, tmp_path / "split" / run
        assert len(logged(split, "loss")) == STEPS, run  # one line per update, not per process
        assert logged(split, "loss") == pytest.approx(logged(alone, "loss"), abs=1e-5), run
        for name in ("validation_loss", "validation_loss_averaged"):
            assert logged(split, name) == pytest.approx(logged(alone, name), abs=1e-4), run


WAITS = """
import os, sys, time
from pathlib import Path
from mutoscope import cli
from mutoscope.training import watch
from mutoscope.training.signals import StopSignals
from mutoscope.training.distributed import any_rank, barrier, join

watch.BEAT, watch.SILENCE = 0.5, 10.0

def run_verb(verb, arguments):
    with StopSignals() as stop:
        process = join("cpu")
        barrier(process)
        Path(sys.argv[1], str(process.rank)).write_text(str(os.getpid()))
        while not any_rank(stop.requested, process):
            time.sleep(0.05)
    raise KeyboardInterrupt("stopped after step 7; the same command with --resume continues.")

cli.run_verb = run_verb
sys.exit(cli.run(["train"]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "number, to_rank, status, sentence",
    [
        (signal.SIGTERM, None, INTERRUPTED, "mutoscope: stopped after step 7"),
        (signal.SIGINT, 1, INTERRUPTED, "mutoscope: stopped after step 7"),
        (signal.SIGKILL, 1, 2, "mutoscope: Rank 1 (process "),
        (signal.SIGSTOP, 1, 2, "mutoscope: Rank 1 (process "),
    ],
    ids=["stopped", "one stopped", "one killed", "one frozen"],
)
def test_a_run_that_ends_early_says_so_in_one_sentence(
    tmp_path: Path, number: signal.Signals, to_rank: int | None, status: int, sentence: str
):
    script = tmp_path / "waits.py"
    script.write_text(WAITS)
    process = started(LAUNCH, 2, str(script), str(tmp_path))
    files = [tmp_path / str(rank) for rank in range(2)]
    until = time.monotonic() + 200
    while not all(file.is_file() and file.read_text() for file in files):
        assert process.poll() is None and time.monotonic() < until, "the processes did not start"
        time.sleep(0.1)
    ranks = [int(file.read_text()) for file in files]
    os.kill(process.pid if to_rank is None else ranks[to_rank], number)
    if number == signal.SIGSTOP:
        time.sleep(20)
        os.kill(ranks[1], signal.SIGCONT)  # torchrun's SIGTERM reaches it only then
    try:
        said, _ = process.communicate(timeout=200)
    finally:
        for pid in (process.pid, *ranks) if process.returncode is None else ():
            os.kill(pid, signal.SIGKILL)
    assert process.returncode in (status, 128 + number), said
    assert said.startswith(sentence) and len(said.splitlines()) <= 2, said


def test_alone_every_exchange_is_the_identity():
    assert mean_over_ranks({"a": torch.tensor(2.0), "b": torch.tensor([3])}, ALONE) == {"a": 2.0, "b": 3.0}
    assert mean_over_ranks({}, ALONE) == {}
    assert any_rank(True, ALONE) and not any_rank(False, ALONE)
    barrier(ALONE)
