"""Clips to be measured: what a model generates or predicts, what a tokenizer gives back, what a folder holds."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from tqdm import tqdm

from mutoscope import hub
from mutoscope.data.fit import fit_frames
from mutoscope.data.media import VIDEO_SUFFIXES, files_below
from mutoscope.data.sources.shapes.world import CLASS_NAMES, CLASSES, MOTIONS, SHAPES, ShapesConfig
from mutoscope.errors import UserError
from mutoscope.evaluation.protocols.protocol import RealClips
from mutoscope.pipeline import VideoPipeline
from mutoscope.sampling.tasks import needs_video

PREDICTION_TASKS = ("frame-prediction", "class-conditional-frame-prediction")
Clips = UInt8[Tensor, "n t h w 3"]


def open_source(source: Any, device: torch.device | str) -> Any:
    """A pipeline, a tokenizer, or the Path of a folder of videos; an object that is already loaded passes."""
    if not isinstance(source, str | os.PathLike):
        return source
    folder = Path(source).expanduser()
    if folder.is_dir() and not (folder / hub.INDEX).is_file():
        return folder
    return VideoPipeline.from_pretrained(source, device=device)


def is_model(opened: Any) -> bool:
    """Whether the source generates; a pipeline may hold a tokenizer alone."""
    return getattr(opened, "model", None) is not None


def prediction_task(tasks: Iterable[str]) -> str | None:
    """The task by which a model predicts from a first frame, if it has one."""
    return next((task for task in PREDICTION_TASKS if task in tasks), None)


def world_of(opened: Any) -> ShapesConfig:
    """The world a model was trained on, so that it is measured at its own size; the default world for a tokenizer."""
    if not hasattr(opened, "index"):
        return ShapesConfig()
    index = opened.index
    if index.data.get("kind", "shapes") != "shapes" or index.data.get("controllable", False):
        raise UserError(
            "Protocol 'shapes' judges models of the built-in world (without actions); this one was trained on "
            f"{dict(index.data)}. Save its samples and compare them with real clips of that data."
        )
    return ShapesConfig(
        height=index.height,
        width=index.width,
        num_frames=index.num_frames,
        max_objects=index.data.get("max_objects", ShapesConfig.max_objects),
    )


def generated_clips(
    pipeline: Any,
    world: ShapesConfig,
    num_clips: int,
    seed: int,
    options: Mapping[str, Any],
    batch_size: int = 16,
    progress: bool = False,
) -> tuple[Clips, Mapping[str, Tensor] | None]:
    """Clips, the classes cycling uniformly, and the attributes asked of each; None for a model without classes."""
    names = pipeline.index.class_names
    if pipeline.index.data.get("mixed", False):  # classes of the controllable world stand behind those judged here
        names = tuple(name for name in names if name in CLASS_NAMES)
    if names and (unknown := set(names) - set(CLASS_NAMES)):
        raise UserError(f"Protocol 'shapes' knows no class {min(unknown)!r}: this model is not of the built-in world.")
    asked_names: Sequence[str | None] = names or [None]
    calls: list[tuple[str | None, int]] = []
    for i, name in enumerate(asked_names):
        count = len(range(i, num_clips, len(asked_names)))
        calls += [(name, min(batch_size, count - start)) for start in range(0, count, batch_size)]
    clips: list[Tensor] = []
    asked: list[int] = []
    for number, (name, count) in enumerate(tqdm(calls, "generate", disable=not progress, leave=False)):
        clips += _frames(pipeline(class_label=name, num_samples=count, seed=call_seed(seed, number), **options))
        asked += [] if name is None else [CLASS_NAMES.index(name)] * count
    return _stack(clips, world), class_attributes(torch.tensor(asked)) if names else None


def class_attributes(labels: Tensor) -> dict[str, Tensor]:
    """Class, shape and motion indices that class labels (n,) ask for."""
    pairs = [CLASSES[int(label)] for label in labels]
    return {
        "class": labels,
        "shape": torch.tensor([SHAPES.index(shape) for shape, _ in pairs]),
        "motion": torch.tensor([MOTIONS.index(motion) for _, motion in pairs]),
    }


def described_clips(
    pipeline: Any,
    captions: Sequence[str],
    world: ShapesConfig,
    seed: int,
    options: Mapping[str, Any],
    batch_size: int = 16,
    progress: bool = False,
) -> Clips:
    """One clip for every caption."""
    clips: list[Tensor] = []
    starts = range(0, len(captions), batch_size)
    for number, start in enumerate(tqdm(starts, "prompts", disable=not progress, leave=False)):
        prompts = list(captions[start : start + batch_size])
        clips += _frames(pipeline(prompt=prompts, seed=call_seed(seed, number), **options))
    return _stack(clips, world)


def predicted_clips(
    pipeline: Any,
    real: RealClips,
    world: ShapesConfig,
    seed: int,
    options: Mapping[str, Any],
    batch_size: int = 16,
    progress: bool = False,
) -> Clips:
    """One clip from the first frame of each real one."""
    task = prediction_task(pipeline.index.tasks)
    if task is None:
        raise UserError("This model predicts no frames: it was trained for neither of " + ", ".join(PREDICTION_TASKS))
    return completed_clips(pipeline, task, real, world, seed, options, batch_size, progress)


def completed_clips(
    pipeline: Any,
    task: str,
    real: RealClips,
    world: ShapesConfig,
    seed: int,
    options: Mapping[str, Any],
    batch_size: int = 16,
    progress: bool = False,
) -> Clips:
    """What a model makes of what `task` shows of each real clip, or of its class alone."""
    clips: list[Tensor] = []
    starts = range(0, len(real.video), batch_size)
    for number, start in enumerate(tqdm(starts, task, disable=not progress, leave=False)):
        rows = slice(start, start + batch_size)
        given: dict[str, Any] = {"task": task}
        if task in PREDICTION_TASKS:
            given["context"] = list(real.video[rows, :1].numpy())
        elif needs_video(task):
            given["task_video"] = list(real.video[rows].numpy())
        if task.startswith("class-conditional"):
            given["class_label"] = [CLASS_NAMES[int(label)] for label in real.attributes["class"][rows]]
        clips += _frames(pipeline(**given, seed=call_seed(seed, number), **options))
    return _stack(clips, world)


@torch.inference_mode()
def reconstructed_clips(tokenizer: Any, video: Clips, batch_size: int = 16) -> tuple[Clips, Tensor]:
    """Clips through a tokenizer and back, and the tokens or latents in between."""
    device = next(tokenizer.parameters()).device
    decoded, tokens = [], []
    for batch in video.split(batch_size):
        tokens.append(tokenizer.encode(tokenizer.from_uint8(batch.to(device))))
        decoded.append(tokenizer.to_uint8(tokenizer.decode(tokens[-1])).cpu())
    return torch.cat(decoded), torch.cat(tokens).cpu()


def folder_clips(
    folder: Path, num_clips: int | None, num_frames: int, height: int, width: int
) -> tuple[list[Path], Clips, list[str]]:
    """Paths and first frames of the readable videos below a folder, in order of path, and why others were skipped.

    Frames are cropped to the aspect ratio and resized at once, so that memory does not depend on the files' size.
    """
    from mutoscope.data.video.read import read_video

    found = files_below(folder, VIDEO_SUFFIXES)
    if not found:
        raise UserError(f"Nothing to evaluate: {str(folder)!r} holds no videos (such as .mp4, .webm or .gif).")
    paths, clips, skipped = [], [], []
    for path in found:
        if len(paths) == num_clips:
            break
        try:
            frames = read_video(path, max_frames=num_frames).frames
        except UserError as error:
            skipped.append(f"{path.name}: {error}")
            continue
        if len(frames) < num_frames:
            skipped.append(f"{path.name}: {len(frames)} frames, {num_frames} are needed")
            continue
        paths.append(path)
        clips.append(torch.from_numpy(fit_frames(frames, height, width)))
    if len(paths) < (wanted := num_clips or 2):
        why = f" {len(skipped)} were skipped; {skipped[0]}." if skipped else ""
        raise UserError(
            f"{str(folder)!r} holds {len(paths)} usable clips of {num_frames} frames, {wanted} are needed.{why} "
            "Add videos or ask for fewer clips; figures of different counts do not compare."
        )
    return paths, torch.stack(clips), skipped


def class_in_name(path: Path) -> int | None:
    """Class of the world that a file, or the folder it lies in, is named after."""
    for name in (path.stem, path.parent.name):
        for label, class_name in enumerate(CLASS_NAMES):
            if name == class_name or name.startswith((f"{class_name}-", f"{class_name}_")):
                return label
    return None


def call_seed(seed: int, number: int) -> int:
    """Seeds of one evaluation's calls, all different and within 63 bits."""
    return (seed * 1_000_003 + number) % 2**63


def _frames(result: Any) -> list[Tensor]:
    clips = result if isinstance(result, list | tuple) else [result]
    return [torch.as_tensor(np.asarray(clip.frames)) for clip in clips]


def _stack(clips: list[Tensor], world: ShapesConfig) -> Clips:
    expected = (world.num_frames, world.height, world.width, 3)
    for clip in clips:
        if tuple(clip.shape) != expected:
            raise UserError(
                f"The model gave a clip of shape {tuple(clip.shape)}, its model_index.json says {expected}."
            )
    return torch.stack(clips)
