"""Quality of a NOVA model of "shapes" with approximate decoding and in clips longer than in training.

    python benchmarks/nova_quality.py MODEL OUT.json [--num-clips 200] [--refresh 1 2 4] [--windows 3]

"refresh": protocol shapes-text, exact (1) and with every other value of `context_refresh`: shares of clips in which
the feature network recognises the caption's colour, shape and motion, beside real clips, with intervals, and processor
seconds per clip, decoding to pixels included. "drift": clips of --windows times the trained length from the captions of
real clips of that length: mean pixel, deviation, squared gradient and squared motion for every frame index (called
contrast, sharpness and movement in reports before November 2026), and the same shares in windows of the trained length,
beside the real clips.
"""

import argparse
import platform
import time
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch

from mutoscope.evaluation.engine import evaluate
from mutoscope.evaluation.metrics.rollouts import rollout_statistics
from mutoscope.evaluation.networks.shapes_classifier import ShapesClassifier
from mutoscope.evaluation.rows import chunk_ranges
from mutoscope.evaluation.sources.model_clips import ModelClips
from mutoscope.evaluation.sources.shapes_clips import real_clips, shapes_config_of
from mutoscope.pipeline import Generation, VideoPipeline
from timing import Report, write_report


class Timed:
    """A pipeline that sums the processor seconds of its calls."""

    def __init__(self, pipeline: VideoPipeline) -> None:
        self.pipeline, self.seconds = pipeline, 0.0

    def __getattr__(self, name: str) -> object:
        return getattr(self.pipeline, name)

    def generate(self, **options: object) -> Generation:
        begin = time.process_time()
        generation = self.pipeline.generate(**options)
        self.seconds += time.process_time() - begin
        return generation


def refresh_row(
    pipeline: VideoPipeline, refresh: int, arguments: argparse.Namespace
) -> tuple[Report, dict[str, float]]:
    """A row of the report, and the shares of its clips that show the caption's colour, shape and motion."""
    timed = Timed(pipeline)
    report = evaluate(
        cast(VideoPipeline, timed),
        "shapes-text",
        num_clips=arguments.num_clips,
        seed=arguments.seed,
        batch_size=arguments.batch_size,
        options={"context_refresh": refresh},
    )
    row: Report = {
        "context_refresh": refresh,
        "processor_seconds_per_clip": timed.seconds / arguments.num_clips,
        "metrics": report["metrics"],
        "protocol": report["protocol_details"],
    }
    names = ("color", "shape", "motion")
    return row, {name: report["metrics"][f"text_{name}_accuracy"]["value"] for name in names}


def drift_row(pipeline: VideoPipeline, refresh: int, arguments: argparse.Namespace) -> Report:
    """Statistics by frame of clips that are several times as long as in training."""
    config = shapes_config_of(pipeline.index)
    length = config.num_frames
    config = replace(config, num_frames=arguments.windows * length)
    real = real_clips(config, 0, arguments.num_clips)
    model, found = ModelClips(pipeline, arguments.seed, {"context_refresh": refresh}), []
    for number, part in enumerate(chunk_ranges(arguments.num_clips, arguments.batch_size)):
        prompts = list(real.captions[part.start : part.stop])
        found += model.generate(number, {"prompt": prompts, "num_frames": config.num_frames})
    clips = torch.stack(found)
    stride = max(length // 2, 1)
    return {
        "context_refresh": refresh,
        "trained_frames": length,
        "frames": config.num_frames,
        **rollout_statistics(ShapesClassifier.bundled(), clips, real, length, stride),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="bundled name or model folder")
    parser.add_argument("out", type=Path)
    parser.add_argument("--num-clips", type=int, default=200)
    parser.add_argument("--refresh", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--windows", type=int, default=3, help="times the trained length; 0 omits drift")
    parser.add_argument("--batch-size", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    pipeline = VideoPipeline.from_pretrained(arguments.model, dtype=getattr(torch, arguments.dtype))
    refresh_rows: list[Report] = []
    drift_rows: list[Report] = []
    report: Report = {
        "model": arguments.model,
        "machine": platform.machine(),
        "torch": torch.__version__,
        "threads": arguments.threads,
        "dtype": arguments.dtype,
        "num_clips": arguments.num_clips,
        "sampling": pipeline.index.sampling,
        "refresh": refresh_rows,
        "drift": drift_rows,
    }
    for refresh in arguments.refresh:
        row, shares = refresh_row(pipeline, refresh, arguments)
        refresh_rows.append(row)
        print(f"context_refresh {refresh}: {row['processor_seconds_per_clip']:.3f} s per clip, {shares}", flush=True)
    if arguments.windows:
        drift_rows.append(drift_row(pipeline, arguments.refresh[0], arguments))
    write_report(arguments.out, report)


if __name__ == "__main__":
    main()
