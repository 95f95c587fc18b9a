"""What the training of a model starts from: weights of another model, low-rank changes, and frozen parts."""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from mutoscope import hub
from mutoscope.errors import UserError
from mutoscope.families import family_of
from mutoscope.families.transfer import Described, TransferReport
from mutoscope.layers.lora import add_lora
from mutoscope.models.base import AnyModel, ModelConfig
from mutoscope.runs.actions import actions_of
from mutoscope.runs.text import WORDS, run_vocabulary
from mutoscope.text import encoder_kind
from mutoscope.training.config import ModelRecipe


def start(recipe: ModelRecipe, model: AnyModel) -> TransferReport | None:
    """Gives a fresh model the recipe's starting weights, LoRA and frozen parts, in place.

    Returns what became of the weights, None without any to start from. Raises UserError for weights that do not fit,
    for LoRA without any, and if no parameter is left to train.
    """
    if recipe.lora is not None and recipe.start_from is None:
        raise UserError("lora changes trained weights a little, and this recipe has none: name a model in start_from.")
    report = None if recipe.start_from is None else start_from(recipe, recipe.start_from, model)
    if recipe.lora is not None:
        add_lora(model, recipe.lora, family_of(recipe.model).lora_modules)
        train_parameters(model, () if report is None else report.changed)
    freeze(model, recipe.frozen)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError("frozen names every parameter of the model: name fewer, so that something is trained.")
    return report


def start_from(recipe: ModelRecipe, name_or_folder: str, model: AnyModel) -> TransferReport:
    """Copies the weights of a saved model as far as the family allows; see `families.transfer`.

    Raises UserError for a model of another family or of other sizes.
    """
    folder = hub.open_folder(name_or_folder)
    old = folder.load_model()
    before, after = saved_names(folder, old.config), recipe_names(recipe)
    try:
        return family_of(recipe.model).transfer(old, model, before, after)
    except UserError as error:
        raise UserError(f"start_from {name_or_folder!r} does not fit the recipe's model: {error}") from None


def saved_names(folder: hub.ModelFolder, config: ModelConfig) -> Described:
    """A saved model with the names in its folder."""
    encoder, actions = folder.text_encoder_path, folder.index.actions
    return Described(
        config,
        classes=_fitting(folder.index.class_names or (), config.num_classes),
        words=None if encoder is None or config.text is None else encoder_words(encoder),
        actions=actions if actions is not None and actions.size == config.action_size else None,
    )


def recipe_names(recipe: ModelRecipe) -> Described:
    """The model of a recipe with the names in its data."""
    config, encoder = recipe.model, recipe.text_encoder
    words: tuple[str, ...] | None = None
    if config.text is not None and encoder is not None:
        words = tuple(run_vocabulary(recipe)) if encoder == WORDS else encoder_words(Path(encoder).expanduser())
    return Described(
        config,
        classes=_fitting(tuple(recipe.data.class_names()), config.num_classes),
        words=words,
        actions=actions_of(recipe.data.describe(), recipe.data, config),
    )


def _fitting(names: tuple[str, ...], count: int | None) -> tuple[str, ...]:
    """Names, if there is one for each number; for example not those of a folder that serves as a single class."""
    return names if len(names) == (count or 0) else ()


def encoder_words(folder: Path) -> tuple[str, ...] | None:
    """The vocabulary of an encoder of whole words; None for a published encoder, or one that is elsewhere."""
    return encoder_kind(folder).words(folder) if folder.is_dir() else None


def train_parameters(model: nn.Module, names: Sequence[str]) -> None:
    """Includes the parameters of these names in training; names of buffers are ignored."""
    parameters = dict(model.named_parameters())
    for name in names:
        if name in parameters:
            parameters[name].requires_grad_(True)


def freeze(model: nn.Module, prefixes: Sequence[str]) -> None:
    """Excludes parameters from training whose names begin with a prefix; raises UserError for a prefix without any."""
    for prefix in prefixes:
        named = [parameter for name, parameter in model.named_parameters() if name.startswith(prefix)]
        if not named:
            raise UserError(f"frozen names {prefix!r}, but no parameter of the model begins so.")
        for parameter in named:
            parameter.requires_grad_(False)
