"""From a recipe to a finished model folder: data, network, loop, sample sheets, export."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mutoscope import hub
from mutoscope.data.loader import BatchSource, ItemSource, ShapesSource
from mutoscope.data.shapes import HELD_BACK_SEED, ShapesConfig, ShapesWorld
from mutoscope.errors import UserError
from mutoscope.tokenizers.vq3d import VQ3D
from mutoscope.training.callbacks import Callback, ReconstructionSheet
from mutoscope.training.config import DataConfig, Recipe, TokenizerRecipe, from_json, to_json
from mutoscope.training.tokenizer_trainer import train_tokenizer
from mutoscope.training.tracking import Tracker
from mutoscope.training.trainer import TrainResult


def train(
    recipe: Recipe,
    out: str | Path,
    *,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    trackers: Sequence[Tracker] = (),
    device: str | torch.device | None = None,
) -> TrainResult:
    """Trains `recipe` into the folder `out` and leaves a loadable model folder there.

    `out` receives recipe.json at once; log.jsonl, samples/ and checkpoints/ while training; the weights and
    model_index.json at the end. A run ended by SIGTERM or Ctrl-C has only the former: `resume=True` continues it.
    Raises UserError for anything the user can fix.
    """
    out = Path(out)
    hub.check_writable_folder(out)
    if recipe.loop.threads:
        torch.set_num_threads(recipe.loop.threads)
    torch.manual_seed(recipe.loop.seed)  # initial weights
    if isinstance(recipe, TokenizerRecipe):
        return _train_tokenizer(recipe, out, resume=resume, callbacks=callbacks, trackers=trackers, device=device)
    raise UserError(f"No training is known for a {type(recipe).__name__}.")


def load_recipe(path: str | Path) -> Recipe:
    """The recipe in a JSON file, for example the recipe.json of an earlier run."""
    return from_json(hub.read_json(Path(path)))


def shapes_world(data: DataConfig, seed: int) -> ShapesWorld:
    """The built-in world at the sizes of `data`."""
    config = ShapesConfig(data.height, data.width, data.num_frames, data.fps, data.max_objects, data.controllable)
    return ShapesWorld(config, seed)


def clip_source(data: DataConfig) -> BatchSource:
    """Batches with "video" uint8 (b, t, h, w, 3) and "label" (b,) from the built-in world or a folder of videos."""
    if data.kind == "shapes":
        return ShapesSource(shapes_world(data, data.seed))
    if data.kind == "folder" and data.path:
        from mutoscope.data.clips import ClipDataset

        return ItemSource(ClipDataset(data.path, data.num_frames, data.height, data.width, data.frame_stride))
    raise UserError(f'Clips come from kind "shapes", or "folder" with a path; found {data.kind!r} and {data.path!r}.')


def example_clips(data: DataConfig, count: int = 4) -> torch.Tensor:
    """The same few clips every time, uint8 (b, t, h, w, 3); of the built-in world ones it never trains on."""
    source = ShapesSource(shapes_world(data, HELD_BACK_SEED)) if data.kind == "shapes" else clip_source(data)
    return source[list(range(min(count, source.num_clips or count)))]["video"]


def model_index(recipe: Recipe, **values: Any) -> hub.ModelIndex:
    """model_index.json of a finished run; `values` are the fields that depend on the family."""
    data, shapes = recipe.data, recipe.data.kind == "shapes"
    described = {"kind": data.kind}
    if shapes:
        described |= {name: getattr(data, name) for name in ("height", "width", "num_frames", "fps", "max_objects", "controllable")}
    names = shapes_world(data, data.seed).class_names if shapes else None
    return hub.ModelIndex(
        num_frames=data.num_frames,
        height=data.height,
        width=data.width,
        fps=data.fps,
        class_names=names,
        data=described,
        **values,
    )


def _train_tokenizer(recipe: TokenizerRecipe, out: Path, *, callbacks: Sequence[Callback], **options: Any) -> TrainResult:
    sheet = ReconstructionSheet(example_clips(recipe.data))
    source, tokenizer = clip_source(recipe.data), VQ3D(recipe.tokenizer)
    result = train_tokenizer(tokenizer, recipe, source, out, callbacks=(sheet, *callbacks), **options)
    if result.finished:
        index = model_index(recipe, family="tokenizer", model=None)
        hub.save_pretrained(out, index, tokenizer=result.network, recipe=to_json(recipe))
    return result
