"""A pipeline with random weights from a recipe: the time of a network does not depend on what it has learnt."""

from dataclasses import asdict, dataclass
from math import prod

import torch

from mutoscope import hub
from mutoscope.errors import UserError
from mutoscope.families import family_of
from mutoscope.json_config import nearest
from mutoscope.meta_device import on_meta_device
from mutoscope.model_index import ModelIndex
from mutoscope.models.base import AnyModel, ModelConfig
from mutoscope.recipes.catalog import RECIPES
from mutoscope.runs.networks import build_tokenizer, tokenizer_recipe
from mutoscope.runs.train import sampler_defaults
from mutoscope.tokenizers.base import VideoTokenizer
from mutoscope.training.config import ModelRecipe

STD = 0.02  # of matrices that start as zeros, whose outputs would be the same everywhere
SEED = 0
PASSES = 2  # guidance


@dataclass(frozen=True)
class Untrained:
    """A model recipe, whose networks are built with random weights."""

    recipe: ModelRecipe

    @classmethod
    def of(cls, name: str) -> "Untrained":
        """By the recipe's name. Raises UserError for one that trains no model, or whose model reads prompts."""
        recipe = RECIPES[name]() if name in RECIPES else None
        if recipe is None:
            raise UserError(f"There is no model or recipe {name!r}: {nearest(name, [*hub.bundled(), *RECIPES])}")
        if not isinstance(recipe, ModelRecipe):
            raise UserError(f"The recipe {name} trains no video model: name one that does.")
        if recipe.model.text is not None:
            raise UserError(f"The model of {name} reads prompts, and a recipe has no text encoder: name a model.")
        return cls(recipe)

    @property
    def index(self) -> ModelIndex:
        recipe, data = self.recipe, self.recipe.data
        family = family_of(recipe.model)
        return ModelIndex(
            family.name,
            data.num_frames,
            data.height,
            data.width,
            tasks=tuple(recipe.task_weights),
            sampling=asdict(sampler_defaults(family, recipe.sampling, "sampling")),
        )

    def model(self) -> AnyModel:
        """The network as training begins, but for matrices of zeros, which are drawn."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)  # initial weights
            network = family_of(self.recipe.model).network(self.recipe.model)
        draws = torch.Generator().manual_seed(SEED)
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.ndim > 1 and not parameter.any():
                    parameter.normal_(std=STD, generator=draws)
        return network

    def tokenizer(self) -> VideoTokenizer:
        """The recipe's tokenizer: with its own weights where it is bundled, else with random ones."""
        first = tokenizer_recipe(self.recipe)
        if first is None:
            return hub.load_tokenizer(self.recipe.tokenizer)
        return build_tokenizer(first.tokenizer)

    def seconds_at_least(self, rate: float) -> float:
        """Time of the matrix products of one clip at `rate` operations per second, without head and decoder."""
        family, config = family_of(self.recipe.model), self.recipe.model
        with on_meta_device():
            network = family.network(config)
        weights = sum(parameter.numel() for parameter in network.parameters() if parameter.ndim > 1)
        steps = family.steps(config, self.recipe.sampling)
        return PASSES * 2 * weights * tokens_of_all_steps(config, steps) / rate


def tokens_of_all_steps(config: ModelConfig, steps: int) -> int:
    """About how many tokens the network reads for a clip: each of them once, or those of a frame in each step."""
    frame = prod(config.token_grid)
    return max(config.latent_shape[0] * frame, steps * (frame if config.is_continuous else 1))
