"""Shared by the measuring scripts: the type of a report, the clock, and the file a report is written to."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

import torch

Report = dict[str, object]
"""What becomes a JSON object: strings, numbers, lists and objects of them."""


def synchronize(device: torch.device) -> None:
    """Wait for the kernels of a GPU; a CPU has none waiting."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_seconds(call: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median time of `repeats` calls after one warm-up call."""
    times = []
    for repeat in range(repeats + 1):
        synchronize(device)
        start = time.perf_counter()
        call()
        synchronize(device)
        if repeat:
            times.append(time.perf_counter() - start)
    return median(times)


def write_report(path: Path, report: Mapping[str, object], indent: int = 2) -> None:
    """Write a report as JSON, with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=indent) + "\n")
