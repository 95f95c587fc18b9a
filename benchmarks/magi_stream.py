"""How a MAGI model of the built-in world streams: cost of a frame, what fewer steps cost, and what becomes of shapes.

    python benchmarks/magi_stream.py MODEL OUT.json [--threads 2] [--num-clips 256] [--rollouts 100]

"flat": seconds per frame of a stream of 128 frames with a window of the trained length. "cache": seconds with and
without a cache, with all frames as history, beside the formula of counted passes. "steps": delay of the first frame and
sustained frames per second with decoding, and shapes-FVD of clips predicted from their first frame, for several numbers
of steps. "rollout": clips of 128 frames from one frame; the share in which a detector that knows the palette still
finds number and colours of the shapes, beside the same share in real clips.
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mutoscope.benchmark.claims_magi import seconds_by_length
from mutoscope.data.shapes import COLORS, HELD_BACK_SEED, ShapesConfig, ShapesWorld
from mutoscope.evaluation.frechet import frechet_distance_between
from mutoscope.evaluation.protocol import Judge, real_clips
from mutoscope.evaluation.shapes_detector import shapes_agree
from mutoscope.pipeline import VideoPipeline

LENGTH = 128
STEPS = ((16, 25), (8, 25), (8, 10), (4, 10), (4, 5), (2, 5))  # sets per frame, diffusion steps per token


def frame_seconds(pipeline: VideoPipeline, count: int, **options: Any) -> list[float]:
    """Seconds that each frame of a stream took."""
    stream, seconds = pipeline.stream(num_frames=count, **options), []
    for _ in range(count):
        begin = time.perf_counter()
        next(stream)
        seconds.append(time.perf_counter() - begin)
    return seconds


def flat(pipeline: VideoPipeline, repeats: int) -> dict[str, Any]:
    """Medians over repeats, then over 16 frames each: once the window is full, and at the end."""
    runs = [frame_seconds(pipeline, LENGTH, guidance_scale=1.0, seed=seed) for seed in range(repeats)]
    middle = np.median(np.array(runs), axis=0)
    early, late = float(np.median(middle[17:33])), float(np.median(middle[-16:]))
    return {"frames_18_to_33": early, "frames_113_to_128": late, "ratio": late / early}


def steps_row(pipeline: VideoPipeline, sets: int, steps: int, judge: Judge, clips: torch.Tensor) -> dict[str, Any]:
    """Speed is that of one stream, quality that of predictions in batches."""
    options = {"num_decoding_steps": sets, "num_diffusion_steps": steps, "guidance_scale": 1.0}
    seconds = frame_seconds(pipeline, 48, context=clips[0, :1].numpy(), **options)
    made = [
        torch.from_numpy(clip.frames)
        for start in range(0, len(clips), 64)
        for clip in pipeline.generate(
            context=list(clips[start : start + 64, :1].numpy()), seed=start, batch_size=64, **options
        ).clips
    ]
    return {
        "num_decoding_steps": sets,
        "num_diffusion_steps": steps,
        "first_new_frame_seconds": seconds[0] + seconds[1],
        "frames_per_second_with_decoding": 1 / statistics.median(seconds[17:]),
        "shapes_fvd": frechet_distance_between(judge.read(torch.stack(made)).features, judge.read(clips).features),
    }


def rollout(pipeline: VideoPipeline, count: int) -> dict[str, Any]:
    """Detector's verdict at several frames."""
    index = pipeline.index
    world = ShapesWorld(ShapesConfig(index.height, index.width, LENGTH), HELD_BACK_SEED)
    found = [world.clip(i) for i in range(count)]
    colors = torch.zeros(count, len(COLORS), dtype=torch.bool)
    for row, clip in zip(colors, found, strict=True):
        row[[shape.color for shape in clip.objects]] = True
    real = torch.stack([torch.from_numpy(clip.frames) for clip in found])
    made = pipeline.generate(context=list(real[:, :1].numpy()), num_frames=LENGTH, guidance_scale=1.0, batch_size=50)
    clips = torch.stack([torch.from_numpy(clip.frames) for clip in made.clips])
    at = (15, 31, 63, 127)
    rates = {
        name: [shapes_agree(video[:, t], colors).float().mean().item() for t in at]
        for name, video in (("detected", clips), ("detected_in_real", real))
    }
    return {
        "num_rollouts": count,
        "frames": [t + 1 for t in at],
        **rates,
        "share_of_real_at_the_end": rates["detected"][-1] / rates["detected_in_real"][-1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--num-clips", type=int, default=256)
    parser.add_argument("--rollouts", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    pipeline, judge = VideoPipeline.from_pretrained(arguments.model), Judge.bundled()
    clips = real_clips(
        ShapesConfig(pipeline.index.height, pipeline.index.width, pipeline.index.num_frames), 0, arguments.num_clips
    ).video
    report = {
        "model": arguments.model,
        "machine": {"processor": platform.processor() or platform.machine(), "threads": arguments.threads},
        "flat": flat(pipeline, arguments.repeats),
        "cache": seconds_by_length(pipeline.model, (16, 64, LENGTH)),
        "steps": [steps_row(pipeline, *steps, judge, clips) for steps in STEPS],
        "rollout": rollout(pipeline, arguments.rollouts),
    }
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
