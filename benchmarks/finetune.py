"""Fine-tuning to another look: held-back loss before, after some updates, and of training from scratch beside it.

    python benchmarks/finetune.py OUT.json [--models magi-shapes nova-shapes] [--steps 100 500] [--batch-size 4]

The clips are negatives of the synthetic dataset "shapes" (light grounds, complementary colours), written as short
videos into one folder per class with a caption beside each, as a user would have them: 23 classes, of which all names
are known to magi-shapes, and captions with the two new words "negative" and "of". Fine-tuning and training from scratch
read the same token cache, have the same batches and one thread; training from scratch has the learning rates of the
model's own recipe. The loss is that of training on held-back clips, averaged over the same draws for every row.
"""

import argparse
import platform
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch

from mutoscope.data.sources.shapes.source import ShapesData
from mutoscope.data.sources.shapes.world import HELD_BACK_SEED
from mutoscope.data.sources.tokens import TokenCache, TokensData
from mutoscope.data.video.write import write_video
from mutoscope.families import family_of
from mutoscope.layers.lora import LoRAConfig
from mutoscope.models.base import AnyModel
from mutoscope.runs.finetune import planned_finetuning, starting_recipe
from mutoscope.runs.train import open_cache, train
from mutoscope.training.callbacks import TrainEvent
from mutoscope.training.config import ModelRecipe, with_data
from mutoscope.training.distributed import join
from timing import Report, write_report

NUM_TRAINED, NUM_HELD_BACK = 384, 96  # clips
FPS = 8
DRAWS = 4  # of the loss for every held-back clip
EVALUATED = 32  # clips per pass


def write_negatives(folder: Path, seed: int, count: int) -> Path:
    """Short videos of the dataset in negative, one folder per class, with captions beside them."""
    data = ShapesData(num_frames=16, height=32, width=32, seed=seed)
    source, names = data.open(), data.class_names()
    for start in range(0, count, EVALUATED):
        batch = source[range(start, min(start + EVALUATED, count))]
        for i, clip in enumerate(batch["video"].numpy()):
            path = folder / names[int(batch["label"][i])] / f"{start + i:04}.webm"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_video(path, 255 - clip, FPS)
            path.with_suffix(".txt").write_text(f"negative of {batch['caption'][i]}")
    return folder
