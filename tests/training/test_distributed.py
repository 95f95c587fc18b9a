import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mutoscope.training.checkpoint import load_latest_checkpoint
from mutoscope.training.distributed import Process, any_rank, mean_over_ranks
from mutoscope.training.tracking import read_log
from training.distributed_run import main

ALONE = Process(0, 1, torch.device("cpu"))


def torchrun(ranks: int, out: Path, *arguments: str) -> None:
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command += ["-m", "training.distributed_run", str(out), "1", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_log(folder / "log.jsonl")]


@pytest.mark.slow
def test_two_ranks_train_like_one_process_with_two_micro_batches(tmp_path):
    torchrun(2, tmp_path / "ranks")
    main(str(tmp_path / "alone"), accumulation=2, resume=False)
    for stage in ("model", "tokenizer"):
        assert len(losses(tmp_path / "ranks" / stage)) == 6  # one line per update, not per rank
        assert losses(tmp_path / "ranks" / stage) == pytest.approx(losses(tmp_path / "alone" / stage), rel=1e-4)
        several, alone = (load_latest_checkpoint(tmp_path / run / stage / "checkpoints") for run in ("ranks", "alone"))
        assert several and alone
        for name, value in several["parts"]["ema"].items():
            torch.testing.assert_close(value, alone["parts"]["ema"][name], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_two_ranks_resume_where_they_stopped(tmp_path):
    torchrun(2, tmp_path)
    expected = losses(tmp_path / "model")
    (tmp_path / "model" / "checkpoints" / "step-00000006.pt").unlink()
    torchrun(2, tmp_path, "resume")
    assert losses(tmp_path / "model") == pytest.approx(expected, rel=1e-6)


def test_alone_every_exchange_is_the_identity():
    assert mean_over_ranks({"a": torch.tensor(2.0), "b": torch.tensor([3])}, ALONE) == {"a": 2.0, "b": 3.0}
    assert mean_over_ranks({}, ALONE) == {}
    assert any_rank(True, ALONE) and not any_rank(False, ALONE)
