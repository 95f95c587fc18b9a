"""A NOVA of a few thousand parameters, and conditions for it."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mutoscope.hub import ModelIndex, save_pretrained, write_json
from mutoscope.models.nova import NOVA, NOVAConfig
from mutoscope.sampling.frame_ar import FrameCondition
from mutoscope.tokenizers.autoencoder_kl import AutoencoderKL
from mutoscope.tokenizers.autoencoder_kl_network import AutoencoderKLConfig

TEXT_SIZE, TEXT_LENGTH = 6, 5
WORDS = ("a", "blue", "circle", "red", "square", "swings")
SAMPLING = {"num_decoding_steps": 4, "num_diffusion_steps": 3, "guidance_scale": 3.0}


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


def tiny_autoencoder() -> AutoencoderKL:
    """Frames of 16×16 to latents of 3×8×8, each frame separately."""
    torch.manual_seed(0)
    sizes = AutoencoderKLConfig((8, 8), 1, 3, 4, (2, 2), (2, 2), scaling_factor=1.0)
    return AutoencoderKL(sizes).eval()


def save_tiny_autoencoder(folder: Path) -> Path:
    """A folder with the autoencoder alone."""
    index = ModelIndex("tokenizer", 4, 16, 16, model=None)
    return save_pretrained(folder, index, tiny_autoencoder())


def tiny_nova_index(**changes: Any) -> ModelIndex:
    values = {"family": "nova", "num_frames": 4, "height": 16, "width": 16, "fps": 4, "sampling": SAMPLING}
    return ModelIndex(**{**values, "tasks": ("text-conditional",), **changes})


def save_tiny_nova(folder: Path) -> Path:
    """A model folder that reads prompts of WORDS."""
    model = tiny_nova(text_size=5 * len(WORDS))
    save_pretrained(folder, tiny_nova_index(text_encoder="./text_encoder"), tiny_autoencoder(), model)
    (folder / "text_encoder").mkdir(exist_ok=True)
    write_json(folder / "text_encoder" / "config.json", {"kind": "words", "vocabulary": list(WORDS)})
    return folder
