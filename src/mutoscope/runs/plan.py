"""What a run is going to do: the recipe on the data it is started with, and the sentences that say so beforehand."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from mutoscope.data.base import PathData
from mutoscope.errors import UserError
from mutoscope.recipes.catalog import RECORDED_BY
from mutoscope.runs.adapt import Adaptation, Change, adapted
from mutoscope.runs.checks import check_model_fits
from mutoscope.runs.frame_size import Machine
from mutoscope.runs.networks import short_warmup, tokenizer_spec, tokenizer_stage
from mutoscope.training.config import FeaturesRecipe, ModelRecipe, Recipe, TokenizerRecipe

MAX_NAMES = 8  # classes or actions that a sentence lists


@dataclass(frozen=True)
class Plan:
    """A run before it starts. first: the tokenizer that is trained first, if any."""

    recipe: Recipe
    first: TokenizerRecipe | None = None
    found: str = ""
    """One sentence about the data, "" where the recipe reads its own."""
    changes: tuple[Change, ...] = ()
    """Settings that follow from the data."""
    warnings: tuple[str, ...] = ()

    def lines(self) -> Iterator[str]:
        """The plan for people, one line each."""
        if self.found:
            yield self.found
        for change in self.changes:
            yield f"  {change.name} = {change.value}"
        if self.first is not None:
            yield f"First a tokenizer is trained on the same clips, for {self.first.loop.num_steps} updates."


def planned(recipe: Recipe, *, other_data: bool, kept: Collection[str], machine: Machine) -> Plan:
    """The plan of a run. other_data: whether the data are not those of the recipe, so that it adapts to them.

    kept: dotted names of settings that a user chose. Raises UserError for data that the recipe cannot be trained on,
    or that are not named.
    """
    check_named(recipe)
    recipe, shortened = with_short_warmup(recipe, kept)
    if isinstance(recipe, FeaturesRecipe) or not (other_data or recipe.fits_data):
        return Plan(recipe, first_stage(recipe), changes=shortened)
    adaptation = adapted(recipe, kept=kept, machine=machine)
    fitted = adaptation.recipe
    if isinstance(fitted, ModelRecipe):
        check_model_fits(fitted, tokenizer_spec(fitted))
    return Plan(
        fitted, first_stage(fitted), sentence(fitted, adaptation), shortened + adaptation.changes, adaptation.warnings
    )


def with_short_warmup(recipe: Recipe, kept: Collection[str]) -> tuple[Recipe, tuple[Change, ...]]:
    """The recipe with a warm-up that a short run has room for: a tenth of its updates."""
    if recipe.optim.warmup_steps < recipe.loop.num_steps or "optim.warmup_steps" in kept:
        return recipe, ()
    optim = short_warmup(recipe.optim, recipe.loop.num_steps)
    return replace(recipe, optim=optim), (Change("optim.warmup_steps", optim.warmup_steps),)


def first_stage(recipe: Recipe) -> TokenizerRecipe | None:
    """The tokenizer that is trained before the recipe's model, if any."""
    try:
        return tokenizer_stage(recipe) if isinstance(recipe, ModelRecipe) else None
    except UserError:  # a tokenizer that does not exist, which `preflight` refuses once the plan is shown
        return None


def check_named(recipe: Recipe) -> None:
    """Raises UserError for a recipe of own or recorded data to which no data are named."""
    if isinstance(recipe, FeaturesRecipe) or not isinstance(recipe.data, PathData) or recipe.data.path:
        return
    if recipe.name in RECORDED_BY:
        raise UserError(
            f"The recipe {recipe.name!r} needs a recording: make it with `{RECORDED_BY[recipe.name]}`, or use one of "
            "your own, and name it with --data PATH."
        )
    if recipe.fits_data:
        raise UserError(
            f"The recipe {recipe.name!r} needs data: name a folder of videos, a LeRobot dataset or a token cache with "
            "--data PATH."
        )


def machine_of(device: str | None) -> Machine:
    """The kind of machine that decides the frame size of recipes for own data."""
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return "cpu" if chosen.startswith("cpu") else "gpu"


def sentence(recipe: Recipe, adaptation: Adaptation) -> str:
    """What was found in the data."""
    survey, data = adaptation.survey, recipe.data
    path = data.path if isinstance(data, PathData) else None
    parts = [f"{survey.num_videos} videos" if survey.num_videos is not None else "endless clips"]
    parts.append(f"{survey.height}x{survey.width} at {survey.fps:.4g} frames/s")
    parts += [f"{survey.frames[0]} frames or more (median {survey.frames[1]})"] if survey.frames else []
    parts += [named("classes", survey.class_names)] if survey.class_names else []
    parts += ["with captions"] if survey.has_captions else []
    parts += [named("actions", survey.actions.names)] if survey.actions else []
    return f"{path or data.kind} ({data.kind}): {', '.join(parts)}."


def named(what: str, names: Sequence[str]) -> str:
    """A count and the first names."""
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return f"{len(names)} {what} ({', '.join(names[:MAX_NAMES])}{more})"
