"""Quality and speed of MAGI's heads by the number of diffusion steps: the bundled one, and one that reads lengths.

    mutoscope train magi-shapes-few-steps --out FOLDER
    python benchmarks/few_steps.py FOLDER OUT.json [--num-clips 96] [--sets 4]

Clips of "shapes" that no training has seen are predicted from their first frame, without guidance, by `magi-shapes` and
by the same network with the head of FOLDER. Columns: shapes-FVD of the clips (one seed; the interval is that of a
bootstrap over clips), and frames per second with decoding of one stream on one thread, where all rows take turns.
"""

import argparse
import platform
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch

from magi_stream import frame_seconds
from mutoscope.data.sources.shapes.world import ShapesConfig
from mutoscope.evaluation.metrics.frechet import frechet_distance_between
from mutoscope.evaluation.networks.shapes_classifier import ShapesClassifier
from mutoscope.evaluation.sources.shapes_clips import real_clips
from mutoscope.hub import weights_hash
from mutoscope.pipeline import VideoPipeline
from timing import Report, write_report

STEPS = {"bundled": (1, 2, 4, 10), "few steps": (1, 2, 4, 16)}
FREE = {"guidance_scale": 1.0}
RESAMPLES = 200


def predicted(pipeline: VideoPipeline, clips: torch.Tensor, options: dict[str, int]) -> torch.Tensor:
    """Clips continued from their first frames."""
    settings: dict[str, Any] = {**FREE, **options}
    found = pipeline.generate(context=list(clips[:, :1].numpy()), seed=0, batch_size=48, **settings).clips
    return torch.stack([torch.from_numpy(clip.frames) for clip in found])


def interval(made: torch.Tensor, real: torch.Tensor) -> list[float]:
    """2.5 and 97.5 % of the distance over resampled clips; its bias upwards is that of fewer distinct clips."""
    generator = torch.Generator().manual_seed(0)
    distances = []
    for _ in range(RESAMPLES):
        rows = torch.randint(len(made), (len(made),), generator=generator)
        distances.append(frechet_distance_between(made[rows], real[rows]))
    return [float(value) for value in np.quantile(distances, [0.025, 0.975])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a trained magi-shapes-few-steps")
    parser.add_argument("out", type=Path)
    parser.add_argument("--num-clips", type=int, default=96)
    parser.add_argument("--sets", type=int, default=4)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pipelines = {
        "bundled": VideoPipeline.from_pretrained("magi-shapes"),
        "few steps": VideoPipeline.from_pretrained(arguments.model),
    }
    classifier = ShapesClassifier.bundled()
    index = pipelines["bundled"].index
    real = real_clips(ShapesConfig(index.height, index.width, index.num_frames), 0, arguments.num_clips).video
    count = arguments.num_clips
    other = real_clips(ShapesConfig(index.height, index.width, index.num_frames), count, count).video
    features = classifier.read(real).features
    cells = [(name, steps) for name, listed in STEPS.items() for steps in listed]
    seconds: dict[tuple[str, int], list[float]] = {cell: [] for cell in cells}
    for _ in range(3):
        for name, steps in cells:
            options = {"num_decoding_steps": arguments.sets, "num_diffusion_steps": steps}
            seconds[name, steps] += frame_seconds(pipelines[name], 30, context=real[0, :1].numpy(), **FREE, **options)[
                17:
            ]
    rows: list[Report] = []
    for name, steps in cells:
        options = {"num_decoding_steps": arguments.sets, "num_diffusion_steps": steps}
        made = classifier.read(predicted(pipelines[name], real, options)).features
        rows.append(
            {
                "head": name,
                "num_diffusion_steps": steps,
                "shapes_fvd": frechet_distance_between(made, features),
                "interval": interval(made, features),
                "frames_per_second": 1 / statistics.median(seconds[name, steps]),
            }
        )
        print(rows[-1], flush=True)
    report: Report = {
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "num_clips": arguments.num_clips,
        "num_decoding_steps": arguments.sets,
        "weights": {name: weights_hash(pipeline.model or pipeline.tokenizer) for name, pipeline in pipelines.items()},
        "real_against_real": frechet_distance_between(classifier.read(other).features, features),
        "rows": rows,
    }
    write_report(arguments.out, report)


if __name__ == "__main__":
    main()
