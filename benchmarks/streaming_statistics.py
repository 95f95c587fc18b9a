"""Memory of evaluating many clips, and whether figures depend on the number of processes or on an interruption.

    python benchmarks/streaming_statistics.py OUT.json [--clips 1000 3000 10000] [--processes 1 2 4] [--threads 1]

Each run is `evaluate` under the protocol shapes-10k in processes of its own, with 500 real clips to save time:
n clips of one data seed against held-out ones, and these against as many others. Peak memory is that of the
whole process, Python and PyTorch included; `idle_bytes` is that of a process with the feature network loaded and one
batch read. The killed run gets SIGKILL when half of its parts are in the state folder, and is started again with the
same command.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TypedDict

import torch

from mutoscope.evaluation.engine import evaluate
from mutoscope.evaluation.networks.shapes_classifier import ShapesClassifier
from mutoscope.evaluation.plan import Settings
from mutoscope.evaluation.protocols.published import VideoProtocol, video_protocol
from mutoscope.evaluation.protocols.published_plan import open_extractors
from mutoscope.evaluation.rows import CHUNK, rank_and_world_size
from mutoscope.evaluation.sources.shapes_clips import shapes_listing
from mutoscope.evaluation.sources.windows import Window
from mutoscope.pipeline import peak_memory_bytes
from mutoscope.training.distributed import join
from timing import Report, write_report

SOURCE_SEED, NUM_REAL = 5, 500
FIGURES = ("shapes_fvd", "shapes_fvd_real", "shapes_kvd", "motion", "flicker", "sharpness_drift")


def measure(count: int, threads: int, state: str | None, out: Path) -> None:
    """One process of a run: every process writes its memory, the first one also the figures."""
    torch.set_num_threads(threads)
    join("cpu")
    protocol = replace(video_protocol("shapes-10k"), num_clips=count, num_real=NUM_REAL)
    idle = idle_bytes(protocol)
    began = time.perf_counter()
    source = shapes_listing(count, seed=SOURCE_SEED)
    report = evaluate(source, protocol, state=state, batch_size=16)
    found: Report = {"idle_bytes": idle, "peak_bytes": peak_memory_bytes("cpu")}
    if rank_and_world_size()[0] == 0:
        found |= {"seconds": time.perf_counter() - began}
        found |= {"figures": {name: report["metrics"][name]["value"] for name in FIGURES}}
    Path(f"{out}.{rank_and_world_size()[0]}").write_text(json.dumps(found))


def idle_bytes(protocol: VideoProtocol) -> int:
    """Peak memory with the feature network loaded and one batch read."""
    listing = shapes_listing(16, seed=SOURCE_SEED)
    clips = torch.stack([listing.read(w, 16, 1, None) for w in map(Window, listing.files)])
    open_extractors(protocol, Settings(batch_size=16)).read(clips)
    return peak_memory_bytes("cpu")


# ------------------------------------------------------------------------------------------------------------ runs


class Run(TypedDict):
    """Memory of every process, and the figures of the first."""

    clips: int
    processes: int
    idle_bytes: list[int]
    peak_bytes: list[int]
    seconds: float
    figures: dict[str, float]


class KilledRun(Run):
    """A run that was killed and started again."""

    status: int
    parts_kept: int
    parts: int


def start(count: int, processes: int, threads: int, out: Path, state: Path | None = None) -> subprocess.Popen[bytes]:
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [*launcher, __file__, str(out), "--child", str(count), "--threads", str(threads)]
    command += [] if state is None else ["--state", str(state)]
    return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": str(threads)})


def run(count: int, processes: int, threads: int, folder: Path, state: Path | None = None) -> Run:
    """One run to its end; exits with a message if it fails."""
    out = folder / f"{count}-{processes}"
    if start(count, processes, threads, out, state).wait():
        sys.exit(f"The run of {count} clips in {processes} processes failed.")
    found = [json.loads(Path(f"{out}.{rank}").read_text()) for rank in range(processes)]
    result: Run = {
        "clips": count,
        "processes": processes,
        "idle_bytes": [part["idle_bytes"] for part in found],
        "peak_bytes": [part["peak_bytes"] for part in found],
        "seconds": found[0]["seconds"],
        "figures": found[0]["figures"],
    }
    print(result, flush=True)
    return result


def killed_run(count: int, threads: int, folder: Path) -> KilledRun:
    """A run that is killed after half of its parts and started again."""
    state = folder / "state"
    parts = -(-count // CHUNK) + 2 * -(-NUM_REAL // CHUNK)
    process = start(count, 1, threads, folder / "killed", state)
    while process.poll() is None and len(list(state.glob("*.safetensors"))) < parts // 2:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    status = process.wait()
    kept = len(list(state.glob("*.safetensors")))
    return {"status": status, "parts_kept": kept, "parts": parts, **run(count, 1, threads, folder, state)}


def differences(figures: list[dict[str, float]]) -> float:
    """Largest relative difference of any figure from that of the first run."""
    first = figures[0]
    return max(abs(other[name] / first[name] - 1) for other in figures for name in first)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--clips", type=int, nargs="+", default=[1000, 3000, 10_000])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--state", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        measure(args.child, args.threads, args.state, args.out)
        return
    report: Report = {"machine": platform.machine(), "threads": args.threads, "num_real": NUM_REAL}
    report["judge_sha256"] = ShapesClassifier.bundled().sha256
    most = max(args.clips)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        memory = [run(count, 1, args.threads, folder) for count in sorted(args.clips)]
        several = [run(most, number, args.threads, folder) for number in args.processes if number > 1]
        killed = killed_run(most, args.threads, folder)
    processes = [memory[-1], *several]
    report |= {"memory": memory, "processes": processes, "killed": killed}
    report["largest_relative_difference_over_processes"] = differences([one["figures"] for one in processes])
    report["relative_difference_after_kill"] = differences([memory[-1]["figures"], killed["figures"]])
    write_report(args.out, report, indent=1)


if __name__ == "__main__":
    main()
