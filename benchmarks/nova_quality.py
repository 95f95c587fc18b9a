"""What approximation and extrapolation cost a NOVA model of the built-in world.

    python benchmarks/nova_quality.py MODEL OUT.json [--num-clips 200] [--refresh 1 2 4] [--windows 3]

"refresh": protocol shapes-text, exact (1) and with every other value of `context_refresh`: shares of clips in which
the judge sees the caption's colour, shape and motion, beside real clips, with intervals, and seconds of the processor
per clip, the decoder into pixels included. "drift": clips of so many times the trained length from the captions of real
clips of that length: mean pixel, contrast, sharpness and movement for every frame index, and the same shares in windows
of the trained length, beside the real clips.
"""

import argparse
import json
import platform
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mutoscope.evaluation.evaluate import evaluate
from mutoscope.evaluation.metrics.drift import drift
from mutoscope.evaluation.protocols.protocol import Judge, real_clips
from mutoscope.evaluation.sources.clips import described_clips, world_of
from mutoscope.pipeline import VideoPipeline


class Timed:
    """A pipeline that adds up the seconds its calls take."""

    def __init__(self, pipeline: VideoPipeline) -> None:
        self.pipeline, self.seconds = pipeline, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pipeline, name)

    def __call__(self, **options: Any) -> Any:
        begin = time.process_time()
        clips = self.pipeline(**options)
        self.seconds += time.process_time() - begin
        return clips


def refresh_row(pipeline: VideoPipeline, refresh: int, arguments: argparse.Namespace) -> dict[str, Any]:
    timed = Timed(pipeline)
    report = evaluate(
        timed,
        "shapes-text",
        arguments.num_clips,
        arguments.seed,
        batch_size=arguments.batch_size,
        context_refresh=refresh,
    )
    return {
        "context_refresh": refresh,
        "processor_seconds_per_clip": timed.seconds / arguments.num_clips,
        "metrics": report["metrics"],
        "protocol": report["protocol_details"],
    }


def drift_row(pipeline: VideoPipeline, refresh: int, arguments: argparse.Namespace) -> dict[str, Any]:
    world = world_of(pipeline)
    length = world.num_frames
    world = replace(world, num_frames=arguments.windows * length)
    real = real_clips(world, 0, arguments.num_clips)
    options = {"num_frames": world.num_frames, "context_refresh": refresh}
    clips = described_clips(pipeline, real.captions, world, arguments.seed, options, arguments.batch_size)
    stride = max(length // 2, 1)
    return {
        "context_refresh": refresh,
        "trained_frames": length,
        "frames": world.num_frames,
        **drift(Judge.bundled(), clips, real, length, stride),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="bundled name or model folder")
    parser.add_argument("out", type=Path)
    parser.add_argument("--num-clips", type=int, default=200)
    parser.add_argument("--refresh", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--windows", type=int, default=3, help="times the trained length; 0 leaves drift out")
    parser.add_argument("--batch-size", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    pipeline = VideoPipeline.from_pretrained(arguments.model, dtype=getattr(torch, arguments.dtype))
    report: dict[str, Any] = {
        "model": arguments.model,
        "machine": platform.machine(),
        "torch": torch.__version__,
        "threads": arguments.threads,
        "dtype": arguments.dtype,
        "num_clips": arguments.num_clips,
        "sampling": pipeline.index.sampling,
        "refresh": [],
        "drift": [],
    }
    for refresh in arguments.refresh:
        row = refresh_row(pipeline, refresh, arguments)
        report["refresh"].append(row)
        shares = {name: row["metrics"][f"text_{name}_accuracy"]["value"] for name in ("color", "shape", "motion")}
        print(f"context_refresh {refresh}: {row['processor_seconds_per_clip']:.3f} s per clip, {shares}", flush=True)
    if arguments.windows:
        report["drift"].append(drift_row(pipeline, arguments.refresh[0], arguments))
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
