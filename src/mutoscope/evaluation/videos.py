"""Folders of videos made by anything against folders of real ones, under a named protocol.

Everything a figure depends on beside the two folders is in the protocol and the weight files, and both are part of the
report. Clips are read and forgotten chunk by chunk; see `rows.py` for processes and for continuing a killed evaluation.
"""

import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mutoscope.data.folder import clip_span
from mutoscope.errors import UserError
from mutoscope.evaluation.best_of import best_of
from mutoscope.evaluation.conventions import convention_named
from mutoscope.evaluation.extractors import Extractors, WeightFiles, lpips_of_clips
from mutoscope.evaluation.frechet import frechet_distance_between
from mutoscope.evaluation.fvd import repeated_frechet_figure
from mutoscope.evaluation.i3d import check_clip
from mutoscope.evaluation.inception_score import inception_score
from mutoscope.evaluation.kvd import kvd
from mutoscope.evaluation.pixel import psnr_of_clip, psnr_per_frame
from mutoscope.evaluation.protocol import Figure, checked_count, figure, mean_figure
from mutoscope.evaluation.protocols import VideoProtocol
from mutoscope.evaluation.rows import CHUNK, Rows, State, gather_rows, place
from mutoscope.evaluation.ssim import ssim_of_clip
from mutoscope.evaluation.temporal import drift, flicker, frame_curves, motion
from mutoscope.evaluation.windows import Listing, Window, list_videos, read_window, windows

KVD_ROWS = 20_000  # per side; the kernel matrix grows with the square
CURVES = ("brightness", "contrast", "saturation", "sharpness")
I3D_WANTED = (
    "needs I3D's Kinetics-400 weights, which are not shipped: --i3d FILE, such as i3d_pretrained_400.pt of VideoGPT "
    "and TATS."
)


@dataclass(frozen=True)
class Side:
    """The clips of one side, and what is done with them: for generated clips, the real one that each belongs to."""

    label: str
    clips: tuple[Window, ...]
    partners: tuple[Window, ...] | None = None


@dataclass(frozen=True)
class Job:
    """One evaluation, ready to be measured."""

    protocol: VideoProtocol
    extractors: Extractors
    repeats: int
    num_clips: int
    made: Side
    real: Side
    seed: int


def evaluate_videos(
    source: str | os.PathLike[str],
    reference: str | os.PathLike[str],
    protocol: VideoProtocol,
    files: WeightFiles,
    *,
    num_clips: int | None = None,
    convention: str | None = None,
    seed: int = 0,
    batch_size: int = 4,
    device: torch.device | str = "cpu",
    state: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Figures of the videos below `source` against those below `reference`, each {"value", "ci95"}.

    Of every generated video the first frames count. `num_clips` and `convention` depart from the protocol, which the
    report says. Videos named like a real one ("name.mp4", or "name-0.mp4" ... for several samples) are compared with
    it by PSNR, SSIM and LPIPS too. With `state`, a folder, finished parts are kept there and a killed evaluation
    continues to the same figures. Where processes joined a group (torchrun), they share the clips; only the first one
    gets a report.
    Raises UserError for folders, files or counts that do not allow the evaluation.
    """
    began = time.perf_counter()
    if files.i3d is None:
        raise UserError(f"Protocol {protocol.name!r} {I3D_WANTED}")
    check_clip(protocol.num_frames)
    warnings = departures(protocol, num_clips, convention)
    protocol = replace(protocol, convention=convention or protocol.convention)
    extractors = Extractors.load(files, convention_named(protocol.convention), device, batch_size)
    generated, real = (
        list_videos(f, protocol.num_frames, s) for f, s in ((source, 1), (reference, protocol.frame_stride))
    )
    job = plan(protocol, extractors, generated, real, num_clips, seed)
    store = State.open(state, settings(job))
    rows = {side.label: measured(job, side, store, progress) for side in (job.real, job.made)}
    if place()[0] > 0:
        return {}
    made, seen = rows["generated"], rows["real"]
    assert made is not None and seen is not None
    notes = (*generated.skipped, *real.skipped, *made.notes, *seen.notes)
    if notes:
        warnings.append(f"{len(notes)} videos or clips were left out; the first: {notes[0]}")
    return {
        "source": os.fspath(source),
        "protocol": protocol.name,
        "metrics": figures(job, made, seen),
        "num_clips": len(made),
        "seconds": round(time.perf_counter() - began, 3),
        "num_real": len(seen),
        "reference": os.fspath(reference),
        "published": {name: dict(numbers) for name, numbers in protocol.published.items()},
        "curves": curves(made, seen),
        "protocol_details": described(job, notes),
        "warnings": warnings,
    }


def described(job: Job, notes: Sequence[str]) -> dict[str, object]:
    """Everything the figures depend on beside the two folders."""
    return job.protocol.as_dict() | {
        "convention": job.extractors.convention.as_dict(),
        "weights_sha256": job.extractors.sha256,
        "seed": job.seed,
        "repeats_measured": job.repeats,
        "paired": job.made.partners is not None,
        "skipped": list(notes),
        "versions": {name: version(name) for name in ("torch", "numpy")},
    }


def departures(protocol: VideoProtocol, num_clips: int | None, convention: str | None) -> list[str]:
    """What makes a result another one than the protocol's."""
    found = []
    if num_clips is not None and num_clips != protocol.num_clips and protocol.num_clips is not None:
        found.append(f"{num_clips} clips instead of {protocol.num_clips:,}")
    if convention is not None and convention != protocol.convention:
        found.append(f"convention {convention!r} instead of {protocol.convention!r}")
    return [f"{'; '.join(found)}: the figures do not compare with the protocol's."] if found else []


# ------------------------------------------------------------------------------------------------------- planning


def plan(
    protocol: VideoProtocol,
    extractors: Extractors,
    generated: Listing,
    real: Listing,
    num_clips: int | None,
    seed: int,
) -> Job:
    """Which clips are measured. Raises UserError where a folder holds too few."""
    wanted = checked_count(num_clips or protocol.num_clips or len(generated.paths))
    if len(generated.paths) < wanted:
        raise UserError(
            f"{str(generated.folder)!r} holds {_count(generated, protocol)}, {wanted:,} are needed: add videos or ask "
            "for fewer with --num-clips (figures of different counts do not compare)."
        )
    repeats = 1 if num_clips else min(protocol.repeats, len(generated.paths) // wanted)
    samples = pairs(generated, real)
    # Sample 0 of every real video first, then sample 1: a repeat holds all videos.
    order = sorted(samples, key=lambda path: (samples[path][0], path)) if samples else list(generated.paths)
    made = tuple(Window(path) for path in order[: wanted * repeats])
    span = clip_span(protocol.num_frames, protocol.frame_stride)
    num_real = num_clips or protocol.num_real
    seen = windows(real, protocol.windows, span, num_real, seed)
    if len(seen) < (least := num_real or 2):
        raise UserError(
            f"{str(real.folder)!r} holds {_count(real, protocol)} and so {len(seen):,} real clips, {least:,} are "
            "needed: add videos or ask for fewer with --num-clips (figures of different counts do not compare)."
        )
    partners = tuple(samples[clip.path][1] for clip in made) if samples else None
    sides = Side("generated", made, partners), Side("real", tuple(seen))
    return Job(protocol, extractors, repeats, wanted, *sides, seed)


def _count(listing: Listing, protocol: VideoProtocol) -> str:
    short = f" ({len(listing.skipped)} left out; {listing.skipped[0]})" if listing.skipped else ""
    return f"{len(listing.paths):,} usable videos of {protocol.num_frames} frames{short}"


def pairs(generated: Listing, real: Listing) -> dict[Path, tuple[int, Window]] | None:
    """Number of the sample and first clip of the real video that each generated one is named after, if all are.

    "a/b" and "a/b-0" ... belong to the real video "a/b".
    """
    if generated.folder.resolve() == real.folder.resolve():
        return None
    known = {real.name(path): Window(path) for path in real.paths}
    found: dict[Path, tuple[int, Window]] = {}
    for path in generated.paths:
        name = generated.name(path)
        match = re.fullmatch(r"(.+)[-_/](\d+)", name)
        if name in known:
            found[path] = (0, known[name])
        elif match and match[1] in known:
            found[path] = (int(match[2]), known[match[1]])
        else:
            return None
    return found


def settings(job: Job) -> dict[str, object]:
    """What rows depend on: an evaluation may only be continued under the same."""
    clips = [
        [side.label, str(clip.path.resolve()), clip.path.stat().st_size, clip.start, clip.share]
        for side in (job.real, job.made)
        for clip in (*side.clips, *(side.partners or ()))
    ]
    return {
        "protocol": job.protocol.name,
        "convention": job.protocol.convention,
        "weights_sha256": job.extractors.sha256,
        "batch_size": job.extractors.batch_size,
        "chunk": CHUNK,
        "clips": clips,
    }


# ------------------------------------------------------------------------------------------------------ measuring


def measured(job: Job, side: Side, state: State, progress: bool) -> Rows | None:
    """Rows of one side, on the first process. Raises UserError where not two clips can be read."""
    rows = gather_rows(
        len(side.clips), lambda numbers: measure_chunk(job, side, numbers), side.label, state, CHUNK, progress
    )
    if rows is not None and len(rows) < 2:
        reason = f"; {rows.notes[0]}" if rows.notes else ""
        raise UserError(f"Only {len(rows)} {side.label} clips can be read, 2 are needed at least{reason}.")
    return rows


def measure_chunk(job: Job, side: Side, numbers: range) -> Rows:
    """Rows of some clips of one side; one that cannot be read is left out and noted."""
    clips: dict[int, tuple[Tensor, ...]] = {}
    notes = []
    for number in numbers:
        try:
            clips[number] = _read(job.protocol, side, number)
        except UserError as error:
            notes.append(f"{side.clips[number].path.name}: {error}")
    parts = []
    for group in _of_one_shape(clips):
        made, *partner = (torch.stack(column) for column in zip(*(clips[i] for i in group), strict=True))
        parts.append({"index": torch.tensor(group)} | _rows_of(job, group[0], made, *partner))
    names = parts[0] if parts else {}
    return Rows({name: torch.cat([part[name] for part in parts]) for name in names}, tuple(notes))


def _read(protocol: VideoProtocol, side: Side, number: int) -> tuple[Tensor, ...]:
    """A clip, and behind it the real clip it belongs to, if any."""
    stride = protocol.frame_stride if side.label == "real" else 1
    clip = read_window(side.clips[number], protocol.num_frames, stride, protocol.size)
    if side.partners is None:
        return (clip,)
    partner = side.partners[number]
    return clip, read_window(partner, protocol.num_frames, protocol.frame_stride, tuple(clip.shape[1:3]))


def _of_one_shape(clips: Mapping[int, tuple[Tensor, ...]]) -> list[list[int]]:
    """Numbers of consecutive clips that can be stacked."""
    groups: list[list[int]] = []
    for number, (clip, *_) in clips.items():
        if groups and clips[groups[-1][-1]][0].shape == clip.shape:
            groups[-1].append(number)
        else:
            groups.append([number])
    return groups


def _rows_of(job: Job, first: int, clips: Tensor, real: Tensor | None = None) -> dict[str, Tensor]:
    """Features and simple statistics of clips of one shape; with real clips of theirs, also how near they are.

    MAGVIT's averages are over all frames, MCVD's over those that were not given.
    """
    rows = job.extractors.read(clips, first)
    rows |= {f"{name}_by_frame": curve for name, curve in frame_curves(clips).items()}
    rows |= {"motion": motion(clips), "flicker": flicker(clips)}
    if real is None:
        return rows
    given = job.protocol.given_frames
    rows["psnr_by_frame"] = psnr_per_frame(real, clips)
    rows["psnr_magvit_db"] = rows["psnr_by_frame"].mean(dim=1)
    rows["psnr_mcvd_db"] = psnr_of_clip(real[:, given:], clips[:, given:])
    if min(clips.shape[2:4]) >= 11:
        rows["ssim_magvit"] = ssim_of_clip(real, clips, "magvit")
        rows["ssim_mcvd"] = ssim_of_clip(real[:, given:], clips[:, given:], "mcvd")
    if (metric := job.extractors.lpips) is not None:
        shown = 0 if metric.trunk == "vgg" else given
        rows[f"lpips_{metric.trunk}"] = lpips_of_clips(metric, real[:, shown:], clips[:, shown:])
    return rows


# -------------------------------------------------------------------------------------------------------- figures


def figures(job: Job, made: Rows, real: Rows) -> dict[str, Figure]:
    """All figures that the rows allow."""
    seed, biased = job.seed, job.extractors.convention.biased
    folds = [made["i3d"][made["index"] // job.num_clips == fold] for fold in range(job.repeats)]
    metrics = {"fvd": repeated_frechet_figure(folds, real["i3d"], biased, seed)}
    if job.repeats > 1:
        values = [frechet_distance_between(fold, real["i3d"], biased) for fold in folds]
        metrics["fvd_deviation_over_repeats"] = figure(float(np.std(values, ddof=1)), np.nan, np.nan)
    metrics["kvd"] = figure(kvd(folds[0][:KVD_ROWS], real["i3d"][:KVD_ROWS]), np.nan, np.nan)
    if "inception" in made.tensors:
        first = made["inception"][made["index"] < job.num_clips]
        metrics["fid_one_frame_per_clip"] = repeated_frechet_figure([first], real["inception"], False, seed)
    if "c3d" in made.tensors:
        splits = job.protocol.inception_splits or 1
        metrics["inception_score"] = score_figure(made["c3d"], splits)
        metrics["inception_score_real"] = score_figure(real["c3d"], splits)
    for name in ("motion", "flicker"):
        metrics[name], metrics[f"{name}_real"] = (mean_figure(rows[name], seed) for rows in (made, real))
    for name in CURVES:
        drifts = (drift(rows[f"{name}_by_frame"].double()) for rows in (made, real))
        metrics[f"{name}_drift"], metrics[f"{name}_drift_real"] = (mean_figure(values, seed) for values in drifts)
    return metrics | paired_figures(job, made)


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
    rows: dict[Path, list[int]] = {}
    for row, number in enumerate(made["index"].tolist()):
        rows.setdefault(job.made.partners[number].path, []).append(row)
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
