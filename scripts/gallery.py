"""Contact sheets of what a bundled model can do: held-back clips of the built-in world above what it makes of them.

    python scripts/gallery.py magvit-shapes docs/images/magvit-shapes [--paste-given]

One picture per task: every real clip directly above the clip generated from what the task shows of it (or, for a class,
from its label), every second frame, the same four clips and the same seed in every picture.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mutoscope.data.sources.shapes.source import ShapesSource
from mutoscope.data.sources.shapes.world import HELD_BACK_SEED, ShapesConfig, ShapesWorld
from mutoscope.pipeline import VideoPipeline
from mutoscope.sampling.tasks import needs_video
from mutoscope.training.callbacks import paired_sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--scale", type=int, default=1, help="repeat every pixel")
    parser.add_argument("--paste-given", action="store_true", help="put the given pixels back over the result")
    options = parser.parse_args()
    pipeline = VideoPipeline.from_pretrained(options.model)
    index = pipeline.index
    world = ShapesWorld(ShapesConfig(index.height, index.width, index.num_frames), HELD_BACK_SEED)
    batch = ShapesSource(world)[list(range(options.clips))]
    options.out.mkdir(parents=True, exist_ok=True)
    for task in index.tasks:
        given = {"task_video": list(batch["video"].numpy())} if needs_video(task) else {}
        if task.startswith("class-conditional"):
            given["class_label"] = batch["label"].tolist()
        pasting = {"paste_given": True} if options.paste_given and needs_video(task) else {}
        clips = pipeline.generate(task=task, **given, **pasting).clips
        made = torch.from_numpy(np.stack([clip.frames for clip in clips]))
        sheet = paired_sheet(batch["video"], made, every_nth_frame=2)
        picture = np.kron(sheet, np.ones((options.scale, options.scale, 1), dtype=np.uint8))
        Image.fromarray(picture).save(options.out / f"{task}.png", optimize=True)
        print(options.out / f"{task}.png")


if __name__ == "__main__":
    main()
