"""The network that a recipe trains, and what is known of a tokenizer before it has weights."""

import os
from dataclasses import replace
from pathlib import Path

from mutoscope import hub
from mutoscope.data.sources.recorded_data import RecordedData
from mutoscope.errors import UserError
from mutoscope.json_config import nearest
from mutoscope.meta_device import on_meta_device
from mutoscope.model_index import ModelIndex
from mutoscope.recipes.catalog import RECIPES
from mutoscope.tokenizers.base import TokenizerSpec, VideoTokenizer
from mutoscope.tokenizers.causal3d import Causal3D, Causal3DConfig
from mutoscope.tokenizers.vq2d import VQ2D, VQ2DConfig
from mutoscope.tokenizers.vq3d import VQ3D, VQ3DConfig
from mutoscope.training.config import ModelRecipe, OptimConfig, TokenizerConfig, TokenizerRecipe

TRAINED_FIRST = "tokenizer-training"  # sub-folder of a run's folder


def build_tokenizer(config: TokenizerConfig) -> VideoTokenizer:
    """A tokenizer with fresh weights."""
    match config:
        case VQ3DConfig():
            return VQ3D(config)
        case VQ2DConfig():
            return VQ2D(config)
        case Causal3DConfig():
            return Causal3D(config)


def tokenizer_recipe(recipe: ModelRecipe) -> TokenizerRecipe | None:
    """The recipe by which a tokenizer is trained before the model; None where the tokenizer exists already.

    A folder wins over a bundled name, and both win over a recipe. Raises UserError for a name that is none of these.
    """
    name = recipe.tokenizer
    if os.path.isdir(name) or name in hub.bundled():
        return None
    found = RECIPES[name]() if name in RECIPES else None
    if isinstance(found, TokenizerRecipe):
        return found
    if found is not None:
        raise UserError(f"tokenizer is {name!r}, a recipe that trains no tokenizer: name one that does, or a folder.")
    if os.sep in name or name.startswith("."):
        raise UserError(f"There is no tokenizer {name!r}: train it first, or name another one with --tokenizer.")
    raise UserError(f"Unknown tokenizer {name!r}: {nearest(name, [*hub.bundled(), *RECIPES])}")


def tokenizer_stage(recipe: ModelRecipe) -> TokenizerRecipe | None:
    """The first stage of a model's run: a tokenizer for clips of the same recording, size and rate; None without one.

    A tokenizer of single frames keeps the few frames per clip of its own recipe. Its clips have no temporal gaps, which
    are for models that know which frame comes after one.
    """
    first = tokenizer_recipe(recipe)
    if first is None:
        return None
    frames = first.data.num_frames if untrained_spec(first).per_frame else recipe.data.num_frames
    data = recipe.data
    if isinstance(data, RecordedData):
        data = replace(data, max_gap=0)
    data = replace(data, num_frames=min(frames, data.num_frames))
    loop = replace(
        first.loop,
        num_steps=recipe.tokenizer_steps or first.loop.num_steps,
        autocast=recipe.loop.autocast,
        seed=recipe.loop.seed,
        threads=recipe.loop.threads,
        num_workers=recipe.loop.num_workers,
        validation_share=recipe.loop.validation_share,
    )
    optim = short_warmup(first.optim, loop.num_steps)
    return replace(first, name=f"{recipe.name}-{first.name}", data=data, loop=loop, optim=optim)


def short_warmup(optim: OptimConfig, num_steps: int) -> OptimConfig:
    """The optimiser with a warm-up of at most a tenth of a run that would otherwise end before it does."""
    return optim if optim.warmup_steps < num_steps else replace(optim, warmup_steps=num_steps // 10)


def tokenizer_of(recipe: ModelRecipe, out: Path) -> str:
    """Name or folder of the tokenizer of a run that writes to `out`."""
    return recipe.tokenizer if tokenizer_recipe(recipe) is None else str(out / TRAINED_FIRST)


def tokenizer_spec(recipe: ModelRecipe) -> TokenizerSpec:
    """Strides and vocabulary of the recipe's tokenizer, trained or not."""
    return spec_without_weights(recipe) or hub.load_tokenizer(recipe.tokenizer).spec


def spec_without_weights(recipe: ModelRecipe) -> TokenizerSpec | None:
    """The same without reading weights; None for a published autoencoder, whose configuration does not say it all."""
    own = tokenizer_recipe(recipe)
    if own is not None:
        return untrained_spec(own)
    folder = hub.open_folder(recipe.tokenizer)
    if "_class_name" in hub.read_json(folder.tokenizer_path / hub.CONFIG):
        return None
    with on_meta_device():
        tokenizer = hub.build_component(folder.tokenizer_path)
    return tokenizer.spec if isinstance(tokenizer, VideoTokenizer) else None


def tokenizer_index(recipe: ModelRecipe) -> ModelIndex | None:
    """What the recipe's tokenizer was trained on; None for one that is trained first."""
    return hub.load_index(recipe.tokenizer) if tokenizer_recipe(recipe) is None else None


def untrained_spec(recipe: TokenizerRecipe) -> TokenizerSpec:
    """Strides and vocabulary of the tokenizer that a recipe trains."""
    with on_meta_device():
        return build_tokenizer(recipe.tokenizer).spec
