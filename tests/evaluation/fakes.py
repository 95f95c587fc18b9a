"""Judges with few channels, which read real sizes in a fraction of the time."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mutoscope.data.shapes import ShapesConfig, ShapesWorld
from mutoscope.data.video_io import write_video
from mutoscope.evaluation import i3d

NARROW = i3d.I3DConfig(stem=(2, 2, 4), mixed=((2, 2, 2, 2, 2, 2),) * 9, num_classes=6)


def save_narrow_i3d(path: Path, seed: int = 0) -> Path:
    """A weights file of a narrow I3D."""
    torch.manual_seed(seed)
    torch.save(i3d.I3D(NARROW).state_dict(), path)
    return path


def use_narrow_i3d(patch: pytest.MonkeyPatch) -> None:
    """Files of a narrow I3D are what `load_i3d` expects."""
    patch.setattr(i3d, "I3DConfig", lambda: NARROW)


def write_videos(folder: Path, count: int, start: int = 0, names=str, num_frames: int = 16, noise: int = 0) -> Path:
    """Clips of the built-in world as lossy videos; `noise`: grey levels added to each."""
    folder.mkdir(parents=True, exist_ok=True)
    world = ShapesWorld(ShapesConfig(num_frames=num_frames), seed=5)
    for i in range(start, start + count):
        frames = world.clip(i).frames.astype(int)
        frames = frames + np.random.default_rng(i).integers(-noise, noise + 1, frames.shape)
        path = folder / f"{names(i)}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, frames.clip(0, 255).astype(np.uint8), fps=8)
    return folder
