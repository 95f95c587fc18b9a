"""A MAGI of a few thousand parameters, tokens and conditions for it."""

from typing import Any

import torch
from torch import Tensor, nn

from mutoscope.models.magi import MAGI, MAGIConfig
from mutoscope.models.magi_networks import Conditions

SAMPLING = {"num_decoding_steps": 3, "num_diffusion_steps": 4, "sample_range": 3.0}


def tiny_config(**changes: Any) -> MAGIConfig:
    sizes = {
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 2,
        "head_layers": 2,
        "head_size": 24,
        "latent_channels": 3,
        "latent_shape": (5, 4, 6),
        "patch_size": 2,
        "num_classes": 3,
        "action_size": 2,
        "dropout": 0.0,
    }
    return MAGIConfig(**{**sizes, **changes})


def tiny_magi(**changes: Any) -> MAGI:
    """Random weights, large enough that every input matters."""
    torch.manual_seed(0)
    model = MAGI(tiny_config(**changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.15)
    return model


def batch_of(model: MAGI, count: int = 2, frames: int = 5, seed: int = 0) -> dict[str, Tensor]:
    """A training batch with everything the model reads."""
    generator, config = torch.Generator().manual_seed(seed), model.config
    _, rows, columns = config.latent_shape
    if config.codebook_size is None:
        tokens = torch.randn(count, config.latent_channels, frames, rows, columns, generator=generator)
    else:
        tokens = torch.randint(config.codebook_size, (count, frames, *config.grid), generator=generator)
    batch = {"tokens": tokens, "interval": torch.arange(count) % 25 + 1, "label": torch.arange(count) % 3}
    if config.action_size is not None:
        batch["actions"] = torch.randn(count, frames, config.action_size, generator=generator)
    if config.text_size is not None:
        batch["caption"] = torch.randn(count, 4, config.text_size, generator=generator)
        batch["caption_mask"] = torch.arange(4) < torch.arange(count)[:, None]
    return batch


def frame_conditions(conditions: Conditions, frame: int) -> Conditions:
    """What one frame of a clip is told."""
    actions = None if conditions.actions is None else conditions.actions[:, frame : frame + 1]
    return Conditions(conditions.interval, conditions.label, actions, conditions.caption, conditions.caption_mask)
