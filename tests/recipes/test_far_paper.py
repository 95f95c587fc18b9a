"""FAR's recipes have the published settings, fit their autoencoders, and survive their JSON form."""

from dataclasses import replace
from typing import cast

import pytest

from mutoscope.evaluation.protocols.published import VIDEO_PROTOCOLS
from mutoscope.families import family_of
from mutoscope.models.far import FARConfig
from mutoscope.recipes.catalog import RECIPES
from mutoscope.recipes.doom import far_doom, magi_doom, vae_doom
from mutoscope.recipes.far_paper import RECIPES as OWN
from mutoscope.recipes.shapes import far_shapes, magi_shapes, vae_shapes
from mutoscope.runs.checks import check_model_fits
from mutoscope.runs.networks import untrained_spec
from mutoscope.runs.preflight import count_parameters
from mutoscope.tokenizers.base import TokenizerSpec
from mutoscope.training.config import ModelRecipe, from_json, to_json

SMALL = ("far", "far-doom", "far-shapes", "far-shapes-long")


def model_recipe(name: str) -> ModelRecipe:
    recipe = RECIPES[name]()
    assert isinstance(recipe, ModelRecipe) and isinstance(recipe.model, FARConfig)
    return recipe


@pytest.mark.parametrize("name", [*OWN, *SMALL])
def test_every_recipe_is_complete_and_survives_its_json(name: str):
    recipe = model_recipe(name)
    assert recipe.name == name and from_json(to_json(recipe), name, [FARConfig]) == recipe
    family_of(recipe.model).check_sampling(recipe.model, recipe.sampling, {})


@pytest.mark.parametrize("name", OWN)
def test_published_settings(name: str):
    recipe = model_recipe(name)
    side, rows = recipe.data.height, recipe.model.latent_shape[1]
    check_model_fits(recipe, TokenizerSpec(1, side // rows, latent_channels=32, per_frame=True))
    assert (recipe.loop.batch_size, recipe.loop.ema_decay, recipe.loop.clip_norm) == (32, 0.9999, 1.0)
    assert (recipe.optim.peak_learning_rate, recipe.optim.beta2, recipe.optim.schedule) == (1e-4, 0.999, "constant")
    protocol = VIDEO_PROTOCOLS.get(recipe.protocol)
    assert recipe.protocol == "world" or (protocol is not None and protocol.published and protocol.height == side)
    assert recipe.sampling["num_decoding_steps"] == 50 and cast(FARConfig, recipe.model).clean_share == 0.1


def test_lengths_of_the_published_runs():
    steps = {name: RECIPES[name]().loop.num_steps for name in OWN}
    assert steps["far-L-ucf101-128"] == steps["far-XL-ucf101-256-cond"] == 400_000
    assert steps["far-B-ucf101-64"] == steps["far-B-bair"] == 200_000
    assert steps["far-B-long-dmlab"] == steps["far-M-long-minecraft"] == 1_000_000
    assert cast(FARConfig, model_recipe("far-B-bair").model).window == 30
    assert model_recipe("far-M-long-minecraft").optim.warmup_steps == 10_000


def test_small_recipes_fit_the_tokenizers_that_they_name():
    for is_long in (False, True):
        check_model_fits(far_shapes(is_long), untrained_spec(vae_shapes()))
    check_model_fits(far_doom(), untrained_spec(vae_doom()))


def test_the_model_of_doom_is_equal_to_its_twin_in_size_data_and_updates():
    ours, twin = far_doom(), magi_doom()
    assert abs(count_parameters(ours) / count_parameters(twin) - 1) < 0.06
    assert (ours.loop, ours.optim, ours.task_weights) == (twin.loop, twin.optim, twin.task_weights)
    assert ours.data == replace(twin.data, intervals=(), max_gap=0)
    assert far_shapes().loop.num_steps == magi_shapes().loop.num_steps
