"""Videos of a folder, or of a model, against real ones, under a named protocol.

Everything a figure depends on beside the two sides is in the protocol and the weight files, and both are part of the
report. Clips are read and forgotten batch by batch; see `rows.py` for processes and for continuing a killed evaluation.
"""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mutoscope.errors import UserError
from mutoscope.evaluation.jobs import Job, Side, plan, settings
from mutoscope.evaluation.metrics.conventions import convention_named
from mutoscope.evaluation.metrics.pixel import psnr_of_clip, psnr_per_frame
from mutoscope.evaluation.metrics.ssim import ssim_of_clip
from mutoscope.evaluation.metrics.temporal import flicker, frame_curves, motion
from mutoscope.evaluation.networks.extractors import Extractors, WeightFiles, lpips_of_clips
from mutoscope.evaluation.networks.i3d import check_clip
from mutoscope.evaluation.protocols.figures import curves, figures
from mutoscope.evaluation.protocols.published import SHAPES, SHAPES_EXTRACTOR, VideoProtocol
from mutoscope.evaluation.rows import CHUNK, Rows, State, gather_rows, place
from mutoscope.evaluation.sources.clips import PREDICTION_TASKS, open_source
from mutoscope.evaluation.sources.references import open_reference, wanted_folder
from mutoscope.evaluation.sources.samples import Samples
from mutoscope.evaluation.sources.windows import Listing, list_samples

I3D_WANTED = (
    "needs I3D's Kinetics-400 weights, which are not shipped: --i3d FILE, such as i3d_pretrained_400.pt of VideoGPT "
    "and TATS."
)


def evaluate_videos(
    source: str | os.PathLike[str] | Any,
    reference: str | os.PathLike[str] | None,
    protocol: VideoProtocol,
    files: WeightFiles | None = None,
    *,
    num_clips: int | None = None,
    convention: str | None = None,
    split: str | None = None,
    task: str | None = None,
    paste_given: bool = False,
    seed: int = 0,
    batch_size: int = 4,
    device: torch.device | str = "cpu",
    state: str | os.PathLike[str] | None = None,
    progress: bool = False,
    options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Figures of `source` against the real videos of `reference`, each {"value", "ci95"}.

    `source` is a folder of videos (or a listing of clips), of which the first frames count, or a model: a bundled
    name, a folder with model_index.json or a loaded pipeline. A model makes the protocol's clips, asked for by the
    classes, frames or videos of the real ones; `task` says which of its tasks where a protocol has several, `options`
    go to its sampler, and `paste_given` puts what is given over the result. `reference` is a data set in its own
    layout or a folder of videos; `split` names another split than the protocol's.
    `num_clips`, `convention` and `split` depart from the protocol, which the report says. Clips that belong to a real
    one ("name.mp4", or "name-0.mp4" ... for several samples; or made from one) are compared with it by PSNR, SSIM and
    LPIPS too. With `state`, a folder, finished parts are kept there and a killed evaluation continues to the same
    figures. Where processes joined a group (torchrun), they share the clips; only the first one gets a report.
    Raises UserError for sources, files or counts that do not allow the evaluation.
    """
    began = time.perf_counter()
    departed = departures(protocol, num_clips, convention, split)
    protocol = replace(protocol, convention=convention or protocol.convention)
    if protocol.dataset != SHAPES:
        wanted_folder(protocol, reference)  # before anything is loaded
    extractors = open_extractors(protocol, files or WeightFiles(), device, batch_size)
    generated = open_generated(source, protocol, task, seed, options or {}, paste_given, device)
    if isinstance(generated, Samples):
        departed += generated.departures()
        protocol = generated.protocol
    real = open_reference(protocol, reference, split, num_clips)
    job = plan(protocol, extractors, generated, real, num_clips, seed)
    store = State.open(state, settings(job))
    rows = {side.label: measured(job, side, store, progress) for side in job.sides}
    if place()[0] > 0:
        return {}
    made, seen = rows["generated"], rows["real"]
    assert made is not None and seen is not None
    skipped = generated.skipped if isinstance(generated, Listing) else ()
    notes = (*skipped, *real.skipped, *made.notes, *seen.notes)
    warnings = [f"{'; '.join(departed)}: the figures do not compare with the protocol's."] if departed else []
    if notes:
        warnings.append(f"{len(notes)} videos or clips were left out; the first: {notes[0]}")
    return {
        "source": os.fspath(source) if isinstance(source, str | os.PathLike) else type(source).__name__,
        "protocol": protocol.name,
        "metrics": figures(job, made, seen, rows.get("again")),
        "num_clips": len(made),
        "seconds": round(time.perf_counter() - began, 3),
        "num_real": len(seen),
        "reference": None if reference is None else os.fspath(reference),
        "published": {name: dict(numbers) for name, numbers in protocol.published.items()},
        "curves": curves(made, seen),
        "protocol_details": described(job, notes),
        "warnings": warnings,
    }


def open_extractors(
    protocol: VideoProtocol, files: WeightFiles, device: torch.device | str, batch_size: int
) -> Extractors:
    """The networks a protocol reads clips with. Raises UserError where it lacks the one that its distance needs."""
    convention = convention_named(protocol.convention)
    if protocol.extractor == SHAPES_EXTRACTOR:
        if files != WeightFiles():
            raise UserError(f"Protocol {protocol.name!r} has its own judge: leave the weight files out.")
        return Extractors.of_the_world(convention, device, batch_size)
    if files.i3d is None:
        raise UserError(f"Protocol {protocol.name!r} {I3D_WANTED}")
    check_clip(protocol.num_frames)
    return Extractors.load(files, convention, device, batch_size)


def open_generated(
    source: Any,
    protocol: VideoProtocol,
    task: str | None,
    seed: int,
    options: Mapping[str, Any],
    paste_given: bool,
    device: torch.device | str,
) -> Listing | Samples:
    """A folder's videos, or a model with what it is asked to do."""
    if isinstance(source, Listing):
        return source
    opened = open_source(source, device)
    if not isinstance(opened, Path):
        samples = Samples.of(opened, protocol, task, seed, options, paste_given)
        if samples.task in PREDICTION_TASKS:  # which leaves these frames out of MCVD's averages
            samples = replace(samples, protocol=replace(protocol, given_frames=samples.given_frames))
        return samples
    given = {"--task": task, "--paste-given": paste_given or None, **options}
    if unused := [name for name, value in given.items() if value is not None]:
        raise UserError(f"{str(source)!r} is a folder of videos; {unused[0]} is for models that make them.")
    return list_samples(opened, protocol.num_frames)


def described(job: Job, notes: Sequence[str]) -> dict[str, object]:
    """Everything the figures depend on beside the two sides."""
    samples, judged = job.made.samples, job.protocol.extractor == SHAPES_EXTRACTOR
    return job.protocol.as_dict() | {
        "convention": None if judged else job.extractors.convention.as_dict(),
        "weights_sha256": job.extractors.sha256,
        "seed": job.seed,
        "batch_size": job.extractors.batch_size,
        "repeats_measured": job.repeats,
        "paired": job.made.partners is not None,
        "generated": None if samples is None else samples.described(),
        "notes": [*job.protocol.notes, *job.notes],
        "skipped": list(notes),
        "versions": {name: version(name) for name in ("torch", "numpy")},
    }


def departures(
    protocol: VideoProtocol, num_clips: int | None, convention: str | None, split: str | None = None
) -> list[str]:
    """What makes a result another one than the protocol's."""
    found = []
    if num_clips is not None and num_clips != protocol.num_clips and protocol.num_clips is not None:
        found.append(f"{num_clips} clips instead of {protocol.num_clips:,}")
    if convention is not None and convention != protocol.convention:
        found.append(f"convention {convention!r} instead of {protocol.convention!r}")
    if split is not None and protocol.splits and (split,) != protocol.splits:
        found.append(f"split {split!r} instead of {' and '.join(protocol.splits)}")
    return found


# ------------------------------------------------------------------------------------------------------ measuring


def measured(job: Job, side: Side, state: State, progress: bool) -> Rows | None:
    """Rows of one side, on the first process. Raises UserError where not two clips can be read."""
    rows = gather_rows(
        side.count, lambda numbers: measure_chunk(job, side, numbers), side.label, state, CHUNK, progress
    )
    if rows is not None and len(rows) < 2:
        reason = f"; {rows.notes[0]}" if rows.notes else ""
        raise UserError(f"Only {len(rows)} {side.label} clips can be read, 2 are needed at least{reason}.")
    return rows


def measure_chunk(job: Job, side: Side, numbers: range) -> Rows:
    """Rows of some clips of one side, a batch at a time; one that cannot be read is left out and noted."""
    parts: list[dict[str, Tensor]] = []
    notes: list[str] = []
    size = job.extractors.batch_size
    for start in range(numbers.start, numbers.stop, size):
        clips, lost = side.read(job.protocol, range(start, min(start + size, numbers.stop)))
        notes += lost
        for group in _of_one_shape(clips):
            made, *partner = (torch.stack(column) for column in zip(*(clips[i] for i in group), strict=True))
            parts.append({"index": torch.tensor(group)} | _rows_of(job, group[0], made, *partner))
    names = parts[0] if parts else {}
    return Rows({name: torch.cat([part[name] for part in parts]) for name in names}, tuple(notes))


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
    rows, given = job.extractors.read(clips, first), job.protocol.given_frames
    # One clip at a time, since these copy it several times in float64.
    others = [None] * len(clips) if real is None else real.split(1)
    parts = [_pixel_rows(clip, other, given) for clip, other in zip(clips.split(1), others, strict=True)]
    rows |= {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    if (metric := job.extractors.lpips) is not None and real is not None:
        shown = 0 if metric.trunk == "vgg" else given
        rows[f"lpips_{metric.trunk}"] = lpips_of_clips(metric, real[:, shown:], clips[:, shown:])
    return rows


def _pixel_rows(clips: Tensor, real: Tensor | None, given: int) -> dict[str, Tensor]:
    """What needs no network. given: first frames that MCVD's averages leave out."""
    rows = {f"{name}_by_frame": curve for name, curve in frame_curves(clips).items()}
    rows |= {"motion": motion(clips), "flicker": flicker(clips)}
    if real is None:
        return rows
    rows["psnr_by_frame"] = psnr_per_frame(real, clips)
    rows["psnr_magvit_db"] = rows["psnr_by_frame"].mean(dim=1)
    rows["psnr_mcvd_db"] = psnr_of_clip(real[:, given:], clips[:, given:])
    if min(clips.shape[2:4]) >= 11:
        rows["ssim_magvit"] = ssim_of_clip(real, clips, "magvit")
        rows["ssim_mcvd"] = ssim_of_clip(real[:, given:], clips[:, given:], "mcvd")
    return rows
