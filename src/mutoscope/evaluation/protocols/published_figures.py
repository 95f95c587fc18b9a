"""Figures of published protocols: distances, scores, similarity to real clips, and change over time."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mutoscope.evaluation.metrics.best_of import best_of
from mutoscope.evaluation.metrics.frechet import frechet_distance_between
from mutoscope.evaluation.metrics.fvd import repeated_frechet_figure
from mutoscope.evaluation.metrics.inception_score import inception_score
from mutoscope.evaluation.metrics.intervals import NORMAL_95, Figure, Figures, figure, mean_figure
from mutoscope.evaluation.metrics.kvd import kvd
from mutoscope.evaluation.metrics.temporal import drift
from mutoscope.evaluation.protocols.published import VideoProtocol
from mutoscope.evaluation.rows import Rows
from mutoscope.evaluation.sources.windows import Window

KVD_ROWS = 20_000  # per side; the kernel matrix grows with the square
CURVES = ("brightness", "contrast", "saturation", "sharpness")


@dataclass(frozen=True)
class Sampled:
    """How the generated side was sampled: `repeats` times `num_clips`; `partners`: the real clip of each."""

    protocol: VideoProtocol
    num_clips: int
    repeats: int
    seed: int
    partners: tuple[Window, ...] | None = None


def figures(sampled: Sampled, biased: bool, generated: Rows, real: Rows, again: Rows | None = None) -> Figures:
    """All figures that the rows allow. `biased`: covariance of FVD over n."""
    metrics = distance_figures(sampled, biased, generated, real, again)
    if "inception" in generated.tensors:
        first = generated["inception"][generated["index"] < sampled.num_clips]
        metrics["fid_one_frame_per_clip"] = repeated_frechet_figure([first], real["inception"], False, sampled.seed)
    if "c3d" in generated.tensors:
        splits = sampled.protocol.inception_splits or 1
        metrics["inception_score"] = score_figure(generated["c3d"], splits)
        metrics["inception_score_real"] = score_figure(real["c3d"], splits)
    return metrics | temporal_figures(generated, real, sampled.seed) | paired_figures(sampled, generated)


def distance_figures(sampled: Sampled, biased: bool, generated: Rows, real: Rows, again: Rows | None) -> Figures:
    """FVD and KVD, with the prefix `shapes_` if the classifier of the shapes dataset computed the features.

    Of several repeats FVD is the mean, and KVD that of the first. `again`: further real clips, for `..._real`.
    """
    key = "shapes" if "shapes" in generated.tensors else "i3d"
    prefix, biased = ("shapes_", False) if key == "shapes" else ("", biased)
    features, seed = real[key], sampled.seed
    repeat_of = generated["index"] // sampled.num_clips
    repeats = [generated[key][repeat_of == repeat] for repeat in range(sampled.repeats)]
    metrics = {f"{prefix}fvd": repeated_frechet_figure(repeats, features, biased, seed)}
    if sampled.repeats > 1:
        values = [frechet_distance_between(rows, features, biased) for rows in repeats]
        metrics[f"{prefix}fvd_deviation_over_repeats"] = figure(float(np.std(values, ddof=1)), np.nan, np.nan)
    metrics[f"{prefix}kvd"] = kvd_figure(repeats[0], features)
    if again is not None:
        metrics[f"{prefix}fvd_real"] = repeated_frechet_figure([again[key]], features, biased, seed)
        metrics[f"{prefix}kvd_real"] = kvd_figure(again[key], features)
    return metrics


def kvd_figure(x: Tensor, y: Tensor) -> Figure:
    return figure(kvd(x[:KVD_ROWS], y[:KVD_ROWS]), np.nan, np.nan)


def temporal_figures(generated: Rows, real: Rows, seed: int) -> Figures:
    """Motion, flicker and drift, each with that of the real clips."""
    metrics: Figures = {}
    for name in ("motion", "flicker"):
        metrics[name], metrics[f"{name}_real"] = (mean_figure(rows[name], seed) for rows in (generated, real))
    for name in CURVES:
        drifts = (drift(rows[f"{name}_by_frame"].double()) for rows in (generated, real))
        metrics[f"{name}_drift"], metrics[f"{name}_drift_real"] = (mean_figure(values, seed) for values in drifts)
    return metrics


def score_figure(logits: Tensor, splits: int) -> Figure:
    """Mean inception score of consecutive parts, with the normal interval of that mean."""
    parts = inception_score(logits, splits)
    if splits == 1:
        return figure(parts.item(), np.nan, np.nan)
    half = NORMAL_95 * parts.std().item() / splits**0.5
    return figure(parts.mean().item(), parts.mean().item() - half, parts.mean().item() + half)


def paired_figures(sampled: Sampled, generated: Rows) -> Figures:
    """Similarity to the real clips; with several samples of each real clip, also that of the best sample."""
    names = [name for name in generated.tensors if name.startswith(("psnr_m", "ssim_", "lpips_"))]
    metrics = {name: mean_figure(generated[name], sampled.seed) for name in names}
    samples = samples_of_videos(sampled, generated)
    if samples is not None and samples.shape[1] > 1:
        for name in names:
            best = best_of(generated[name][samples], "min" if name.startswith("lpips") else "max")
            metrics[f"{name}_best_of_{samples.shape[1]}"] = mean_figure(best, sampled.seed)
    return metrics


def samples_of_videos(sampled: Sampled, generated: Rows) -> Tensor | None:
    """Rows (videos, samples) of the samples of which the best counts; None if their number differs among videos.

    More samples than the protocol's are further repeats, and have rows of their own.
    """
    if sampled.partners is None:
        return None
    rows: dict[Window, list[int]] = {}
    for row, number in enumerate(generated["index"].tolist()):
        rows.setdefault(sampled.partners[number], []).append(row)
    if len(counts := {len(numbers) for numbers in rows.values()}) > 1:
        return None
    samples, wanted = torch.tensor(list(rows.values())), sampled.protocol.best_of
    if 1 < wanted < counts.pop():
        samples = torch.cat([part for part in samples.split(wanted, dim=1) if part.shape[1] == wanted])
    return samples


def curves(generated: Rows, real: Rows) -> dict[str, list[float | None]]:
    """Means over clips for every frame index, of generated and of real clips."""
    found = {f"{name}_by_frame": generated[f"{name}_by_frame"] for name in CURVES}
    found |= {f"{name}_by_frame_real": real[f"{name}_by_frame"] for name in CURVES}
    if "psnr_by_frame" in generated.tensors:
        found["psnr_by_frame_db"] = generated["psnr_by_frame"]
    means = {name: rows.double().mean(dim=0) for name, rows in found.items()}
    return {name: [v if np.isfinite(v) else None for v in values.tolist()] for name, values in means.items()}
