"""What waiting threads cost: training updates and streamed frames per second, alone and beside a second program.

    python benchmarks/busy_machine.py OUT.json [--threads 2] [--seconds 8] [--rounds 3] [--work train stream]

Every program is a process of its own with its own OpenMP threads; the settings of the runtime are given by environment
variables, and take turns. "beside" is the rate of one of two equal programs that run at the same time, so half of the
rate alone is a fair share. The settings:
  runtime     whatever the OpenMP runtime does by itself: threads that wait for work spin
  passive     OMP_WAIT_POLICY=passive, which the command line sets: threads that wait are asleep
  spin N      GOMP_SPINCOUNT=N: threads spin N times, then sleep (libgomp)
"""

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from timing import Report, write_report

WAIT_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
WARMUP = 3


def setting(name: str) -> dict[str, str]:
    """Environment variables of a setting."""
    if name == "runtime":
        return {}
    return {"OMP_WAIT_POLICY": "passive"} if name == "passive" else {"GOMP_SPINCOUNT": name.removeprefix("spin ")}


def training_work() -> Callable[[], object]:
    """One update of a small transformer on 8 clips, as in `magvit-shapes`."""
    import torch

    from mutoscope.models.magvit import Magvit, MagvitConfig
    from mutoscope.recipes.shapes import magvit_shapes

    config = magvit_shapes().model
    assert isinstance(config, MagvitConfig)
    model = Magvit(config)
    optimizer = torch.optim.AdamW(model.parameters())
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(512, (8, 8, 8, 8), generator=generator)
    label = torch.zeros(8, dtype=torch.int64)

    def update() -> None:
        model.loss({"tokens": tokens, "label": label, "task": "class-conditional"}, generator)[0].backward()
        optimizer.step()
        optimizer.zero_grad()

    return update


def streaming_work() -> Callable[[], object]:
    """One frame of an endless stream of `magi-shapes`, with decoding."""
    from mutoscope import VideoPipeline

    stream = VideoPipeline.from_pretrained("magi-shapes").stream(num_frames=None, seed=0)
    return lambda: next(stream)


def work(kind: str, threads: int, seconds: float) -> None:
    """Inside a program: prints how often the work was done per second, from a line of input on."""
    import torch

    torch.set_num_threads(threads)
    call = {"train": training_work, "stream": streaming_work}[kind]()
    for _ in range(WARMUP):
        call()
    print("ready", flush=True)
    sys.stdin.readline()
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        call()
        count += 1
    print(count / (time.perf_counter() - begin), flush=True)


def rates(kind: str, name: str, programs: int, threads: int, seconds: float) -> list[float]:
    """Rates of programs that run at the same time."""
    environment = {key: value for key, value in os.environ.items() if key not in WAIT_VARIABLES} | setting(name)
    command = [sys.executable, __file__, "--inside", kind, "--threads", str(threads), "--seconds", str(seconds)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    running = [subprocess.Popen(command, env=environment, **pipes) for _ in range(programs)]
    for process in running:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in running:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    return [float(process.communicate()[0]) for process in running]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", nargs="+", default=["train", "stream"], choices=("train", "stream"))
    parser.add_argument("--settings", nargs="+", default=["runtime", "passive", "spin 1000"])
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        return work(options.inside, options.threads, options.seconds)
    import torch

    rows: list[Report] = []
    for kind in options.work:
        found: dict[tuple[str, int], list[float]] = {}
        for _ in range(options.rounds):
            for name in options.settings:
                for programs in (1, 2):
                    rate = rates(kind, name, programs, options.threads, options.seconds)
                    found.setdefault((name, programs), []).extend(rate)
                    print(kind, name, programs, [round(value, 2) for value in rate], flush=True)
        for name in options.settings:
            alone, beside = (median(found[name, programs]) for programs in (1, 2))
            row: Report = {"work": kind, "setting": name, "alone": round(alone, 3), "beside": round(beside, 3)}
            rows.append(row | {"share": round(beside / alone, 3)})
    report: Report = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "threads": options.threads,
        "unit": "updates or frames per second of one program",
        "rows": rows,
    }
    if options.out is not None:
        write_report(options.out, report)


if __name__ == "__main__":
    main()
