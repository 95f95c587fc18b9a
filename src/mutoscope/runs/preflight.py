"""What a run is checked for before it computes anything: files, sizes, sampling options and memory."""

import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from mutoscope import hub
from mutoscope.data.base import DataConfig, PathData
from mutoscope.data.sources.tokens import TokensData
from mutoscope.errors import UserError, reason, shown
from mutoscope.evaluation.networks.shapes_features import ShapesFeatures, ShapesFeaturesConfig
from mutoscope.families import family_of
from mutoscope.meta_device import on_meta_device
from mutoscope.runs.checks import check_model_fits
from mutoscope.runs.networks import build_tokenizer, spec_without_weights
from mutoscope.runs.rollouts import check_rollouts
from mutoscope.runs.text import WORDS
from mutoscope.text import encoder_kind
from mutoscope.tokenizers.base import TokenizerSpec
from mutoscope.tokenizers.discriminator import DiscriminatorConfig, make_discriminator
from mutoscope.training.config import AdversarialConfig, ModelRecipe, Recipe, TokenizerRecipe
from mutoscope.training.optim import check_warmup

MAX_NAME = 200  # characters: it is printed and becomes part of the model's card
BYTES_PER_PARAMETER = 16  # float32: the weight, its gradient and Adam's two moments
BYTES_PER_PIXEL = 3 * (1 + 4)  # a clip in 8 bits, and as float32 beside it


def check_recipe(recipe: Recipe) -> None:
    """Raises UserError for a recipe that cannot be trained: files that are missing, or settings that do not fit.

    Reads configurations only, no clips and no weights, so it takes a moment.
    """
    if len(recipe.name) > MAX_NAME or not recipe.name.isprintable():
        raise UserError(f"name must be a line of at most {MAX_NAME} characters, found {shown(recipe.name)}.")
    check_warmup(recipe.optim, recipe.loop.num_steps)
    check_data(recipe.data)
    if isinstance(recipe, TokenizerRecipe):
        with on_meta_device():
            spec = build_tokenizer(recipe.tokenizer).spec
        check_clip_fits(spec, recipe.data, "the tokenizer")
        check_adversarial(recipe)
        check_start(recipe.start_from)
    elif isinstance(recipe, ModelRecipe):
        check_model_recipe(recipe)
        check_start(recipe.start_from)


def check_start(folder: str | None) -> None:
    """Raises UserError unless the model that training starts from exists."""
    if folder is not None:
        hub.open_folder(folder)


def check_data(data: DataConfig) -> None:
    """Raises UserError unless the folder of the data is named and exists."""
    if isinstance(data, PathData) and not Path(data.required_path()).expanduser().exists():
        raise UserError(f"There is no {data.path!r}: name the folder of the data with --data.path.")


def check_clip_fits(spec: TokenizerSpec, data: DataConfig, tokenizer: str) -> None:
    """Raises UserError unless a tokenizer's strides divide the clips of the data."""
    t, s = spec.temporal_stride, spec.spatial_stride
    frames, _, _ = spec.latent_shape(data.num_frames, data.height, data.width)
    if spec.num_frames(frames) == data.num_frames and not data.height % s and not data.width % s:
        return
    allowed = f"1 + a multiple of {t}" if spec.num_alone else f"a multiple of {t}"
    raise UserError(
        f"Clips of {data.num_frames} frames of {data.height}×{data.width} do not fit {tokenizer}: data.num_frames must "
        f"be {allowed}, data.height and data.width multiples of {s}."
    )


def check_adversarial(recipe: TokenizerRecipe) -> None:
    """Raises UserError for a discriminator of other clips, or files of weights that do not exist."""
    if (adversarial := recipe.adversarial) is None:
        return
    clip, discriminator = (recipe.data.num_frames, recipe.data.height, recipe.data.width), adversarial.discriminator
    if isinstance(discriminator, DiscriminatorConfig) and discriminator.clip_shape != clip:
        raise UserError(f"adversarial.discriminator.clip_shape is {discriminator.clip_shape}, clips are {clip}.")
    for name, file in weight_files(adversarial):
        if not Path(file).expanduser().is_file():
            raise UserError(f"There is no file {file!r}, which adversarial.{name} names.")


def weight_files(adversarial: AdversarialConfig) -> Iterator[tuple[str, str]]:
    """The files that adversarial training reads, with the fields that name them."""
    for name in ("perceptual_weights", "perceptual_heads"):
        if (file := getattr(adversarial, name)) is not None:
            yield name, file


def check_model_recipe(recipe: ModelRecipe) -> None:
    """Raises UserError unless tokenizer, text encoder and sampling options exist and fit the model."""
    if recipe.data.redraws:
        raise UserError("Tokens are encoded once, so random crops would not change: use data.ten_crops instead.")
    by_task = {task: options for task, options in recipe.task_sampling.items() if task in recipe.task_weights}
    family_of(recipe.model).check_sampling(recipe.model, recipe.sampling, by_task)
    check_rollouts(recipe, family_of(recipe.model))
    if recipe.text_encoder not in (None, WORDS):
        encoder_kind(Path(recipe.text_encoder).expanduser())
    if isinstance(recipe.data, TokensData) or (spec := spec_without_weights(recipe)) is None:
        return  # the cache, or the loaded tokenizer, says more
    check_clip_fits(spec, recipe.data, f"the tokenizer {recipe.tokenizer!r}")
    check_model_fits(recipe, spec)


# --------------------------------------------------------------------------------------------------------------- memory


def count_parameters(recipe: Recipe) -> int:
    """Parameters of the networks that a recipe trains, without allocating them, a discriminator not among them."""
    return _count(*networks(recipe)[:1])


def networks(recipe: Recipe) -> list[nn.Module]:
    """The networks that a recipe trains, on the meta device; raises UserError for sizes that no tensor can have."""
    try:
        with on_meta_device():
            if isinstance(recipe, TokenizerRecipe):
                opponent = [make_discriminator(recipe.adversarial.discriminator)] if recipe.adversarial else []
                return [build_tokenizer(recipe.tokenizer), *opponent]
            if isinstance(recipe, ModelRecipe):
                return [family_of(recipe.model).network(recipe.model)]
            return [ShapesFeatures(ShapesFeaturesConfig())]
    except (RuntimeError, MemoryError) as error:
        raise UserError(f"The network of {recipe.name} is too large to be built: {reason(error)}.") from None


def check_memory(recipe: Recipe, device: torch.device) -> None:
    """Raises UserError where the weights with their optimiser, or one batch of clips, exceed the device's memory."""
    available = memory_of(device)
    if available is None:
        return
    count = _count(*networks(recipe))
    needed = count * BYTES_PER_PARAMETER
    if needed > available:
        raise UserError(
            f"{recipe.name} has {count:,} parameters, which need {needed / 1e9:,.1f} GB to train (16 bytes each); "
            f"{device} has {available / 1e9:,.1f} GB. Choose a smaller model."
        )
    data, together = recipe.data, recipe.loop.batch_size // recipe.loop.accumulation
    clips = 1 if isinstance(recipe, ModelRecipe) else max(together, 1)
    pixels = clips * data.num_frames * data.height * data.width
    if pixels * BYTES_PER_PIXEL > available:
        raise UserError(
            f"{clips} clips of {data.num_frames} frames of {data.height}×{data.width} need "
            f"{pixels * BYTES_PER_PIXEL / 1e9:,.1f} GB; {device} has {available / 1e9:,.1f} GB. Choose smaller clips, "
            "or a smaller loop.batch_size."
        )


def _count(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def memory_of(device: torch.device) -> int | None:
    """Bytes of memory of a GPU, or of this machine for other devices; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
