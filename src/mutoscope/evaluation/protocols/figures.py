"""Figures of a measured evaluation: distances, scores, nearness to real clips, and what changes over time."""

import numpy as np
import torch
from torch import Tensor

from mutoscope.evaluation.jobs import Job
from mutoscope.evaluation.metrics.best_of import best_of
from mutoscope.evaluation.metrics.frechet import frechet_distance_between
from mutoscope.evaluation.metrics.fvd import repeated_frechet_figure
from mutoscope.evaluation.metrics.inception_score import inception_score
from mutoscope.evaluation.metrics.kvd import kvd
from mutoscope.evaluation.metrics.temporal import drift
from mutoscope.evaluation.protocols.protocol import Figure, figure, mean_figure
from mutoscope.evaluation.rows import Rows
from mutoscope.evaluation.sources.windows import Window

KVD_ROWS = 20_000  # per side; the kernel matrix grows with the square
CURVES = ("brightness", "contrast", "saturation", "sharpness")


def figures(job: Job, made: Rows, real: Rows, again: Rows | None = None) -> dict[str, Figure]:
    """All figures that the rows allow."""
    metrics = distance_figures(job, made, real, again)
    if "inception" in made.tensors:
        first = made["inception"][made["index"] < job.num_clips]
        metrics["fid_one_frame_per_clip"] = repeated_frechet_figure([first], real["inception"], False, job.seed)
    if "c3d" in made.tensors:
        splits = job.protocol.inception_splits or 1
        metrics["inception_score"] = score_figure(made["c3d"], splits)
        metrics["inception_score_real"] = score_figure(real["c3d"], splits)
    return metrics | temporal_figures(made, real, job.seed) | paired_figures(job, made)


def distance_figures(job: Job, made: Rows, real: Rows, again: Rows | None) -> dict[str, Figure]:
    """FVD and KVD, with `shapes` before their names where the built-in world's judge gave the features.

    Of several repeats FVD is the mean, and KVD that of the first. `again`: further real clips, for `..._real`.
    """
    key = "shapes" if "shapes" in made.tensors else "i3d"
    prefix, biased = ("shapes_", False) if key == "shapes" else ("", job.extractors.convention.biased)
    seen, seed = real[key], job.seed
    folds = [made[key][made["index"] // job.num_clips == fold] for fold in range(job.repeats)]
    metrics = {f"{prefix}fvd": repeated_frechet_figure(folds, seen, biased, seed)}
    if job.repeats > 1:
        values = [frechet_distance_between(fold, seen, biased) for fold in folds]
        metrics[f"{prefix}fvd_deviation_over_repeats"] = figure(float(np.std(values, ddof=1)), np.nan, np.nan)
    metrics[f"{prefix}kvd"] = kvd_figure(folds[0], seen)
    if again is not None:
        metrics[f"{prefix}fvd_real"] = repeated_frechet_figure([again[key]], seen, biased, seed)
        metrics[f"{prefix}kvd_real"] = kvd_figure(again[key], seen)
    return metrics


def kvd_figure(x: Tensor, y: Tensor) -> Figure:
    return figure(kvd(x[:KVD_ROWS], y[:KVD_ROWS]), np.nan, np.nan)


def temporal_figures(made: Rows, real: Rows, seed: int) -> dict[str, Figure]:
    """Motion, flicker and drift, each beside that of the real clips."""
    metrics: dict[str, Figure] = {}
    for name in ("motion", "flicker"):
        metrics[name], metrics[f"{name}_real"] = (mean_figure(rows[name], seed) for rows in (made, real))
    for name in CURVES:
        drifts = (drift(rows[f"{name}_by_frame"].double()) for rows in (made, real))
        metrics[f"{name}_drift"], metrics[f"{name}_drift_real"] = (mean_figure(values, seed) for values in drifts)
    return metrics


def score_figure(logits: Tensor, splits: int) -> Figure:
    """Mean inception score of consecutive parts, and where the mean of such parts lies."""
    parts = inception_score(logits, splits)
    if splits == 1:
        return figure(parts.item(), np.nan, np.nan)
    half = 1.96 * parts.std().item() / splits**0.5
    return figure(parts.mean().item(), parts.mean().item() - half, parts.mean().item() + half)


def paired_figures(job: Job, made: Rows) -> dict[str, Figure]:
    """Nearness to the real clips; with several samples of each, also of the best one."""
    names = [name for name in made.tensors if name.startswith(("psnr_m", "ssim_", "lpips_"))]
    metrics = {name: mean_figure(made[name], job.seed) for name in names}
    samples = sampled(job, made)
    if samples is not None and samples.shape[1] > 1:
        for name in names:
            best = best_of(made[name][samples], "min" if name.startswith("lpips") else "max")
            metrics[f"{name}_best_of_{samples.shape[1]}"] = mean_figure(best, job.seed)
    return metrics


def sampled(job: Job, made: Rows) -> Tensor | None:
    """Rows (videos, samples) of the samples among which the best counts; None where videos have different numbers.

    More samples than the protocol's are further repeats, and rows of their own here.
    """
    if job.made.partners is None:
        return None
    rows: dict[Window, list[int]] = {}
    for row, number in enumerate(made["index"].tolist()):
        rows.setdefault(job.made.partners[number], []).append(row)
    if len(counts := {len(numbers) for numbers in rows.values()}) > 1:
        return None
    samples, wanted = torch.tensor(list(rows.values())), job.protocol.best_of
    if 1 < wanted < counts.pop():
        samples = torch.cat([part for part in samples.split(wanted, dim=1) if part.shape[1] == wanted])
    return samples


def curves(made: Rows, real: Rows) -> dict[str, list[float | None]]:
    """Means over clips for every frame index, of generated and of real clips."""
    found = {f"{name}_by_frame": made[f"{name}_by_frame"] for name in CURVES}
    found |= {f"{name}_by_frame_real": real[f"{name}_by_frame"] for name in CURVES}
    if "psnr_by_frame" in made.tensors:
        found["psnr_by_frame_db"] = made["psnr_by_frame"]
    means = {name: rows.double().mean(dim=0) for name, rows in found.items()}
    return {name: [v if np.isfinite(v) else None for v in values.tolist()] for name, values in means.items()}
