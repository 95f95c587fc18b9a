"""Feature networks with few channels, which read clips of real sizes in a fraction of the time."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from mutoscope.data.sources.shapes.world import ShapesConfig, ShapesWorld
from mutoscope.data.video.read import write_video
from mutoscope.evaluation.networks import i3d
from mutoscope.evaluation.networks.shapes_classifier import ShapesClassifier
from mutoscope.evaluation.networks.shapes_features import ShapesFeatures, ShapesFeaturesConfig

NARROW = i3d.I3DConfig(stem=(4, 4, 4), mixed=((4, 2, 4, 2, 4, 4),) * 9, num_classes=6)

TINY_SHA256 = "c" * 64


def tiny_classifier() -> ShapesClassifier:
    """A random network of six features per clip."""
    torch.manual_seed(0)
    config = ShapesFeaturesConfig(stem_channels=8, stage_channels=(8, 16, 16), embedding_size=6)
    return ShapesClassifier(ShapesFeatures(config).eval(), TINY_SHA256)


def save_narrow_i3d(path: Path, seed: int = 0) -> Path:
    """A weights file of a narrow I3D, drawn so that differences of clips reach its logits."""
    generator, state = torch.Generator().manual_seed(seed), i3d.I3D(NARROW).state_dict()
    for name, value in state.items():
        if name.endswith("conv3d.weight"):
            fan_in = value[0].numel()
            state[name] = torch.randn(value.shape, generator=generator) * (2 / fan_in) ** 0.5
        elif name.endswith("bn.bias"):
            state[name] = torch.full_like(value, 0.1)
    torch.save(state, path)
    return path


def use_narrow_i3d(patch: pytest.MonkeyPatch) -> None:
    """Files of a narrow I3D are what `load_i3d` expects."""
    patch.setattr(i3d, "I3DConfig", lambda: NARROW)


def write_videos(
    folder: Path, count: int, start: int = 0, names: Callable[[int], str] = str, num_frames: int = 16, noise: int = 0
) -> Path:
    """Clips of the shapes dataset as lossy videos; `noise`: grey levels added to each."""
    folder.mkdir(parents=True, exist_ok=True)
    world = ShapesWorld(ShapesConfig(num_frames=num_frames), seed=5)
    for i in range(start, start + count):
        frames = world.clip(i).frames.astype(int)
        frames = frames + np.random.default_rng(i).integers(-noise, noise + 1, frames.shape)
        path = folder / f"{names(i)}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, frames.clip(0, 255).astype(np.uint8), fps=8)
    return folder
