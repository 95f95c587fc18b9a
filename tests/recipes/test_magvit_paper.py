"""The paper's recipes have the paper's numbers (arXiv 2212.05199, Tab. 8 and 9, and the released configurations)."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mutoscope.json_config import dataclass_from_dict
from mutoscope.models.magvit import Magvit, MagvitConfig
from mutoscope.recipes import catalog
from mutoscope.recipes.magvit_paper import DATASETS
from mutoscope.sampling.masked import MaskedSamplerConfig
from mutoscope.tokenizers.discriminator import Discriminator
from mutoscope.tokenizers.vq3d import VQ3D, VQ3DConfig
from mutoscope.training.config import ModelRecipe, TokenizerRecipe, from_json, to_json

RECIPES: dict[str, Callable[[], Any]] = {**catalog.RECIPES}

# name: updates, warm-up, batch (released configurations)
RELEASED = {
    "magvit-vq-b-ucf101": (37_000, 74, 128),
    "magvit-vq-l-ucf101": (74_000, 37, 256),
    "magvit-vq-b-bair": (135_200, 338, 128),
    "magvit-vq-l-bair": (135_200, 169, 256),
    "magvit-b-ucf101": (74_000, 5_000, 256),
    "magvit-l-ucf101": (74_000, 5_000, 256),
    "magvit-b-bair": (67_600, 5_000, 256),
    "magvit-l-bair": (135_200, 5_000, 256),
    "magvit-b-bair-mt8": (202_800, 5_000, 256),
    "magvit-l-bair-mt8": (270_400, 5_000, 256),
}
PARAMETERS = {
    "magvit-vq-b-ucf101": 40_579_843,
    "magvit-vq-l-bair": 141_882_371,
    "magvit-2d-vq-l-imagenet": 53_104_387,
    "magvit-b-ucf101": 87_301_991,
    "magvit-b-bair-mt8": 87_236_625,
    "magvit-l-ssv2-mt10": 305_659_071,
    "magvit-h-bair": 633_949_186,
}
PAPER = [name for name in RECIPES if name.startswith("magvit-") and name != "magvit-shapes"]


@pytest.mark.parametrize("name", RELEASED)
def test_lengths_are_those_of_the_released_configurations(name: str):
    recipe = RECIPES[name]()
    assert (recipe.loop.num_steps, recipe.optim.warmup_steps, recipe.loop.batch_size) == RELEASED[name]


@pytest.mark.parametrize("name", PARAMETERS)
def test_networks_have_the_published_parameter_counts(name: str):
    recipe = RECIPES[name]()
    config = recipe.tokenizer if isinstance(recipe, TokenizerRecipe) else recipe.model
    assert isinstance(config, VQ3DConfig | MagvitConfig)
    with torch.device("meta"):
        network = VQ3D(config) if isinstance(config, VQ3DConfig) else Magvit(config)
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", PAPER)
def test_every_recipe_is_complete_and_survives_its_json(name: str):
    recipe = RECIPES[name]()
    assert recipe.name == name and from_json(to_json(recipe), name, [MagvitConfig]) == recipe
    assert recipe.protocol and recipe.optim.warmup_steps < recipe.loop.num_steps
    data = recipe.data
    if isinstance(recipe, ModelRecipe):
        spec = RECIPES[recipe.tokenizer.removeprefix("runs/")]().tokenizer
        with torch.device("meta"):
            tokenizer = VQ3D(spec).spec
        assert isinstance(recipe.model, MagvitConfig) and tokenizer.vocab_size == recipe.model.codebook_size
        assert tokenizer.latent_shape(data.num_frames, data.height, data.width) == recipe.model.latent_shape
        assert set(recipe.task_weights) == set(getattr(recipe.model, "tasks", ()))
        assert dataclass_from_dict(MaskedSamplerConfig, recipe.sampling, name).num_decoding_steps == 12
    else:
        assert recipe.adversarial is not None
        shape = recipe.adversarial.discriminator.clip_shape
        assert shape == (data.num_frames, data.height, data.width)
        with torch.device("meta"):
            assert Discriminator(recipe.adversarial.discriminator).config.per_frame == recipe.tokenizer.per_frame


def test_kinetics_gives_five_frames_and_decodes_with_its_own_schedule():
    config = RECIPES["magvit-b-kinetics600"]().model
    assert config.condition_mask("frame-prediction")[:, 0, 0].tolist() == [True, True, False, False]
    assert config.condition_mask("frame-prediction", 1, 4)[:, 0, 0].tolist() == [True, False, False, False]
    assert RECIPES["magvit-b-kinetics600"]().sampling == {"schedule": "uniform", "choice_temperature": 7.5}
    assert all(row.published for row in DATASETS.values())
