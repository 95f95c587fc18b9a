"""Bias of FVD and KVD: their values for two sets from one distribution, against the number of clips.

    python benchmarks/small_sample_bias.py OUT.json [--repeats 5] [--plot OUT.png] [--only-plot]

The sets come from one Gaussian of I3D's width (400 numbers, eigenvalues proportional to 1/k, trace 1), so the true
distance is zero. "equal": as many clips on either side; "large": 25,600 on the other one. Features of a real network
differ in scale and in how fast their eigenvalues fall, not in kind.
"""

import argparse
import json
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np
import torch
from torch import Tensor

from mutoscope.evaluation.metrics.frechet import FeatureStatistics, frechet_distance
from mutoscope.evaluation.metrics.fvd import statistics
from mutoscope.evaluation.metrics.kvd import kvd
from timing import write_report

WIDTH, LARGE = 400, 25_600
KVD_COUNT = 4096  # largest count of KVD: its kernel matrix has the square of this many entries
COUNTS = (32, 64, 128, 256, 512, 1024, 2048, 4096, 10_000)
MARKED = {256: "BAIR, real side", 2048: "StyleGAN-V", 10_000: "UCF-101, MAGVIT"}


class Moments(TypedDict):
    """Mean and standard deviation over repeats."""

    mean: float
    deviation: float


class Row(TypedDict):
    """Distances at one number of clips."""

    clips: int
    fvd_equal: Moments
    fvd_large: Moments
    kvd_equal: NotRequired[Moments]


class BiasReport(TypedDict):
    """The file this program writes."""

    width: int
    large: int
    repeats: int
    rows: list[Row]


def moments(values: list[float]) -> Moments:
    return {"mean": float(np.mean(values)), "deviation": float(np.std(values, ddof=1))}


def draw(count: int, seed: int) -> Tensor:
    """Rows (count, 400) of the Gaussian."""
    scales = (1 / torch.arange(1, WIDTH + 1, dtype=torch.float64)).sqrt()
    rows = torch.randn(count, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return rows * scales / scales.square().sum().sqrt()


def distances(count: int, others: list[FeatureStatistics]) -> Row:
    """Each distance at one number of clips; others: the large sides, one per repeat."""
    fvd_equal, fvd_large, kvd_equal = [], [], []
    for repeat, large in enumerate(others):
        x, y = draw(count, 2 * repeat), draw(count, 2 * repeat + 1)
        fvd_equal.append(frechet_distance(statistics(x), statistics(y)).value)
        fvd_large.append(frechet_distance(statistics(x), large).value)
        if count <= KVD_COUNT:
            kvd_equal.append(kvd(x, y))
    row: Row = {"clips": count, "fvd_equal": moments(fvd_equal), "fvd_large": moments(fvd_large)}
    if kvd_equal:
        row["kvd_equal"] = moments(kvd_equal)
    return row


def plot(report: BiasReport, path: Path) -> None:
    """Mean distances against the number of clips, with bars of two standard deviations."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.4))
    for name, label in (
        ("fvd_equal", "FVD, as many on either side"),
        ("fvd_large", f"FVD, {LARGE:,} on the other side"),
        ("kvd_equal", "KVD (unbiased), as many on either side"),
    ):
        rows = [row for row in report["rows"] if name in row]
        counts = [row["clips"] for row in rows]
        means, deviations = (np.array([row[name][key] for row in rows]) for key in ("mean", "deviation"))
        axes.errorbar(counts, means, 2 * deviations, marker="o", markersize=3, capsize=2, label=label)
    for count, name in MARKED.items():
        axes.axvline(count, color="0.8", linewidth=0.8, zorder=0)
        position = axes.get_xaxis_transform()
        axes.text(count, 0.02, name, rotation=90, va="bottom", ha="right", fontsize=6, color="0.4", transform=position)
    axes.set_xscale("log")
    axes.set_yscale("symlog", linthresh=0.01)
    axes.set_xlabel("clips")
    axes.set_ylabel("distance of equal distributions")
    axes.set_ylim(-0.02, 2)
    axes.legend(fontsize=7, loc="upper right")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--only-plot", action="store_true", help="draw OUT.json again")
    args = parser.parse_args()
    if not args.only_plot:
        report: BiasReport = {"width": WIDTH, "large": LARGE, "repeats": args.repeats, "rows": []}
        others = [statistics(draw(LARGE, 1000 + repeat)) for repeat in range(args.repeats)]
        for count in COUNTS:
            report["rows"].append(distances(count, others))
            print(report["rows"][-1], flush=True)
        write_report(args.out, report, indent=1)
    if args.plot:
        plot(json.loads(args.out.read_text()), args.plot)


if __name__ == "__main__":
    main()
