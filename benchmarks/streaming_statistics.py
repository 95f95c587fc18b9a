"""Are statistics of many clips flat in memory, the same for any number of processes, and the same after a kill?

    python benchmarks/streaming_statistics.py OUT.json [--clips 1000 3000 10000] [--processes 1 2 4] [--threads 1]

Each run is `evaluate_videos` under the protocol shapes-10k in processes of its own, with 500 real clips to save time:
n clips of one world seed against held-back ones, and these against as many further ones. Peak memory is that of the
whole process, Python and PyTorch included; `idle_bytes` is what a process needs with the judge loaded and one batch
read. The killed run is sent SIGKILL once half of its parts lie in the state folder, and started again with the same
command.
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
from typing import Any

import torch

from mutoscope.evaluation.networks.extractors import WeightFiles
from mutoscope.evaluation.protocols.protocol import Judge
from mutoscope.evaluation.protocols.published import VideoProtocol, video_protocol
from mutoscope.evaluation.rows import CHUNK, place
from mutoscope.evaluation.sources.references import world_listing
from mutoscope.evaluation.sources.windows import Window
from mutoscope.evaluation.videos import evaluate_videos, open_extractors
from mutoscope.pipeline import peak_memory_bytes
from mutoscope.training.distributed import join

SOURCE_SEED, NUM_REAL = 5, 500
FIGURES = ("shapes_fvd", "shapes_fvd_real", "shapes_kvd", "motion", "flicker", "sharpness_drift")


def measure(count: int, threads: int, state: str | None, out: Path) -> None:
    """One process of a run; every process writes what memory it needed, the first one the figures."""
    torch.set_num_threads(threads)
    join("cpu")
    protocol = replace(video_protocol("shapes-10k"), num_clips=count, num_real=NUM_REAL)
    idle = idle_bytes(protocol)
    began = time.perf_counter()
    source = world_listing(count, seed=SOURCE_SEED)
    report = evaluate_videos(source, None, protocol, state=state, batch_size=16)
    found: dict[str, Any] = {"idle_bytes": idle, "peak_bytes": peak_memory_bytes("cpu")}
    if report:
        found |= {"seconds": time.perf_counter() - began}
        found |= {"figures": {name: report["metrics"][name]["value"] for name in FIGURES}}
    Path(f"{out}.{place()[0]}").write_text(json.dumps(found))


def idle_bytes(protocol: VideoProtocol) -> int:
    """Peak memory with the judge loaded and one batch read."""
    listing = world_listing(16, seed=SOURCE_SEED)
    clips = torch.stack([listing.read(w, 16, 1, None) for w in map(Window, listing.files)])
    open_extractors(protocol, WeightFiles(), "cpu", 16).read(clips)
    return peak_memory_bytes("cpu")


# ------------------------------------------------------------------------------------------------------------ runs


def start(count: int, processes: int, threads: int, out: Path, state: Path | None = None) -> subprocess.Popen[bytes]:
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [*launcher, __file__, str(out), "--child", str(count), "--threads", str(threads)]
    command += [] if state is None else ["--state", str(state)]
    return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": str(threads)})


def run(count: int, processes: int, threads: int, folder: Path, state: Path | None = None) -> dict[str, Any]:
    out = folder / f"{count}-{processes}"
    if start(count, processes, threads, out, state).wait():
        sys.exit(f"The run of {count} clips in {processes} processes failed.")
    found = [json.loads(Path(f"{out}.{rank}").read_text()) for rank in range(processes)]
    memory = {key: [part[key] for part in found] for key in ("idle_bytes", "peak_bytes")}
    print(f"{count} clips, {processes} processes: {found[0]['figures']}, {memory}", flush=True)
    return {"clips": count, "processes": processes, **memory, **{k: found[0][k] for k in ("seconds", "figures")}}


def killed_run(count: int, threads: int, folder: Path) -> dict[str, Any]:
    """A run that is killed after half of its parts and started again."""
    state = folder / "state"
    parts = -(-count // CHUNK) + 2 * -(-NUM_REAL // CHUNK)
    process = start(count, 1, threads, folder / "killed", state)
    while process.poll() is None and len(list(state.glob("*.safetensors"))) < parts // 2:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    status = process.wait()
    kept = len(list(state.glob("*.safetensors")))
    return {"status": status, "parts_kept": kept, "parts": parts} | run(count, 1, threads, folder, state)


def differences(runs: list[dict[str, Any]]) -> float:
    """Largest relative difference of any figure from that of the first run."""
    first = runs[0]["figures"]
    return max(abs(other["figures"][name] / first[name] - 1) for other in runs for name in first)


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
    report: dict[str, Any] = {"machine": platform.machine(), "threads": args.threads, "num_real": NUM_REAL}
    report["judge_sha256"] = Judge.bundled().sha256
    most = max(args.clips)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        report["memory"] = [run(count, 1, args.threads, folder) for count in sorted(args.clips)]
        several = [run(most, number, args.threads, folder) for number in args.processes if number > 1]
        report["processes"] = [report["memory"][-1], *several]
        report["killed"] = killed_run(most, args.threads, folder)
    report["largest_relative_difference_over_processes"] = differences(report["processes"])
    report["relative_difference_after_kill"] = differences([report["memory"][-1], report["killed"]])
    args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
