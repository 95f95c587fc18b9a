"""Compare a folder of generated videos with a folder of real ones.

    python examples/evaluate_two_folders.py generated_videos real_videos --i3d i3d_pretrained_400.pt

With I3D's weights this is FVD and KVD under the protocol `fvd` of `mutoscope evaluate`, which compare with published
figures of the same convention and count. Mutoscope ships no I3D weights. Without them, the program prints frame
statistics of both folders (brightness, contrast, saturation, sharpness, motion, flicker), and the Fréchet distance of
these six numbers per clip, each divided by its standard deviation over the real clips. That distance detects blur,
noise, wrong colours and frozen frames. It does not detect wrong content, and it compares with no published figure.

Without folders, two are written first: clips of moving shapes, and other such clips with noise.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mutoscope import ClipDataset, ShapesConfig, ShapesWorld, write_video
from mutoscope.cli import main as mutoscope
from mutoscope.evaluation.metrics.frechet import frechet_distance_between
from mutoscope.evaluation.metrics.temporal import flicker, frame_curves, motion

NOISE = 24  # standard deviation in grey levels of the noise in the folder of "generated" videos


def write_folders(folder: Path, count: int = 12) -> tuple[Path, Path]:
    """A folder of noisy clips and one of clean clips, for a first try without videos of your own."""
    shapes, rng = ShapesWorld(ShapesConfig(height=64, width=64, num_frames=16), seed=0), np.random.default_rng(0)
    folders = folder / "generated", folder / "real"
    for number in range(2 * count):
        frames, path = shapes.clip(number).frames, folders[number % 2] / f"{number:03d}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number % 2 == 0:
            noisy = frames + NOISE * rng.standard_normal(frames.shape)
            frames = noisy.clip(0, 255).astype(np.uint8)
        write_video(path, frames, fps=8)
    return folders


def statistics(folder: Path, num_frames: int, size: int) -> dict[str, Tensor]:
    """Statistics (n,) of the first frames of every video, in grey levels of 255."""
    clips = ClipDataset(folder, num_frames, size, size, windows=1)
    video = torch.stack([clips[i]["video"] for i in range(len(clips))])  # (n, t, h, w, 3)
    curves = {name: curve.mean(dim=1) for name, curve in frame_curves(video).items()}  # (n, t) -> (n,)
    return curves | {"motion": motion(video), "flicker": flicker(video)}


def compare(generated: Path, real: Path, num_frames: int, size: int) -> float:
    """Print the statistics of both folders; returns the Fréchet distance of the standardized statistics."""
    ours, theirs = (statistics(folder, num_frames, size) for folder in (generated, real))
    print(f"{'':12}{generated.name:>12}{real.name:>12}")
    for name in theirs:
        print(f"{name:12}{ours[name].mean():12.2f}{theirs[name].mean():12.2f}")
    scale = {name: values.std().clamp(min=1e-6) for name, values in theirs.items()}  # a constant statistic stays finite
    x, y = (torch.stack([side[name] / scale[name] for name in theirs], dim=1) for side in (ours, theirs))  # (n, 6)
    distance = frechet_distance_between(x, y)
    print(f"Fréchet distance of these statistics, {len(x)} and {len(y)} clips: {distance:.2f}")
    return distance


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="*", metavar="FOLDER", help="generated videos, real videos")
    parser.add_argument("--i3d", type=Path, help="file with I3D's Kinetics-400 weights, for FVD and KVD")
    parser.add_argument("--num-frames", type=int, default=16, help="frames of each video that count")
    parser.add_argument("--size", type=int, default=64, help="height and width of the clips for frame statistics")
    parser.add_argument("--out", type=Path, default=Path("outputs/compared"), help="where the videos are written")
    options = parser.parse_args()
    if len(options.folders) not in (0, 2):
        parser.error("name two folders, or none")
    generated, real = options.folders or write_folders(options.out)
    if options.i3d:
        command = ["evaluate", generated, "--protocol", "fvd", "--reference", real, "--i3d", options.i3d]
        return mutoscope([str(word) for word in command])
    compare(generated, real, options.num_frames, options.size)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
