"""Quality of a NOVA model of "shapes" with approximate decoding and in clips longer than in training.

    python benchmarks/nova_quality.py MODEL OUT.json [--num-clips 200] [--refresh 1 2 4] [--windows 3]

"refresh": protocol shapes-text, exact (1) and with every other value of `context_refresh`: shares of clips in which
the feature network recognises the caption's colour, shape and motion, beside real clips, with intervals, and processor
seconds per clip, decoding to pixels included. "drift": clips of --windows times the trained length from the captions of
real clips of that length: mean pixel, contrast, sharpness and movement for every frame index, and the same shares in
windows of the trained length, beside the real clips.
"""

import argparse
import platform
import time
from dataclasses import replace
from pathlib import Path

import torch

from mutoscope.evaluation.engine import evaluate
from mutoscope.evaluation.metrics.rollouts import rollout_statistics
from mutoscope.evaluation.networks.shapes_classifier import ShapesClassifier
from mutoscope.evaluation.sources.model_clips import ModelClips
from mutoscope.evaluation.sources.shapes_clips import real_clips, shapes_config_of
from mutoscope.pipeline import Generation, OnStep, Request, VideoPipeline
from timing import Report, write_report


class TimedPipeline(VideoPipeline):
    """A pipeline that sums the processor seconds of its generations in `processor_seconds`."""

    processor_seconds = 0.0

    def run(self, request: Request, on_step: OnStep = lambda event: None) -> Generation:
        begin = time.process_time()
        generation = super().run(request, on_step)
        self.processor_seconds += time.process_time() - begin
        return generation


def refresh_row(
    pipeline: TimedPipeline, refresh: int, arguments: argparse.Namespace
) -> tuple[Report, dict[str, float | None]]:
    """A row of the report, and the shares of its clips that show the caption's colour, shape and motion."""
    pipeline.processor_seconds = 0.0
    report = evaluate(
        pipeline,
        "shapes-text",
        num_clips=arguments.num_clips,
        seed=arguments.seed,
        batch_size=arguments.batch_size,
        options={"context_refresh": refresh},
    )
    row: Report = {
        "context_refresh": refresh,
        "processor_seconds_per_clip": pipeline.processor_seconds / arguments.num_clips,
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
    source, size = ModelClips(pipeline, arguments.seed, {"context_refresh": refresh}), arguments.batch_size
    parts = [real.captions[start : start + size] for start in range(0, len(real.captions), size)]
    clips = [
        clip
        for number, prompts in enumerate(parts)
        for clip in source.generate(number, {"prompt": list(prompts), "num_frames": config.num_frames})
    ]
    stride = max(length // 2, 1)
    return {
        "context_refresh": refresh,
        "trained_frames": length,
        "frames": config.num_frames,
        **rollout_statistics(ShapesClassifier.bundled(), torch.stack(clips), real, length, stride),
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
    pipeline = TimedPipeline.from_pretrained(arguments.model, dtype=getattr(torch, arguments.dtype))
    assert isinstance(pipeline, TimedPipeline)  # `from_pretrained` builds its own class
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
