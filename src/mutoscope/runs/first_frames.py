"""The first frames that a trained model folder keeps, see `families.first_frames`: some of each class.

They are of held-back clips, and of training clips for classes of which none was held back.
"""

import re
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
from jaxtyping import Int, UInt8
from torch import Tensor

from mutoscope.data.base import ClipBatch, ClipSource, DataConfig
from mutoscope.data.media import spread
from mutoscope.data.sources.tokens import TokenCache
from mutoscope.errors import UserError
from mutoscope.runs.validation import loop_split
from mutoscope.training.config import LoopConfig

PER_CLASS, WITHOUT_CLASSES = 4, 8
MAX_IMAGES = 64  # of a model with many classes: a folder stays small
LOOKED_AT = 256  # held-back clips at most
MAX_LETTERS = 40  # of a class name in a file name: a task may be a paragraph
FOLDER = "first_frames"

Images = dict[str, UInt8[np.ndarray, "h w 3"]]


def first_frames(data: DataConfig, cache: TokenCache, loop: LoopConfig) -> tuple[Images, Mapping[str, int]]:
    """Images by file name, and their classes. None of them without held-back clips, or where the videos are gone.

    data: what the cache was filled with; its row i is clip i of that source.
    """
    split = loop_split(cache, loop)
    if split is None or not data.needs_files:
        return {}, {}
    try:
        source = data.open().plain()
    except UserError:  # a cache outlives its videos
        return {}, {}
    classes = list(data.class_names())
    rows = split.indices[spread(len(split.indices), LOOKED_AT)]
    return chosen(source, [*rows.tolist(), *of_missing_classes(cache, rows, classes)], classes)


def of_missing_classes(cache: TokenCache, held_back: Int[np.ndarray, " n"], classes: Sequence[str]) -> list[int]:
    """Clips of training for classes that no held-back clip has: few recordings may hold none of a class back."""
    if not classes or cache.num_clips is None:
        return []
    found = set(cache[held_back.tolist()]["label"].tolist())
    rows = np.array(spread(cache.num_clips, LOOKED_AT))
    labels = cache[rows.tolist()]["label"].numpy()
    wanted = [rows[labels == label][:PER_CLASS] for label in range(len(classes)) if label not in found]
    return [int(row) for part in wanted for row in part]


def chosen(source: ClipSource[ClipBatch], rows: list[int], classes: list[str]) -> tuple[Images, Mapping[str, int]]:
    """The first frames of these clips until every class has its number."""
    per_class = max(1, min(PER_CLASS, MAX_IMAGES // len(classes))) if classes else WITHOUT_CLASSES
    stems = _stems(classes)
    images: Images = {}
    labels: dict[str, int] = {}
    for row in rows:
        batch = source[[row]]
        label = int(cast(Tensor, batch["label"])[0]) if classes else -1
        number = sum(found == label for found in labels.values())
        if number < per_class and len(images) < MAX_IMAGES:
            file = f"{FOLDER}/{stems[label] if label >= 0 else 'frame'}-{number}.png"
            images[file] = np.ascontiguousarray(np.asarray(batch["video"])[0, 0])
            labels[file] = label
    return images, labels


def _stems(names: Sequence[str]) -> list[str]:
    """Class names as parts of file names, which differ where their letters do not."""
    stems: list[str] = []
    for number, name in enumerate(names):
        stem = re.sub(r"[^\w.-]+", "-", name)[:MAX_LETTERS].strip("-.").lower() or "class"
        stems.append(f"{stem}.{number}" if stem in stems else stem)
    return stems
