"""A FAR of a few thousand parameters, short or long, and folders with it."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from mutoscope.actions import ActionSpec
from mutoscope.hub import ModelIndex, save_pretrained
from mutoscope.models.far import FAR, FARBatch, FARConfig
from tiny_magi import NAMES, tiny_vae

SAMPLING = {"num_decoding_steps": 3}
KEYS = ActionSpec.plain(("left", "right"), "buttons")
LONG = {"coarse_patch_size": 2, "window": 3, "latent_shape": (7, 4, 6)}


def tiny_config(**changes: Any) -> FARConfig:
    sizes = {
        "hidden_size": 32,
        "num_layers": 2,
        "latent_channels": 3,
        "latent_shape": (5, 4, 6),
        "rotary_channels": (4, 6, 6),
        "window": 5,
        "num_classes": 3,
        "action_size": 2,
    }
    return FARConfig(**{**sizes, **changes})


def tiny_far(**changes: Any) -> FAR:
    """Random weights, large enough that every input matters."""
    torch.manual_seed(0)
    model = FAR(tiny_config(**changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.15)
    return model


def batch_of(model: FAR, count: int = 2, frames: int | None = None, seed: int = 0) -> FARBatch:
    """A training batch with everything the model reads."""
    generator, config = torch.Generator().manual_seed(seed), model.config
    shape = frames or config.latent_shape[0], *config.latent_shape[1:]
    batch: FARBatch = {"tokens": torch.randn(count, config.latent_channels, *shape, generator=generator)}
    if config.num_classes:
        batch["label"] = torch.arange(count) % config.num_classes
    if config.action_size is not None:
        batch["actions"] = torch.randn(count, shape[0], config.action_size, generator=generator)
    return batch


def tiny_index(model: FAR, **changes: Any) -> ModelIndex:
    fields = {
        "family": "far",
        "num_frames": model.config.latent_shape[0],
        "height": 8,
        "width": 12,
        "class_names": NAMES,
        "tasks": model.config.tasks,
        "sampling": SAMPLING,
        "actions": KEYS,
    }
    return ModelIndex(**{**fields, **changes})


def save_tiny_far(folder: Path, **changes: Any) -> Path:
    """A model folder with classes and two keys."""
    model = tiny_far(**changes)
    return save_pretrained(folder, tiny_index(model), tiny_vae(), model)


def save_steered_far(folder: Path) -> Path:
    """The same, and actions change whole frames visibly."""
    model = tiny_far()
    assert model.action_embedding is not None
    with torch.no_grad():
        model.action_embedding.weight.mul_(40)
    return save_pretrained(folder, tiny_index(model), tiny_vae(), model)
