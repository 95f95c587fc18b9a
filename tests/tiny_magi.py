"""A MAGI of a few thousand parameters, tokens and conditions for it."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from mutoscope.hub import ModelIndex, save_pretrained
from mutoscope.models.magi import MAGI, FrameConditions, MAGIBatch, MAGIConfig
from mutoscope.tokenizers.causal3d import Causal3D, Causal3DConfig

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


def batch_of(model: MAGI, count: int = 2, frames: int = 5, seed: int = 0) -> MAGIBatch:
    """A training batch with everything the model reads."""
    generator, config = torch.Generator().manual_seed(seed), model.config
    _, rows, columns = config.latent_shape
    if config.codebook_size is None:
        tokens = torch.randn(count, config.latent_channels, frames, rows, columns, generator=generator)
    else:
        tokens = torch.randint(config.codebook_size, (count, frames, *config.grid), generator=generator)
    batch: MAGIBatch = {"tokens": tokens, "interval": torch.arange(count) % 25 + 1, "label": torch.arange(count) % 3}
    if config.action_size is not None:
        batch["actions"] = torch.randn(count, frames, config.action_size, generator=generator)
    if config.text_size is not None:
        batch["caption"] = torch.randn(count, 4, config.text_size, generator=generator)
        batch["caption_mask"] = torch.arange(4) < torch.arange(count)[:, None]
    return batch


def frame_conditions(conditions: FrameConditions, frame: int) -> FrameConditions:
    """FrameConditions of one frame of the clips."""
    actions = None if conditions.actions is None else conditions.actions[:, frame : frame + 1]
    return FrameConditions(conditions.interval, conditions.label, actions, conditions.caption, conditions.caption_mask)


NAMES = ("circle", "square", "cross")


def tiny_vae() -> Causal3D:
    """Frames of 8×12 to latents of 3×4×6, each frame separately."""
    torch.manual_seed(1)
    return Causal3D(
        Causal3DConfig(
            filters=4,
            channel_multipliers=(1, 2),
            num_res_blocks=1,
            temporal_downsample=(False,),
            num_groups=1,
            bottleneck="kl",
            latent_channels=3,
            per_frame=True,
        )
    ).eval()


def tiny_index(model: MAGI, **changes: Any) -> ModelIndex:
    fields = {
        "family": "magi",
        "num_frames": 5,
        "height": 8,
        "width": 12,
        "class_names": NAMES,
        "tasks": model.config.tasks,
        "sampling": SAMPLING,
    }
    return ModelIndex(**{**fields, **changes})


def save_tiny_magi(folder: Path) -> Path:
    """A model folder with classes and actions."""
    model = tiny_magi()
    return save_pretrained(folder, tiny_index(model), tiny_vae(), model)


def save_steered_magi(folder: Path) -> Path:
    """The same, and actions change whole frames visibly."""
    model = tiny_magi()
    assert model.action_embedding is not None
    with torch.no_grad():
        for parameter in model.action_embedding.parameters():
            parameter.mul_(40)
    return save_pretrained(folder, tiny_index(model), tiny_vae(), model)
