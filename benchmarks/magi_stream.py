"""Streams of a MAGI model of "shapes": cost of a frame, quality with fewer steps, and persistence of the shapes.

    python benchmarks/magi_stream.py MODEL OUT.json [--threads 2] [--num-clips 256] [--rollouts 100]

Parts of the report:
  flat     seconds per frame of a stream of 128 frames with a window of the trained length
  cache    seconds with and without a cache, with all frames as history, and the ratio by counting passes
  steps    delay of the first frame, sustained frames per second with decoding, and shapes-FVD of clips predicted from
           their first frame, for several numbers of steps
  guided   frames per second with guidance and without
  `told`   shapes-FVD and movement of clips continued from one frame, from one frame and the class, from three frames
  actions  distance of an agent from where its actions lead
  rollout  128 frames from one frame, and from one frame and the class, with the model's default sampling and others:
           the share of rollouts with correct object count and colours by a detector that knows the palette, the
           accuracy of main shape and motion by the feature network in the last frames, and their movement; each beside
           real clips

The report is written after every part; parts of the same model that OUT.json contains are not measured again.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch

from mutoscope.data.sources.shapes.world import COLORS, HELD_BACK_SEED, PALETTE, ShapesClip, ShapesConfig, ShapesWorld
from mutoscope.evaluation.metrics.frechet import frechet_distance_between
from mutoscope.evaluation.metrics.temporal import mean_squared_motion
from mutoscope.evaluation.networks.shapes_classifier import ShapesClassifier
from mutoscope.evaluation.networks.shapes_detector import LARGEST_DISTANCE, shapes_agree
from mutoscope.evaluation.sources.shapes_clips import real_clips
from mutoscope.hub import weights_hash
from mutoscope.models.magi import MAGI
from mutoscope.pipeline import VideoPipeline
from mutoscope.studies.claims_magi import seconds_by_length
from timing import Report, write_report


class SamplerOptions(TypedDict, total=False):
    """The options of the sampler that this program varies."""

    guidance_scale: float
    guidance_by: str
    window_mode: str
    num_decoding_steps: int
    num_diffusion_steps: int


LENGTH = 128  # frames of a rollout, eight times the trained length
ROLLOUTS: tuple[tuple[bool, SamplerOptions], ...] = (  # whether the class is a condition, options of the sampler
    (True, {}),
    (False, {"guidance_scale": 1.0}),
    (True, {"window_mode": "sliding"}),
)
GUIDANCE: dict[str, SamplerOptions] = {
    "none": {"guidance_scale": 1.0},
    "history": {"guidance_scale": 1.5, "guidance_by": "history"},
    "class": {"guidance_scale": 2.0, "guidance_by": "conditions"},
}
STEPS = ((16, 25), (8, 25), (8, 10), (4, 10), (2, 5))  # sets per frame, diffusion steps per token


def frame_seconds(pipeline: VideoPipeline, count: int, **options: object) -> list[float]:
    """Seconds of each frame of a stream."""
    stream, seconds = pipeline.stream(num_frames=count, **options), []
    for _ in range(count):
        begin = time.perf_counter()
        next(stream)
        seconds.append(time.perf_counter() - begin)
    return seconds


def flat(pipeline: VideoPipeline, repeats: int) -> dict[str, float]:
    """Medians over repeats, then over 16 frames each: after the window is full, and at the end."""
    runs = [frame_seconds(pipeline, LENGTH, guidance_scale=1.0, seed=seed) for seed in range(repeats)]
    middle = np.median(np.array(runs), axis=0)
    early, late = float(np.median(middle[17:33])), float(np.median(middle[-16:]))
    return {"frames_18_to_33": early, "frames_113_to_128": late, "ratio": late / early}


def steps_row(
    pipeline: VideoPipeline, sets: int, steps: int, classifier: ShapesClassifier, clips: torch.Tensor
) -> Report:
    """Speed of one stream and quality of predictions in batches, with one number of steps."""
    options: SamplerOptions = {"num_decoding_steps": sets, "num_diffusion_steps": steps, "guidance_scale": 1.0}
    seconds = frame_seconds(pipeline, 48, context=clips[0, :1].numpy(), **options)
    predicted = [
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
        "shapes_fvd": frechet_distance_between(
            classifier.read(torch.stack(predicted)).features, classifier.read(clips).features
        ),
    }


def guided(pipeline: VideoPipeline, clip: ShapesClip, repeats: int) -> dict[str, float]:
    """Frames per second with decoding of a stream from a frame and its class; the kinds of guidance alternate."""
    seconds: dict[str, list[float]] = {name: [] for name in GUIDANCE}
    for _ in range(repeats):
        for name, options in GUIDANCE.items():
            took = frame_seconds(pipeline, 48, context=clip.frames[:1], class_label=[clip.label], **options)
            seconds[name] += took[17:]
    return {name: 1 / statistics.median(values) for name, values in seconds.items()}


def by_condition(pipeline: VideoPipeline, classifier: ShapesClassifier, count: int) -> list[Report]:
    """Quality of clips continued from fewer and more conditions."""
    index = pipeline.index
    real = real_clips(ShapesConfig(index.height, index.width, index.num_frames), 0, count)
    real_features = classifier.read(real.video).features
    rows: list[Report] = []
    for frames, with_class, guidance, by in (
        (1, False, 1.0, "conditions"),
        (1, True, 1.0, "conditions"),
        (1, True, 2.0, "conditions"),
        (1, True, 1.5, "history"),
        (3, False, 1.0, "conditions"),
    ):
        labels = {"class_label": real.attributes["class"].tolist()} if with_class else {}
        context = list(real.video[:, :frames].numpy())
        clips = generated(pipeline, context, guidance_scale=guidance, guidance_by=by, **labels)
        rows.append(
            {
                "given_frames": frames,
                "class": with_class,
                "guidance_scale": guidance,
                "guidance_by": by,
                "shapes_fvd": frechet_distance_between(classifier.read(clips).features, real_features),
                "movement_over_real": mean_squared_motion(clips) / mean_squared_motion(real.video),
            }
        )
    return rows


def generated(pipeline: VideoPipeline, context: list[np.ndarray], **options: object) -> torch.Tensor:
    """Clips (n, t, h, w, 3) in the default number of steps, 50 per batch."""
    clips = pipeline.run(pipeline.prepare(context=context, batch_size=50, **options)).clips
    return torch.stack([torch.from_numpy(clip.frames) for clip in clips])


def main_shape_accuracy(classifier: ShapesClassifier, clips: torch.Tensor, found: list[ShapesClip]) -> dict[str, float]:
    """Accuracy of the feature network for the main shape and its motion."""
    logits = classifier.read(clips).logits
    true = {name: torch.tensor([getattr(clip.objects[0], name) for clip in found]) for name in ("shape", "motion")}
    return {name: (logits[name].argmax(-1) == value).float().mean().item() for name, value in true.items()}


def rollout(
    pipeline: VideoPipeline, classifier: ShapesClassifier, count: int, with_class: bool, options: SamplerOptions
) -> Report:
    """Detected share at several frames; accuracy of the feature network and movement over the last frames."""
    index = pipeline.index
    world = ShapesWorld(ShapesConfig(index.height, index.width, LENGTH), HELD_BACK_SEED)
    found = [world.clip(i) for i in range(count)]
    colors = torch.zeros(count, len(COLORS), dtype=torch.bool)
    for row, clip in zip(colors, found, strict=True):
        row[[shape.color for shape in clip.objects]] = True
    real = torch.stack([torch.from_numpy(clip.frames) for clip in found])
    labels = {"class_label": [clip.label for clip in found]} if with_class else {}
    context = list(real[:, :1].numpy())
    clips = generated(pipeline, context, num_frames=LENGTH, **labels, **options)
    at, n = (15, 31, 63, 127), index.num_frames
    rates = {
        name: [shapes_agree(video[:, t], colors).float().mean().item() for t in at]
        for name, video in (("detected", clips), ("detected_in_real", real))
    }
    return {
        "num_rollouts": count,
        "class": with_class,
        "options": options,
        "frames": [t + 1 for t in at],
        **rates,
        "judged_at_the_end": main_shape_accuracy(classifier, clips[:, -n:], found),
        "judged_in_real": main_shape_accuracy(classifier, real[:, -n:], found),
        "share_of_real_at_the_end": rates["detected"][-1] / rates["detected_in_real"][-1],
        "movement_over_real_at_the_start": mean_squared_motion(clips[:, :n]) / mean_squared_motion(real[:, :n]),
        "movement_over_real_at_the_end": mean_squared_motion(clips[:, -n:]) / mean_squared_motion(real[:, -n:]),
    }


def agent_positions(video: torch.Tensor, colors: torch.Tensor) -> torch.Tensor:
    """Centre (x, y) in frame widths of the pixels nearest to each clip's colour, in its last frame."""
    pixels = video[:, -1].float() / 255  # (n, h, w, 3)
    palette = torch.from_numpy(PALETTE)
    near = torch.cdist(pixels.flatten(1, 2), palette.expand(len(pixels), -1, -1))  # (n, hw, colors)
    distance, nearest = near.min(-1)
    own = ((nearest == colors[:, None]) & (distance < LARGEST_DISTANCE)).float()
    h, w = video.shape[2:4]
    y, x = torch.meshgrid(torch.arange(h) / h, torch.arange(w) / w, indexing="ij")
    weight = own.sum(1).clamp(min=1)
    return torch.stack([(own * x.flatten()).sum(1) / weight, (own * y.flatten()).sum(1) / weight], dim=-1)


def actions(pipeline: VideoPipeline, count: int) -> Report:
    """Distance of the agent from where its actions lead: with them, with another clip's, and without actions."""
    index = pipeline.index
    config = ShapesConfig(index.height, index.width, index.num_frames, controllable=True)
    found = [ShapesWorld(config, HELD_BACK_SEED).clip(i) for i in range(count)]
    colors = torch.tensor([clip.objects[0].color for clip in found])
    context = [clip.frames[:1] for clip in found]
    real = torch.stack([torch.from_numpy(clip.frames) for clip in found])
    true = agent_positions(real, colors)
    own = [clip.actions for clip in found]
    distances = {"staying_where_it_was": (agent_positions(real[:, :1], colors) - true).norm(dim=1).mean().item()}
    for name, rows in (("own_actions", own), ("another_clips", own[1:] + own[:1]), ("none_told", None)):
        options = {} if rows is None else {"actions": rows, "num_frames": index.num_frames}
        call = pipeline.prepare(context=context, guidance_scale=1.0, batch_size=64, **options)
        clips = torch.stack([torch.from_numpy(clip.frames) for clip in pipeline.run(call).clips])
        distances[name] = (agent_positions(clips, colors) - true).norm(dim=1).mean().item()
    return {"num_clips": count, "distance_in_frame_widths": distances}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--num-clips", type=int, default=256)
    parser.add_argument("--rollouts", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--parts", nargs="*", help="measure only these parts")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    pipeline, classifier = VideoPipeline.from_pretrained(arguments.model), ShapesClassifier.bundled()
    model = pipeline.model
    if not isinstance(model, MAGI):
        parser.error(f"{arguments.model} is not a MAGI model")
    clips = real_clips(
        ShapesConfig(pipeline.index.height, pipeline.index.width, pipeline.index.num_frames), 0, arguments.num_clips
    ).video
    world = ShapesWorld(ShapesConfig(clips.shape[2], clips.shape[3], 1), HELD_BACK_SEED)
    parts: dict[str, Callable[[], object]] = {
        "flat": lambda: flat(pipeline, arguments.repeats),
        "cache": lambda: seconds_by_length(model, (16, 64, LENGTH)),
        "steps": lambda: [steps_row(pipeline, *steps, classifier, clips) for steps in STEPS],
        "guided": lambda: guided(pipeline, world.clip(0), arguments.repeats),
        "told": lambda: by_condition(pipeline, classifier, arguments.num_clips),
        "actions": lambda: actions(pipeline, 64),
        "rollout": lambda: [rollout(pipeline, classifier, arguments.rollouts, *case) for case in ROLLOUTS],
    }
    weights = weights_hash(model)
    report: Report = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    if report.get("weights") != weights:
        machine = {"processor": platform.processor() or platform.machine(), "threads": arguments.threads}
        report = {"model": arguments.model, "weights": weights, "machine": machine}
    for name in arguments.parts or parts:
        if name not in report:
            report[name] = parts[name]()
            write_report(arguments.out, report)
            print(json.dumps({name: report[name]}, indent=2), flush=True)


if __name__ == "__main__":
    main()
