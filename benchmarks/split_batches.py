"""How far the losses of a run differ where its batches are split in another way, for every family and tokenizer.

    python benchmarks/split_batches.py OUT.json [--num-steps 24] [NAME ...]

Each run is trained on CPU in float32: by one process, which is the reference; with four micro-batches; by two and by
four processes; and by two, then one, then four, each stopped by SIGTERM after a third of the updates. The runs are
those of tests/training/split_runs.py: networks of a few thousand parameters with every kind of random draw (masks,
noise, dropped conditions, dropout, stochastic depth, rollouts) and every statistic of a batch (entropy, LeCam, batch
norms). The report holds, for each run and split, the largest difference of a loss over all updates. Differences are
those of float32 sums in another order, which the updates amplify slowly. One is not: the batch norms of a PatchGAN see
one micro-batch each. `vq2d-without-norms` is the same run without them, and only runs by its name (and in a report of
all runs, with four micro-batches), to show that nothing else depends on the split.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mutoscope.training.tracking import read_log
from timing import Report, write_report

WITHOUT_NORMS = "vq2d-without-norms"
TESTS = Path(__file__).parents[1] / "tests"


def train(out: Path, processes: int, accumulation: int, stop_after: int, num_steps: int, names: Sequence[str]) -> None:
    """One start of all runs; those with checkpoints below `out` are resumed."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path]), "OMP_NUM_THREADS": "1"}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), "-m", "training.split_runs", str(out)]
    numbers = (accumulation, stop_after, num_steps)
    subprocess.run([*command, *map(str, numbers), *names], env=environment, check=True, stderr=subprocess.DEVNULL)


def losses(folder: Path) -> list[float]:
    """The loss of every update of one run."""
    return [line["loss"] for line in read_log(folder / "log.jsonl")]


def largest_difference(folder: Path, reference: Path) -> float:
    """Of the losses of all updates. Raises ValueError where the two runs have not the same number of updates."""
    pairs = zip(losses(folder), losses(reference), strict=True)
    return max(abs(a - b) for a, b in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--num-steps", type=int, default=24)
    arguments = parser.parse_args()
    steps, names = arguments.num_steps, arguments.names
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for extra in ([], [WITHOUT_NORMS]) if not names else ([],):
            train(root / "one", 1, 1, 0, steps, [*names, *extra])
            train(root / "four micro-batches", 1, 4, 0, steps, [*names, *extra])
        train(root / "two processes", 2, 1, 0, steps, names)
        train(root / "four processes", 4, 1, 0, steps, names)
        train(root / "two, one, four", 2, 1, steps // 3, steps, names)
        train(root / "two, one, four", 1, 1, 2 * steps // 3, steps, names)
        train(root / "two, one, four", 4, 1, 0, steps, names)
        runs: Report = {}
        for run in sorted((root / "one").iterdir()):
            splits = [split for split in sorted(root.iterdir()) if split.name != "one"]
            splits = [split for split in splits if (split / run.name).is_dir()]
            found = {split.name: largest_difference(split / run.name, run) for split in splits}
            runs[run.name] = {"first_loss": losses(run)[0], "last_loss": losses(run)[-1], "differences": found}
    write_report(arguments.out, {"num_steps": steps, "runs": runs})


if __name__ == "__main__":
    main()
