"""PAR's recipes have the papers' numbers (arXiv 2412.15119, 2406.06525)."""

from collections.abc import Callable
from math import prod
from typing import Any

import pytest

from mutoscope.json_config import dataclass_from_dict
from mutoscope.meta_device import on_meta_device
from mutoscope.models.par import PAR, PARConfig
from mutoscope.recipes import catalog
from mutoscope.recipes.par_paper import RECIPES as OWN
from mutoscope.runs.networks import TOKENIZERS
from mutoscope.sampling.parallel_ar import ParallelARSamplerConfig, group_starts
from mutoscope.training.config import ModelRecipe, from_json, to_json

RECIPES: dict[str, Callable[[], Any]] = {**catalog.RECIPES}
STEPS = {
    "llamagen-3B-imagenet": 576, "par-XL-4x-imagenet": 147, "par-3B-16x-imagenet": 51,
    "par-XL-1x-ucf101": 1280, "par-XL-4x-ucf101": 323, "par-XL-16x-ucf101": 95,
}  # fmt: skip


@pytest.mark.parametrize("name", OWN)
def test_every_recipe_is_complete_fits_its_tokenizer_and_survives_its_json(name: str):
    recipe = RECIPES[name]()
    assert recipe.name == name and from_json(to_json(recipe), name, [PARConfig]) == recipe
    assert recipe.protocol and recipe.optim.warmup_steps < recipe.loop.num_steps
    if not isinstance(recipe, ModelRecipe):
        return
    spec = RECIPES[recipe.tokenizer.removeprefix("runs/")]().tokenizer
    with on_meta_device():
        tokenizer = TOKENIZERS[type(spec)](spec).spec
    assert isinstance(recipe.model, PARConfig) and tokenizer.vocab_size == recipe.model.codebook_size
    data = recipe.data
    assert tokenizer.latent_shape(data.num_frames, data.height, data.width) == recipe.model.latent_shape
    assert dataclass_from_dict(ParallelARSamplerConfig, recipe.sampling, name).guidance_scale > 1


@pytest.mark.parametrize("name", STEPS)
def test_models_decode_in_the_published_number_of_steps(name: str):
    model = RECIPES[name]().model
    assert len(group_starts(model.latent_shape, model.num_parallel, model.num_parallel)) == STEPS[name]


def test_lengths_and_rates_are_the_published_ones():
    large, small = RECIPES["par-3B-4x-imagenet"](), RECIPES["par-XL-4x-imagenet"]()
    assert (large.loop.batch_size, large.optim.peak_learning_rate) == (512, 2e-4)
    assert (small.loop.batch_size, small.optim.peak_learning_rate) == (256, 1e-4)
    for recipe in (large, small):
        per_epoch = 1_281_167 // recipe.loop.batch_size
        assert (recipe.loop.num_steps, recipe.optim.warmup_steps) == (300 * per_epoch, 15 * per_epoch)
        assert recipe.data.ten_crops and recipe.model.attention_dropout == 0.1 and recipe.optim.decay_embeddings


def test_the_clip_model_has_the_size_its_specification_counts():
    recipe = RECIPES["par-XL-4x-ucf101"]()
    with on_meta_device():
        model = PAR(recipe.model)
    assert sum(p.numel() for p in model.parameters()) == 899_381_760
    assert prod(model.latent_shape) == 1280 and recipe.model.rope_pairs == (8, 12, 12)
