"""Corrupted context from a model's own rollouts: see `RolloutConfig`."""

from typing import cast

import torch
from torch import Tensor

from mutoscope.errors import UserError
from mutoscope.families import AnyFamily
from mutoscope.families.base import Rollout
from mutoscope.layers.draws import Draws, of_batch, randint
from mutoscope.models.base import AnyModel
from mutoscope.training.batches import Batch
from mutoscope.training.config import ModelRecipe, RolloutConfig
from mutoscope.training.trainer import Corrupt

COPIED = ("sample_range", "eta", "window_mode")  # options of sampling that rollouts share


def check_rollouts(recipe: ModelRecipe, family: AnyFamily) -> None:
    """Raises UserError for rollouts of a family that does not generate frame by frame, or without a frame to add."""
    config = recipe.rollouts
    if config.share == 0:
        return
    if not family.capabilities.endless:
        raise UserError(f"rollouts.share: models of {family.title} do not continue clips frame by frame; set it to 0.")
    frames = recipe.model.clip_shape[-3]
    if config.context_frames >= frames:
        raise UserError(
            f"rollouts.context_frames is {config.context_frames}, and clips have {frames} latent frames: nothing would "
            "be left to roll out."
        )


def own_context(recipe: ModelRecipe, family: AnyFamily, model: AnyModel) -> Corrupt | None:
    """The step that puts a model's own frames into the history of some updates; None where the share is 0."""
    config, roll_out = recipe.rollouts, family.rolling_out(model)
    if config.share == 0 or roll_out is None:
        return None
    options = {name: recipe.sampling[name] for name in COPIED if name in recipe.sampling}
    options |= {"num_decoding_steps": config.num_decoding_steps, "num_diffusion_steps": config.num_diffusion_steps}

    def corrupt(batch: Batch, step: int, draws: Draws) -> Batch:
        if step < config.start_step or not rolls_out(step, config.share):
            return batch
        num_context = drawn_context(config, of_batch(draws))
        if "history_only" in batch:  # the frame after a temporal gap follows from no other: it stays the recording's
            num_context = max(num_context, 2)
        model.eval()
        own = roll_out(Rollout(batch, num_context, options, draws))
        model.train()
        return {**batch, "history": own.to(cast(Tensor, batch["tokens"]).dtype)}

    return corrupt


def rolls_out(step: int, share: float) -> bool:
    """Whether an update is one of the share, evenly spread: the same on all ranks, none of which waits for another."""
    return int((step + 1) * share) > int(step * share)


def drawn_context(config: RolloutConfig, generator: torch.Generator) -> int:
    """True frames before the rollouts, the same number for all clips of a batch."""
    return 1 + int(randint(generator, config.context_frames))
