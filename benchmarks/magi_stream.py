"""How a MAGI model of the built-in world streams: cost of a frame, what fewer steps cost, and what becomes of shapes.

    python benchmarks/magi_stream.py MODEL OUT.json [--threads 2] [--num-clips 256] [--rollouts 100]

"flat": seconds per frame of a stream of 128 frames with a window of the trained length. "cache": seconds with and
without a cache, with all frames as history, beside the formula of counted passes. "steps": delay of the first frame and
sustained frames per second with decoding, and shapes-FVD of clips predicted from their first frame, for several numbers
of steps. "guided": frames per second with guidance, beside none. "told": shapes-FVD and movement of clips continued
from one frame, from one and the class, and from three. "actions": how far an agent ends from where its actions lead.
"rollout": 128 frames from one frame, and from one and the class, with the model's own sampling and other ways; the
share in which a detector that knows the palette still finds number and colours of the shapes, beside the same share in
real clips; how often the judge names the main shape and its motion rightly in the last frames; and how much they move,
beside real clips.

The report is written after every part; parts that OUT.json already holds of the same model are not measured again.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mutoscope.data.sources.shapes.world import COLORS, HELD_BACK_SEED, PALETTE, ShapesClip, ShapesConfig, ShapesWorld
from mutoscope.evaluation.metrics.frechet import frechet_distance_between
from mutoscope.evaluation.networks.shapes_detector import LARGEST_DISTANCE, shapes_agree
from mutoscope.evaluation.protocols.protocol import Judge, real_clips
from mutoscope.hub import weights_hash
from mutoscope.pipeline import VideoPipeline
from mutoscope.studies.claims_magi import seconds_by_length

LENGTH = 128
ROLLOUTS: tuple[tuple[bool, dict[str, Any]], ...] = (  # whether the class is told, options of the sampler
    (True, {}),
    (False, {"guidance_scale": 1.0}),
    (True, {"window_mode": "sliding"}),
)
GUIDANCE: dict[str, dict[str, Any]] = {
    "none": {"guidance_scale": 1.0},
    "history": {"guidance_scale": 1.5, "guidance_by": "history"},
    "class": {"guidance_scale": 2.0, "guidance_by": "conditions"},
}
STEPS = ((16, 25), (8, 25), (8, 10), (4, 10), (2, 5))  # sets per frame, diffusion steps per token


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


def guided(pipeline: VideoPipeline, clip: ShapesClip, repeats: int) -> dict[str, float]:
    """Frames per second with decoding of a stream from a frame and its class, the ways of guidance in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in GUIDANCE}
    for _ in range(repeats):
        for name, options in GUIDANCE.items():
            took = frame_seconds(pipeline, 48, context=clip.frames[:1], class_label=[clip.label], **options)
            seconds[name] += took[17:]
    return {name: 1 / statistics.median(values) for name, values in seconds.items()}


def told(pipeline: VideoPipeline, judge: Judge, count: int) -> list[dict[str, Any]]:
    """What the model does with less and more to go by."""
    index = pipeline.index
    real = real_clips(ShapesConfig(index.height, index.width, index.num_frames), 0, count)
    seen, rows = judge.read(real.video).features, []
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
                "shapes_fvd": frechet_distance_between(judge.read(clips).features, seen),
                "movement_over_real": movement(clips) / movement(real.video),
            }
        )
    return rows


def generated(pipeline: VideoPipeline, context: list[np.ndarray], **options: Any) -> torch.Tensor:
    """Clips (n, t, h, w, 3) in the default number of steps, 50 at a time."""
    clips = pipeline.generate(context=context, batch_size=50, **options).clips
    return torch.stack([torch.from_numpy(clip.frames) for clip in clips])


def movement(clips: torch.Tensor) -> float:
    """Mean squared difference of neighbouring frames."""
    return clips.float().diff(dim=1).square().mean().item()


def main_shape(judge: Judge, clips: torch.Tensor, found: list[ShapesClip]) -> dict[str, float]:
    """How often the judge names the main shape and its motion rightly."""
    logits = judge.read(clips).logits
    true = {name: torch.tensor([getattr(clip.objects[0], name) for clip in found]) for name in ("shape", "motion")}
    return {name: (logits[name].argmax(-1) == value).float().mean().item() for name, value in true.items()}


def rollout(
    pipeline: VideoPipeline, judge: Judge, count: int, with_class: bool, options: dict[str, Any]
) -> dict[str, Any]:
    """Detector's verdict at several frames; judge's verdict and movement over the trained length at the end."""
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
        "judged_at_the_end": main_shape(judge, clips[:, -n:], found),
        "judged_in_real": main_shape(judge, real[:, -n:], found),
        "share_of_real_at_the_end": rates["detected"][-1] / rates["detected_in_real"][-1],
        "movement_over_real_at_the_start": movement(clips[:, :n]) / movement(real[:, :n]),
        "movement_over_real_at_the_end": movement(clips[:, -n:]) / movement(real[:, -n:]),
    }


def agent_places(video: torch.Tensor, colors: torch.Tensor) -> torch.Tensor:
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


def actions(pipeline: VideoPipeline, count: int) -> dict[str, Any]:
    """How far the agent ends from where its actions lead: with them, with another clip's, and with none told."""
    index = pipeline.index
    config = ShapesConfig(index.height, index.width, index.num_frames, controllable=True)
    found = [ShapesWorld(config, HELD_BACK_SEED).clip(i) for i in range(count)]
    colors = torch.tensor([clip.objects[0].color for clip in found])
    context = [clip.frames[:1] for clip in found]
    real = torch.stack([torch.from_numpy(clip.frames) for clip in found])
    true = agent_places(real, colors)
    told = [clip.actions for clip in found]
    distances = {"staying_where_it_was": (agent_places(real[:, :1], colors) - true).norm(dim=1).mean().item()}
    for name, given in (("own_actions", told), ("another_clips", told[1:] + told[:1]), ("none_told", None)):
        options = {} if given is None else {"actions": given}
        made = pipeline.generate(context=context, guidance_scale=1.0, batch_size=64, **options).clips
        clips = torch.stack([torch.from_numpy(clip.frames) for clip in made])
        distances[name] = (agent_places(clips, colors) - true).norm(dim=1).mean().item()
    return {"num_clips": count, "distance_in_frame_widths": distances}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--num-clips", type=int, default=256)
    parser.add_argument("--rollouts", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--parts", nargs="*", help="only these")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    pipeline, judge = VideoPipeline.from_pretrained(arguments.model), Judge.bundled()
    clips = real_clips(
        ShapesConfig(pipeline.index.height, pipeline.index.width, pipeline.index.num_frames), 0, arguments.num_clips
    ).video
    world = ShapesWorld(ShapesConfig(clips.shape[2], clips.shape[3], 1), HELD_BACK_SEED)
    parts: dict[str, Callable[[], Any]] = {
        "flat": lambda: flat(pipeline, arguments.repeats),
        "cache": lambda: seconds_by_length(pipeline.model, (16, 64, LENGTH)),
        "steps": lambda: [steps_row(pipeline, *steps, judge, clips) for steps in STEPS],
        "guided": lambda: guided(pipeline, world.clip(0), arguments.repeats),
        "told": lambda: told(pipeline, judge, arguments.num_clips),
        "actions": lambda: actions(pipeline, 64),
        "rollout": lambda: [rollout(pipeline, judge, arguments.rollouts, *given) for given in ROLLOUTS],
    }
    weights = weights_hash(pipeline.model)
    report = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    if report.get("weights") != weights:
        machine = {"processor": platform.processor() or platform.machine(), "threads": arguments.threads}
        report = {"model": arguments.model, "weights": weights, "machine": machine}
    for name in arguments.parts or parts:
        if name not in report:
            report[name] = parts[name]()
            arguments.out.write_text(json.dumps(report, indent=2) + "\n")
            print(json.dumps({name: report[name]}, indent=2), flush=True)


if __name__ == "__main__":
    main()
