"""Contact sheets of a bundled model: held-out clips of "shapes", each above the clip generated from its condition.

    python scripts/gallery.py magvit-shapes docs/images/magvit-shapes [--paste-given]

One image per task: every real clip directly above the clip generated from the conditioning region of the task (or, for
a class, from its label), every second frame, the same four clips and the same seed in every image.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mutoscope.data.base import ClipBatch
from mutoscope.data.sources.shapes.world import HELD_BACK_SEED, ShapesConfig, ShapesWorld, shapes_batch
from mutoscope.pipeline import VideoPipeline
from mutoscope.sampling.tasks import needs_video
from mutoscope.training.callbacks import paired_sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--scale", type=int, default=1, help="repeat every pixel")
    parser.add_argument("--paste-given", action="store_true", help="copy the conditioning pixels over the result")
    options = parser.parse_args()
    pipeline = VideoPipeline.from_pretrained(options.model)
    index = pipeline.index
    shapes = ShapesWorld(ShapesConfig(index.height, index.width, index.num_frames), HELD_BACK_SEED)
    batch = shapes_batch(shapes, range(options.clips))
    options.out.mkdir(parents=True, exist_ok=True)
    for task in index.tasks:
        sheet = paired_sheet(batch["video"], generated(pipeline, task, batch, options.paste_given), every_nth_frame=2)
        image = np.kron(sheet, np.ones((options.scale, options.scale, 1), dtype=np.uint8))
        Image.fromarray(image).save(options.out / f"{task}.png", optimize=True)
        print(options.out / f"{task}.png")


def generated(pipeline: VideoPipeline, task: str, batch: ClipBatch, paste_given: bool) -> Tensor:
    """Clips (n, t, h, w, 3) that the model generates for one task from the conditions of a batch."""
    conditions: dict[str, object] = {}
    if needs_video(task):
        conditions["task_video"] = list(batch["video"].numpy())
        conditions["paste_given"] = paste_given
    if task.startswith("class-conditional"):
        conditions["class_label"] = batch["label"].tolist()
    clips = pipeline.run(pipeline.prepare(task=task, **conditions)).clips
    return torch.from_numpy(np.stack([clip.frames for clip in clips]))


if __name__ == "__main__":
    main()
