"""Memory and time of a long training with contact sheets: does it grow, and what is its time spent on?

    python benchmarks/long_training.py --out benchmarks/results/long_training.json [--minutes 20] [--updates 2000]

Trains a small `magi-shapes` on one thread by the command line, and notes the resident memory of the process every
minute. After as many minutes and updates it gets SIGTERM, which saves a checkpoint; the shares of the time are those of
its own `run.log`. The first minutes hold one-time costs: the tokens of the clips, the first sheets, PyTorch's pools.
"""

import argparse
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from mutoscope.training.tracking import read_log
from timing import Report, write_report

MINUTE = 60.0
COMMAND = (
    "train magi-shapes --cache-clips 256 --model.hidden-size 32 --model.num-layers 1 --model.num-heads 2 "
    "--loop.num-steps 1000000 --loop.batch-size 2 --loop.num-workers 0 --loop.threads 1 --loop.log-every 10 "
    "--loop.sample-every 100 --loop.checkpoint-every 200 --loop.validate-every 500 --device cpu --out"
).split()
SHARES = re.compile(r"([\d.]+) s so far, of which (.*); the rest updates")


def resident_megabytes(pid: int) -> float:
    """Memory of a process that is in RAM, in MB."""
    text = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", text)
    return int(found[1]) / 1000 if found else 0.0


def updates_of(out: Path) -> int:
    """Updates done so far, by the log."""
    return int(max((line["step"] for line in read_log(out / "log.jsonl")), default=-1)) + 1


def shares_of(out: Path) -> tuple[float, dict[str, float]]:
    """Seconds since the first update, and the share of each kind of work, by the last line of run.log about them."""
    seconds, named = SHARES.findall((out / "run.log").read_text())[-1]
    pairs = (entry.rsplit(" ", 1) for entry in named.split(", "))
    return float(seconds), {name: float(share.rstrip("%")) / 100 for name, share in pairs}


def measured(out: Path, minutes: float, updates: int) -> Report:
    """Runs the training in `out` and stops it."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    began, memory = time.monotonic(), list[float]()
    with subprocess.Popen(
        [sys.executable, "-m", "mutoscope", *COMMAND, str(out)], env=environment, stderr=subprocess.DEVNULL
    ) as process:
        while process.poll() is None:
            time.sleep(max(0.0, began + MINUTE * (len(memory) + 1) - time.monotonic()))
            memory.append(round(resident_megabytes(process.pid), 1))
            if len(memory) >= minutes and updates_of(out) >= updates:
                break
        process.send_signal(signal.SIGTERM)
    seconds, shares = shares_of(out)
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, one used",
        "command": " ".join(COMMAND[:-1]),
        "status": process.returncode,
        "updates": updates_of(out),
        "seconds_from_first_update": seconds,
        "shares_of_time": shares,
        "resident_megabytes_each_minute": memory,
        "growth_from_minute_5": round(median(memory[-3:]) - median(memory[4:7]), 1) if len(memory) >= 10 else None,
        "contact_sheets": len(list((out / "samples").iterdir())),
        "checkpoints_kept": len(list((out / "checkpoints").glob("step-*.pt"))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--updates", type=int, default=2000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_report(arguments.out, measured(Path(folder) / "run", arguments.minutes, arguments.updates))


if __name__ == "__main__":
    main()
