"""Sensitivity of the metrics: each distortion at rising strength, on "shapes" and on real clips.

    python benchmarks/metric_sanity.py OUT.json [--num-clips 512] [--videos FOLDER] [--i3d FILE] [--plot OUT.png]
    python benchmarks/metric_sanity.py OUT.json --plot OUT.png --only-plot

One half of the clips is distorted and compared with the other half (shapes-FVD; FVD where I3D's weights are given) and
with itself before the distortion (PSNR, SSIM). Motion and flicker need no reference. `rises` says whether a distance
grows from no distortion to the first strength and from each strength to the next; `falls` says whether PSNR, where it
is finite, and SSIM fall from each strength to the next.
There are too few real clips for a distance of their own. The feature network of "shapes", which was never trained on
such clips, is applied to them to show its limits.
"""

import argparse
import io
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor

from mutoscope.data.sources.shapes.world import ShapesConfig
from mutoscope.errors import UserError
from mutoscope.evaluation.metrics.conventions import CONVENTIONS
from mutoscope.evaluation.metrics.frechet import frechet_distance_between
from mutoscope.evaluation.metrics.kvd import kvd
from mutoscope.evaluation.metrics.pixel import psnr_of_clip, psnr_per_frame
from mutoscope.evaluation.metrics.ssim import ssim_of_clip
from mutoscope.evaluation.metrics.temporal import flicker, motion
from mutoscope.evaluation.networks.extractors import Extractors, WeightFiles
from mutoscope.evaluation.networks.shapes_classifier import ShapesClassifier
from mutoscope.evaluation.sources.shapes_clips import real_clips
from mutoscope.evaluation.sources.windows import WindowRule, list_videos, read_window, windows
from timing import write_report

NUM_FRAMES = 16
NOT_DRAWN = "faint noise"

Figures = dict[str, float | None]
"""Metrics of one set of clips; None where a PSNR is infinite."""


class Distorted(TypedDict):
    """Metrics of one distortion at every strength."""

    strengths: tuple[float, ...]
    rows: list[Figures]
    rises: dict[str, bool]
    falls: dict[str, bool]


Table = dict[str, Figures | Distorted]
"""Metrics by distortion, and under "undistorted" those of the clips as they are."""


def blur(clips: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """Gaussian blur of every frame, standard deviation in pixels."""
    radius = max(1, round(3 * sigma))
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    weights = (weights / weights.sum())[None, None]
    planes = rearrange(clips.float(), "n t h w c -> (n t c) 1 h w")
    planes = F.pad(planes, (radius,) * 4, mode="replicate")
    planes = F.conv2d(F.conv2d(planes, weights[:, :, None, :]), weights[..., None])
    n, t = clips.shape[:2]
    return to_uint8(rearrange(planes, "(n t c) 1 h w -> n t h w c", n=n, t=t))


def noise(clips: Tensor, levels: float, generator: torch.Generator) -> Tensor:
    """Gaussian noise, standard deviation in grey levels."""
    return to_uint8(clips.float() + levels * torch.randn(clips.shape, generator=generator))


def shuffle(clips: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """This share of the frames is permuted cyclically."""
    t = clips.shape[1]
    moved, result = max(2, round(share * t)), clips.clone()
    for i in range(len(clips)):
        positions = torch.randperm(t, generator=generator)[:moved]
        result[i, positions] = clips[i, positions.roll(1)]
    return result


def freeze(clips: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """The last frames, this share of the clip, repeat the frame before them."""
    last = clips.shape[1] - 1 - round(share * (clips.shape[1] - 1))
    result = clips.clone()
    result[:, last + 1 :] = clips[:, last : last + 1]
    return result


def compress(clips: Tensor, quality: float, generator: torch.Generator) -> Tensor:
    """JPEG of every frame, 4:2:0."""
    frames = []
    for frame in clips.flatten(0, 1).numpy():
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, "JPEG", quality=int(quality), subsampling=2)
        frames.append(np.asarray(Image.open(buffer)))
    return torch.from_numpy(np.stack(frames)).reshape(clips.shape)


Distortion = Callable[[Tensor, float, torch.Generator], Tensor]
DISTORTIONS: dict[str, tuple[Distortion, tuple[float, ...]]] = {  # strengths from weak to strong
    "blur": (blur, (0.5, 1.0, 2.0, 4.0)),
    NOT_DRAWN: (noise, (4.0, 12.0)),  # the feature network was trained to ignore up to 10 levels
    "noise": (noise, (32.0, 48.0, 64.0, 96.0)),
    "frame shuffle": (shuffle, (0.25, 0.5, 0.75, 1.0)),
    "freeze": (freeze, (0.25, 0.5, 0.75, 1.0)),
    "compression": (compress, (75, 40, 15, 5)),
}


def to_uint8(values: Tensor) -> Tensor:
    return values.round().clamp(0, 255).to(torch.uint8)


def pixel_figures(real: Tensor, distorted: Tensor) -> Figures:
    """Metrics that need no network."""
    found = {
        "psnr_mcvd_db": psnr_of_clip(real, distorted).mean().item(),
        "psnr_magvit_db": psnr_per_frame(real, distorted).mean().item(),
        "ssim_magvit": ssim_of_clip(real, distorted, "magvit").mean().item(),
        "ssim_mcvd": ssim_of_clip(real, distorted, "mcvd").mean().item(),
        "motion": motion(distorted).mean().item(),
        "flicker": flicker(distorted).mean().item(),
    }
    return {name: value if np.isfinite(value) else None for name, value in found.items()}


def table(clips: Tensor, readers: dict[str, Callable[[Tensor], Tensor]], seed: int) -> Table:
    """Metrics for every distortion and strength, and those of the clips as they are."""
    half = len(clips) // 2
    first, second = clips[:half], clips[half : 2 * half]
    references = {name: read(second) for name, read in readers.items()}

    def row(distorted: Tensor) -> Figures:
        distances: Figures = {}
        for name, read in readers.items():
            features = read(distorted)
            distances[name] = frechet_distance_between(features, references[name])
            distances[name.replace("fvd", "kvd")] = kvd(features, references[name])  # no bias from the number of clips
        return distances | pixel_figures(first, distorted)

    undistorted = row(first)
    rows: Table = {"undistorted": undistorted}
    for name, (distort, strengths) in DISTORTIONS.items():
        results = [row(distort(first, strength, torch.Generator().manual_seed(seed))) for strength in strengths]
        distances = [key for key in results[0] if key.endswith(("fvd", "kvd"))]
        rises = {key: _monotone([undistorted, *results], key, 1) for key in distances}
        finite = [key for key in results[0] if all(result[key] is not None for result in results)]
        falls = {key: _monotone(results, key, -1) for key in finite if key.startswith(("psnr", "ssim"))}
        rows[name] = {"strengths": strengths, "rows": results, "rises": rises, "falls": falls}
        print(name, *(f"{key} {[round(result[key] or 0.0, 2) for result in results]}" for key in distances), flush=True)
    return rows


def _monotone(rows: list[Figures], key: str, sign: int) -> bool:
    """Whether a metric rises (sign 1) or falls (sign -1) from row to row; one that is infinite does neither."""
    values = [row[key] for row in rows]
    return all(a is not None and b is not None and sign * (b - a) > 0 for a, b in itertools.pairwise(values))


def real_video_clips(folder: Path, side: int = 64) -> Tensor:
    """Six windows of every video that is long enough, at side × side pixels; each half has clips of all videos."""
    chosen = windows(list_videos(folder, NUM_FRAMES), WindowRule("uniform", count=6), NUM_FRAMES)
    chosen = [*chosen[0::2], *chosen[1::2]]
    clips = []
    for window in chosen:
        try:
            clips.append(read_window(window, NUM_FRAMES, 1, (side, side)))
        except UserError as error:
            print(f"omitted: {window.file.path.name}: {error}")
    return torch.stack(clips)


def draw(report: dict[str, dict], path: Path) -> None:
    """Distances and PSNR against strength, a row of panels for each kind of clips; dotted: without distortion."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    datasets = [name for name in ("shapes", "videos") if name in report]
    shown = [name for name in DISTORTIONS if name != NOT_DRAWN]
    figure, axes = plt.subplots(len(datasets), len(shown), figsize=(3 * len(shown), 2.6 * len(datasets)))
    for line, dataset in zip(np.atleast_2d(axes), datasets, strict=True):
        rows = report[dataset]
        key = next((name for name in ("fvd", "shapes_fvd") if name in rows["undistorted"]), "ssim_magvit")
        for panel, name in zip(line, shown, strict=True):
            steps = range(len(rows[name]["strengths"]))
            panel.plot(steps, [row[key] for row in rows[name]["rows"]], "o-", color="tab:red")
            panel.axhline(rows["undistorted"][key], color="tab:red", linestyle=":", linewidth=1)
            panel.set_xticks(list(steps), [f"{s:g}" for s in rows[name]["strengths"]])
            panel.set_title(f"{dataset}: {name}", fontsize=9)
            panel.set_ylabel(key, color="tab:red", fontsize=8)
            other = panel.twinx()
            other.plot(steps, [row["psnr_mcvd_db"] for row in rows[name]["rows"]], "s--", color="tab:blue")
            other.set_ylabel("PSNR, dB", color="tab:blue", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--num-clips", type=int, default=512, help="clips of shapes, both halves together")
    parser.add_argument("--videos", type=Path, help="folder of real videos")
    parser.add_argument("--i3d", help="I3D's weights, for FVD")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--only-plot", action="store_true", help="draw OUT.json again")
    args = parser.parse_args()
    if not args.only_plot:
        classifier = ShapesClassifier.bundled()
        readers: dict[str, Callable[[Tensor], Tensor]] = {}
        if args.i3d:
            extractors = Extractors.load(WeightFiles(i3d=args.i3d), CONVENTIONS["tats"])
            readers["fvd"] = lambda clips: extractors.read(clips)["i3d"]
        report: dict[str, object] = {"seed": args.seed, "judge_sha256": classifier.sha256, "num_clips": args.num_clips}
        clips = real_clips(ShapesConfig(), 0, args.num_clips).video
        shapes_readers = {"shapes_fvd": lambda some: classifier.read(some).features} | readers
        report["shapes"] = table(clips, shapes_readers, args.seed)
        if args.videos:
            videos = real_video_clips(args.videos)
            report["num_video_clips"] = len(videos)
            report["videos"] = table(videos, shapes_readers, args.seed)
        write_report(args.out, report, indent=1)
    if args.plot:
        draw(json.loads(args.out.read_text()), args.plot)


if __name__ == "__main__":
    main()
