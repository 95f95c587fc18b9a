"""Compiled steps against the same pipeline without them, for the bundled models.

    OMP_NUM_THREADS=1 python benchmarks/compiled_speed.py OUT.json [--models par-shapes-4x ...] [--repeats 5]

Calls of the two pipelines alternate in one process, so the ratio is that of one machine at one time. Seconds are those
of the processor, because other programs on the machine change how long a call takes by the clock. Compiling is timed
twice, with an empty cache and in a second process that finds what the first one has stored.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from mutoscope.pipeline import Generation, VideoPipeline
from timing import Report, write_report

CALLS: dict[str, dict[str, object]] = {
    "par-shapes-4x": {"class_label": 0},
    "magvit-shapes": {"class_label": 0},
    "nova-shapes": {"prompt": "a red circle bounces to the right"},
    "magi-shapes": {"class_label": 0, "num_frames": 24},
    "magi-doom": {"num_frames": 24},
}
"""Streams are longer than the window, so that it moves."""


def timed(pipeline: VideoPipeline, call: dict[str, Any]) -> tuple[float, float, Generation]:
    """Seconds of the processor and of the clock."""
    began, started = time.process_time(), time.perf_counter()
    result = pipeline.generate(seed=1, **call)
    return time.process_time() - began, time.perf_counter() - started, result


def first_call(name: str) -> Report:
    """Loads a compiled pipeline and calls it once: what compiling costs, and in how many steps."""
    steps: list[float] = []
    pipeline = VideoPipeline.from_pretrained(name, compile=True, on_compiled=steps.append)
    processor, clock, _ = timed(pipeline, CALLS[name])
    return {"steps": len(steps), "seconds_in_steps": sum(steps), "processor_seconds": processor, "seconds": clock}


def in_new_process(name: str, cache: str) -> Report:
    command = [sys.executable, __file__, "-", "--first-call", name]
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def row(name: str, repeats: int) -> Report:
    """Both pipelines, one after the other, `repeats` times."""
    plain = VideoPipeline.from_pretrained(name)
    compiled = VideoPipeline.from_pretrained(name, compile=True)
    found = [timed(p, CALLS[name])[2] for p in (plain, compiled)]
    pairs = [(timed(plain, CALLS[name]), timed(compiled, CALLS[name])) for _ in range(repeats)]
    frames = [result.clips[0].frames.astype(int) for result in found]
    seconds = {
        "eager_processor_seconds": median(before[0] for before, _ in pairs),
        "compiled_processor_seconds": median(after[0] for _, after in pairs),
        "eager_seconds": median(before[1] for before, _ in pairs),
        "compiled_seconds": median(after[1] for _, after in pairs),
    }
    return {
        "model": name,
        "frames": found[0].num_frames,
        **seconds,
        "processor_ratio": seconds["compiled_processor_seconds"] / seconds["eager_processor_seconds"],
        "largest_difference_of_pixels": int(np.abs(frames[0] - frames[1]).max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--models", nargs="+", default=list(CALLS), choices=list(CALLS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--first-call", choices=list(CALLS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.first_call:
        print(json.dumps(first_call(options.first_call)))
        return
    rows: list[Report] = []
    machine = {"processor": platform.processor() or platform.machine(), "threads": 1, "torch": torch.__version__}
    for name in options.models:
        with tempfile.TemporaryDirectory() as cache:
            first = {"cold": in_new_process(name, cache), "from_disk": in_new_process(name, cache)}
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
            rows.append({**row(name, options.repeats), **first})
        print(rows[-1], flush=True)
        write_report(options.out, {**machine, "dtype": "float32", "repeats": options.repeats, "rows": rows})


if __name__ == "__main__":
    main()
