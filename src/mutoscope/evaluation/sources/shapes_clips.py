"""Held-out clips of the shapes dataset: rendered on demand, with everything that is true of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from mutoscope.data.media import covering_size, resized, stacked
from mutoscope.data.sources.folder import MediaFile
from mutoscope.data.sources.readers import Clip
from mutoscope.data.sources.shapes.world import (
    CLASS_NAMES,
    CLASSES,
    HELD_BACK_SEED,
    MOTIONS,
    SHAPES,
    ShapesConfig,
    ShapesWorld,
    shapes_batch,
)
from mutoscope.errors import UserError
from mutoscope.evaluation.sources.windows import ClipListing
from mutoscope.hub import ModelIndex


@dataclass(frozen=True)
class RealClips:
    """Clips of the dataset, the int64 attributes of each, and its caption."""

    video: UInt8[Tensor, "n t h w 3"]
    attributes: Mapping[str, Tensor]
    captions: tuple[str, ...] = ()


def real_clips(config: ShapesConfig, start: int, count: int, seed: int = HELD_BACK_SEED) -> RealClips:
    """Clips start ... start + count - 1 of the held-out seed."""
    batch = shapes_batch(ShapesWorld(config, seed), range(start, start + count))
    return RealClips(batch["video"], batch["attributes"], tuple(batch["caption"]))


def class_attributes(labels: Int[Tensor, "n"]) -> dict[str, Tensor]:
    """Class, shape and motion indices that class labels stand for."""
    pairs = [CLASSES[int(label)] for label in labels]
    return {
        "class": labels,
        "shape": torch.tensor([SHAPES.index(shape) for shape, _ in pairs]),
        "motion": torch.tensor([MOTIONS.index(motion) for _, motion in pairs]),
    }


def class_in_name(path: Path) -> int | None:
    """Class label that a file, or its folder, is named after; None for other names."""
    for name in (path.stem, path.parent.name):
        for label, class_name in enumerate(CLASS_NAMES):
            if name == class_name or name.startswith((f"{class_name}-", f"{class_name}_")):
                return label
    return None


def shapes_config_of(index: ModelIndex | None) -> ShapesConfig:
    """The dataset at the size a model was trained on; at its default size without an index.

    Raises UserError for a model of other data, or of shapes that are steered by actions.
    """
    if index is None:
        return ShapesConfig()
    if index.data.get("kind", "shapes") != "shapes" or index.data.get("controllable", False):
        raise UserError(
            "Protocol 'shapes' measures models of the shapes dataset (without actions); this one was trained on "
            f"{dict(index.data)}. Save its samples and compare them with real clips of that data."
        )
    most = index.data.get("max_objects")
    return ShapesConfig(
        height=index.height,
        width=index.width,
        num_frames=index.num_frames,
        max_objects=most if isinstance(most, int) else ShapesConfig.max_objects,
    )


def shapes_class_names(index: ModelIndex) -> tuple[str, ...]:
    """Classes of a model that the classifier knows; () for a model without classes.

    Raises UserError for a model with classes of other data.
    """
    names = index.class_names or ()
    if index.data.get("mixed", False):  # the classes of steered clips follow those of the classifier
        names = tuple(name for name in names if name in CLASS_NAMES)
    if unknown := set(names) - set(CLASS_NAMES):
        raise UserError(f"Protocol 'shapes' knows no class {min(unknown)!r}: this model was trained on other data.")
    return names


@dataclass(frozen=True)
class ShapesReader:
    """Clips of the dataset as entries of a listing, rendered when they are read; `part` of an entry is its number."""

    config: ShapesConfig = ShapesConfig()  # noqa: RUF009
    seed: int = HELD_BACK_SEED

    def num_frames(self, file: MediaFile) -> int:
        return self.config.num_frames

    def read(
        self, file: MediaFile, start: int, max_frames: int, stride: int, size: tuple[int, int] | None
    ) -> tuple[Clip, int]:
        frames = ShapesWorld(self.config, self.seed).clip(int(file.part)).frames[start::stride][:max_frames]
        if size is not None:
            frames = stacked([resized(frame, covering_size(frame.shape[:2], size)) for frame in frames], size)
        return frames, self.config.num_frames

    def fps(self, file: MediaFile) -> float | None:
        return self.config.fps

    def extras(self, file: MediaFile, frames: object) -> dict[str, np.ndarray]:
        return {}


def shapes_listing(count: int, start: int = 0, seed: int = HELD_BACK_SEED) -> ClipListing:
    """Clips start ... start + count - 1 of a seed. Their classes are unknown until they are rendered."""
    reader = ShapesReader(seed=seed)
    folder = Path(f"shapes-{seed}")
    files = tuple(MediaFile(folder, -1, part=str(number)) for number in range(start, start + count))
    classes = ShapesWorld(reader.config).class_names
    return ClipListing(folder, files, (reader.config.num_frames,) * count, classes=classes, reader=reader)
