"""A NOVA of a few thousand parameters, and conditions for it."""

from typing import Any

import torch
from torch import Tensor

from mutoscope.models.nova import NOVA, NOVAConfig
from mutoscope.sampling.frame_ar import FrameCondition

TEXT_SIZE, TEXT_LENGTH = 6, 5


def tiny_config(**changes: Any) -> NOVAConfig:
    sizes = {
        "hidden_size": 32,
        "temporal_layers": 2,
        "temporal_heads": 1,
        "spatial_layers": 4,
        "spatial_heads": 1,
        "head_layers": 2,
        "head_size": 24,
        "latent_channels": 3,
        "latent_shape": (4, 8, 8),
        "num_time_slots": None,
        "mixer_rank": 2,
        "text_size": TEXT_SIZE,
        "text_length": TEXT_LENGTH,
    }
    return NOVAConfig(**{**sizes, **changes})


def tiny_nova(**changes: Any) -> NOVA:
    """Random weights, large enough that every input matters."""
    torch.manual_seed(0)
    model = NOVA(tiny_config(**changes)).eval()
    with torch.no_grad():
        for parameter in (model.begin_of_video, model.mask_token):
            parameter.normal_()
        if model.text is not None:
            model.text.table.normal_()
    return model


def text_of(model: NOVA, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features and presence of captions with one word, two words ..."""
    features = torch.randn(count, TEXT_LENGTH, TEXT_SIZE, generator=torch.Generator().manual_seed(seed))
    return features, torch.arange(TEXT_LENGTH) <= torch.arange(count)[:, None]


@torch.no_grad()
def condition(model: NOVA, count: int, guided: bool = True) -> FrameCondition:
    """`count` captions and, for guidance, the null text."""
    prefix = model.with_motion(torch.cat([model.text_prefix(*text_of(model, count)), model.null_prefix(1)]), None)
    rows = torch.arange(count)
    if not guided:
        return FrameCondition(prefix[:count], rows, 1)
    return FrameCondition(prefix, torch.cat([rows, torch.full((count,), count)]), 2)
