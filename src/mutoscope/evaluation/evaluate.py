"""`evaluate`: a model, a tokenizer or a folder of videos against held-back clips of the built-in world.

Every figure of the source stands beside the same figure of as many real clips (`..._real`), because neither the judge
nor a distance between finite sets is perfect.
"""

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from einops import repeat
from torch import Tensor

from mutoscope.data.sources.shapes.world import ShapesConfig
from mutoscope.errors import UserError
from mutoscope.evaluation.metrics.pixel import psnr_mean_of_frames, psnr_of_clip, psnr_of_region
from mutoscope.evaluation.protocols.protocol import (
    EvaluationProtocol,
    Figure,
    Judge,
    Readings,
    RealClips,
    checked_count,
    codebook_figure,
    frechet_figure,
    histogram_figure,
    mean_figure,
    ratio_figure,
    real_clips,
)
from mutoscope.evaluation.sources.clips import (
    class_in_name,
    completed_clips,
    described_clips,
    folder_clips,
    generated_clips,
    is_model,
    open_source,
    predicted_clips,
    prediction_task,
    reconstructed_clips,
    world_of,
)
from mutoscope.families.blending import blended_and_coded
from mutoscope.json_config import nearest
from mutoscope.sampling.tasks import pixel_mask

PROTOCOLS = (
    "shapes",
    "shapes-generation",
    "shapes-text",
    "shapes-prediction",
    "shapes-tasks",
    "shapes-reconstruction",
    "shapes-files",
)
DEFAULT_NUM_CLIPS = 256
Metrics = dict[str, Figure]


@dataclass(frozen=True)
class Setting:
    """What one evaluation runs under: its protocol, the judge, and the world of the source."""

    protocol: EvaluationProtocol
    judge: Judge
    world: ShapesConfig
    batch_size: int = 16
    progress: bool = False

    @property
    def seed(self) -> int:
        return self.protocol.seed

    def real(self) -> RealClips:
        """The real side."""
        return real_clips(self.world, 0, self.protocol.num_clips, self.protocol.real_seed)

    def more_real(self) -> Readings:
        """As many further real clips, the other side of real-against-real."""
        count = self.protocol.num_clips
        return self.judge.read(real_clips(self.world, count, count, self.protocol.real_seed).video)


def evaluate(
    source: str | os.PathLike[str] | Any,
    protocol: str = "shapes",
    num_clips: int | None = None,
    seed: int = 0,
    *,
    judge: Judge | None = None,
    batch_size: int = 16,
    device: torch.device | str = "cpu",
    progress: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Figures of `source` under a protocol of the built-in world, each {"value", "ci95"}.

    `source` is a bundled name, a folder with model_index.json, a folder of videos, a loaded pipeline or a tokenizer.
    `protocol` "shapes" measures whatever the source can do: generation from classes or captions and first-frame
    prediction of a model, reconstruction of a tokenizer, the files of a folder; "shapes-generation" and the like
    measure one of them, and "shapes-tasks" each of the ten tasks that a model was trained for.
    `num_clips` defaults to 256, or to all files of a folder; figures of different counts do not compare.
    At most `batch_size` clips are generated or reconstructed together. `options` go to the sampler.
    Raises UserError for a source that cannot be measured so.
    """
    began = time.perf_counter()
    if protocol not in PROTOCOLS:
        raise UserError(f"Unknown protocol {protocol!r}: {nearest(protocol, PROTOCOLS)}")
    if num_clips is not None:
        checked_count(num_clips)
    opened = open_source(source, device)
    parts = _parts(opened, protocol)
    world = ShapesConfig() if isinstance(opened, Path) else world_of(opened)
    judge = judge or Judge.bundled(device)
    record = EvaluationProtocol(
        name=protocol,
        num_clips=num_clips or DEFAULT_NUM_CLIPS,
        num_frames=world.num_frames,
        height=judge.height,
        width=judge.width,
        extractor_sha256=judge.sha256,
        seed=seed,
        options=options,
    )
    metrics: Metrics = {}
    if isinstance(opened, Path):
        paths, clips, skipped = folder_clips(opened, num_clips, world.num_frames, world.height, world.width)
        record = replace(record, num_clips=len(paths), notes=tuple(f"skipped {reason}" for reason in skipped))
        metrics |= measure_files(paths, clips, Setting(record, judge, world, batch_size, progress))
    setting = Setting(record, judge, world, batch_size, progress)
    if "shapes-generation" in parts:
        metrics |= measure_generation(opened, setting)
    if "shapes-text" in parts:
        metrics |= measure_text(opened, setting)
    if "shapes-prediction" in parts:
        metrics |= measure_prediction(opened, setting)
    if "shapes-tasks" in parts:
        metrics |= measure_tasks(opened, setting)
    if "shapes-reconstruction" in parts:
        metrics |= measure_reconstruction(getattr(opened, "tokenizer", opened), setting)
    return {
        "source": os.fspath(source) if isinstance(source, str | os.PathLike) else type(source).__name__,
        "protocol": protocol,
        "metrics": metrics,
        "num_clips": record.num_clips,
        "seconds": round(time.perf_counter() - began, 3),
        "protocol_details": record.as_dict() | {"parts": parts},
    }


def _parts(opened: Any, protocol: str) -> list[str]:
    """The parts of the protocol to measure: the one that is named, or with "shapes" all that suit the source."""
    if isinstance(opened, Path):
        possible = usual = ["shapes-files"]
    elif not is_model(opened):
        possible = usual = ["shapes-reconstruction"]
    else:
        tasks = opened.index.tasks
        usual = ["shapes-generation"] if "class-conditional" in tasks else []
        usual += ["shapes-text"] if "text-conditional" in tasks else []
        usual += ["shapes-prediction"] if prediction_task(tasks) else []
        possible = [*usual, "shapes-tasks", "shapes-reconstruction"]
    chosen = usual if protocol == "shapes" else [protocol]
    if not chosen or not set(chosen) <= set(possible):
        raise UserError(f"Protocol {protocol!r} does not fit this source; it can be measured by {', '.join(possible)}.")
    return chosen


def measure_generation(pipeline: Any, setting: Setting) -> Metrics:
    """Class-conditional clips, the classes cycling uniformly, against held-back clips.

    An accuracy is the share of clips in which the judge sees the class, shape or motion that was asked for. A model
    without classes is measured by shapes-FVD alone.
    """
    protocol = setting.protocol
    video, asked = generated_clips(
        pipeline,
        setting.world,
        protocol.num_clips,
        setting.seed,
        protocol.options,
        setting.batch_size,
        setting.progress,
    )
    real = setting.real()
    made, seen = setting.judge.read(video), setting.judge.read(real.video)
    metrics = _distances("", made, seen, setting)
    if asked is None:
        return metrics
    for head in ("class", "shape", "motion"):
        right, truly = made.correct(head, asked), seen.correct(head, real.attributes)
        metrics |= _against_real(f"{head}_accuracy", right, truly, setting.seed)
    return metrics


def measure_text(pipeline: Any, setting: Setting) -> Metrics:
    """Clips from the captions of held-back clips, against those clips.

    A caption names colour, shape and motion of the main object and colour and shape of the others; an accuracy is the
    share of clips in which the judge sees what the caption says.
    """
    protocol, real = setting.protocol, setting.real()
    video = described_clips(
        pipeline,
        real.captions,
        setting.world,
        setting.seed,
        protocol.options,
        setting.batch_size,
        setting.progress,
    )
    made, seen = setting.judge.read(video), setting.judge.read(real.video)
    metrics = _distances("text_", made, seen, setting)
    for heads in (("color",), ("shape",), ("motion",), ("color", "shape", "motion"), ("colors_present",)):
        right, truly = _all_correct(made, heads, real), _all_correct(seen, heads, real)
        metrics |= _against_real(f"text_{'_and_'.join(heads)}_accuracy", right, truly, setting.seed, paired=True)
    return metrics


def measure_prediction(pipeline: Any, setting: Setting) -> Metrics:
    """Frames predicted from the first frame of held-back clips; the given frame is no part of any PSNR.

    PSNR is that of a clip's mean squared error, averaged over clips; `..._frames_db` averages over frames instead.
    "Keeps": the judge sees in the predicted clip what is true of the clip whose frame was given. The shapes-FVD reads
    whole clips, the given frame included.
    """
    seed, real = setting.seed, setting.real()
    video = predicted_clips(
        pipeline, real, setting.world, seed, setting.protocol.options, setting.batch_size, setting.progress
    )
    made, seen = setting.judge.read(video), setting.judge.read(real.video)
    future, predicted = real.video[:, 1:], video[:, 1:]
    copied = repeat(real.video[:, 0], "n h w c -> n t h w c", t=future.shape[1])
    predicted_psnr, copied_psnr = psnr_of_clip(future, predicted), psnr_of_clip(future, copied)
    metrics = {
        "prediction_psnr_db": mean_figure(predicted_psnr, seed),
        "prediction_psnr_frames_db": mean_figure(psnr_mean_of_frames(future, predicted), seed),
        "copy_first_frame_psnr_db": mean_figure(copied_psnr, seed),
        "prediction_over_copy_db": mean_figure(predicted_psnr - copied_psnr, seed),
    }
    for heads in (("color",), ("shape",), ("color", "shape"), ("colors_present",)):
        kept, truly = _all_correct(made, heads, real), _all_correct(seen, heads, real)
        metrics |= _against_real(f"prediction_keeps_{'_and_'.join(heads)}", kept, truly, seed, paired=True)
    return metrics | _distances("prediction_", made, seen, setting)


def measure_tasks(pipeline: Any, setting: Setting) -> Metrics:
    """Every task on the same held-back clips: shapes-FVD of the completed clips, and PSNR inside what was given.

    As tokenizer and network return them, nothing put back, which is the paper's convention; beside it, under names
    with `blended`, with what was given put in without a seam (`blend_given`). `..._given_round_trip_db` is the PSNR of
    the clip sent through the tokenizer, in the same region: what the model could reach at best. The task names lose
    their hyphens in names of figures.
    """
    seed, real, options = setting.seed, setting.real(), setting.protocol.options
    seen, more = setting.judge.read(real.video), setting.more_real()
    round_trip, _ = reconstructed_clips(pipeline.tokenizer, real.video, setting.batch_size)
    metrics: Metrics = {}
    options = {**options, "blend_given": False} if pipeline.index.blend_given else options
    for task in pipeline.index.tasks:
        video = completed_clips(
            pipeline, task, real, setting.world, seed, options, setting.batch_size, setting.progress
        )
        name = task.replace("-", "_")
        metrics |= _distances(f"{name}_", setting.judge.read(video), seen, setting, other=more)
        region = pixel_mask(task, *video.shape[1:4])
        if region.any():
            given, best = psnr_of_region(real.video, video, region), psnr_of_region(real.video, round_trip, region)
            parts = zip(video.split(setting.batch_size), real.video.split(setting.batch_size), strict=True)
            blended = torch.cat([blended_and_coded(pipeline.tokenizer, *part, region) for part in parts])
            blended_psnr = psnr_of_region(real.video, blended, region)
            features = setting.judge.read(blended).features
            metrics |= {
                f"{name}_blended_shapes_fvd": frechet_figure(features, seen.features, seed),
                f"{name}_given_psnr_db": mean_figure(given, seed),
                f"{name}_given_round_trip_db": mean_figure(best, seed),
                f"{name}_given_over_round_trip_db": mean_figure(given - best, seed),
                f"{name}_given_blended_over_round_trip_db": mean_figure(blended_psnr - best, seed),
            }
    return metrics


def measure_reconstruction(tokenizer: Any, setting: Setting) -> Metrics:
    """Held-back clips through a tokenizer and back, against the same clips as they were."""
    seed, real = setting.seed, setting.real()
    video, tokens = reconstructed_clips(tokenizer, real.video, setting.batch_size)
    made, seen = setting.judge.read(video), setting.judge.read(real.video)
    metrics = {
        "reconstruction_psnr_db": mean_figure(psnr_of_clip(real.video, video), seed),
        "reconstruction_psnr_frames_db": mean_figure(psnr_mean_of_frames(real.video, video), seed),
    }
    for head in ("class", "color", "shape", "colors_present", "shapes_present"):
        right, truly = made.correct(head, real.attributes), seen.correct(head, real.attributes)
        metrics |= _against_real(f"reconstruction_{head}_accuracy", right, truly, seed, paired=True)
    if tokenizer.spec.vocab_size is not None:
        metrics["codebook_use"] = codebook_figure(tokens, tokenizer.spec.vocab_size)
    return metrics | _distances("reconstruction_", made, seen, setting, paired=True)


def measure_files(paths: list[Path], clips: Tensor, setting: Setting) -> Metrics:
    """Videos of a folder against held-back clips: shapes-FVD, and how differently what the judge sees is distributed.

    Where every file, or the folder it lies in, is named after a class of the world, the class accuracy is measured too.
    """
    seed, real = setting.seed, setting.real()
    made, seen, other = setting.judge.read(clips), setting.judge.read(real.video), setting.more_real()
    metrics = _distances("", made, seen, setting, other=other)
    for head in ("class", "shape", "color", "motion", "num_objects"):
        name, bins = f"{head}_histogram_distance", seen.logits[head].shape[1]
        metrics[name] = histogram_figure(made.choice(head), seen.choice(head), bins, seed)
        metrics[f"{name}_real"] = histogram_figure(other.choice(head), seen.choice(head), bins, seed)
    labels = [class_in_name(path) for path in paths]
    if None not in labels:
        right = made.correct("class", {"class": torch.tensor(labels)})
        metrics |= _against_real("class_accuracy", right, seen.correct("class", real.attributes), seed)
    return metrics


def _distances(
    prefix: str, made: Readings, seen: Readings, setting: Setting, other: Readings | None = None, paired: bool = False
) -> Metrics:
    """Shapes-FVD of the source, and of as many further held-back clips, against the same real clips."""
    other = other or setting.more_real()
    return {
        f"{prefix}shapes_fvd": frechet_figure(made.features, seen.features, setting.seed, paired),
        f"{prefix}shapes_fvd_real": frechet_figure(other.features, seen.features, setting.seed),
    }


def _against_real(name: str, made: Tensor, seen: Tensor, seed: int, paired: bool = False) -> Metrics:
    return {
        name: mean_figure(made, seed),
        f"{name}_real": mean_figure(seen, seed),
        f"{name}_over_real": ratio_figure(made, seen, seed, paired),
    }


def _all_correct(readings: Readings, heads: tuple[str, ...], real: RealClips) -> Tensor:
    return torch.stack([readings.correct(head, real.attributes) for head in heads]).all(dim=0)
