"""Model folders with tiny random networks, so that verbs and pipelines are tested without training."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mutoscope.hub import ModelIndex, save_pretrained
from mutoscope.models.magvit import Magvit, MagvitConfig
from mutoscope.models.par import PAR, PARConfig
from mutoscope.tokenizers.vq2d import VQ2D, VQ2DConfig
from mutoscope.tokenizers.vq3d import VQ3D, VQ3DConfig

CLASS_NAMES = ("square-spin", "circle-orbit", "cross-swing")
TASKS = ("class-conditional", "frame-prediction")
TOKENIZER = VQ3DConfig(
    filters=8,
    channel_multipliers=(1, 1),
    num_res_blocks=1,
    temporal_downsample=(True,),
    embedding_dim=4,
    codebook_size=16,
    num_groups=4,
)
MODEL = MagvitConfig(
    num_layers=1,
    hidden_size=16,
    num_heads=2,
    mlp_size=16,
    codebook_size=16,
    num_classes=len(CLASS_NAMES),
    num_special_tokens=16,
    latent_shape=(4, 4, 4),
    task_token=True,
    tasks=TASKS,
)


def tiny_tokenizer() -> VQ3D:
    """8 frames of 8×8 to 4×4×4 tokens of 16 codes."""
    torch.manual_seed(0)
    return VQ3D(TOKENIZER).eval()


def tiny_model(config: MagvitConfig = MODEL) -> Magvit:
    torch.manual_seed(1)
    return Magvit(config).eval()


def tiny_index(**values: Any) -> ModelIndex:
    fields: dict[str, Any] = {"family": "magvit", "num_frames": 8, "height": 8, "width": 8, "fps": 4}
    fields |= {"class_names": CLASS_NAMES, "tasks": TASKS, "sampling": {"num_decoding_steps": 3}}
    return ModelIndex(**{**fields, **values})


def save_tiny_model(folder: Path) -> Path:
    return save_pretrained(folder, tiny_index(), tiny_tokenizer(), tiny_model())


def save_tiny_tokenizer(folder: Path) -> Path:
    index = ModelIndex(family="tokenizer", model=None, num_frames=8, height=8, width=8, fps=4)
    return save_pretrained(folder, index, tiny_tokenizer())


IMAGE_TOKENIZER = VQ2DConfig(8, (1, 2), 1, 16, 4, codebook_size=16, num_groups=8)
PAR_MODEL = PARConfig(
    2, 16, 2, codebook_size=16, latent_shape=(4, 4, 4), num_parallel=4, num_classes=len(CLASS_NAMES), mlp_size=24
)


def tiny_image_tokenizer() -> VQ2D:
    """Frames of 8×8 to 4×4 tokens of 16 codes, each frame separately."""
    torch.manual_seed(0)
    return VQ2D(IMAGE_TOKENIZER).eval()


def tiny_par(**changes: Any) -> PAR:
    torch.manual_seed(1)
    model = PAR(replace(PAR_MODEL, **changes)).eval()
    torch.nn.init.normal_(model.output.weight)
    return model


def tiny_par_index(**values: Any) -> ModelIndex:
    fields: dict[str, Any] = {"family": "par", "num_frames": 4, "height": 8, "width": 8, "fps": 4}
    return ModelIndex(**{**fields, "class_names": CLASS_NAMES, "tasks": ("class-conditional",), **values})


def save_tiny_par(folder: Path) -> Path:
    return save_pretrained(folder, tiny_par_index(), tiny_image_tokenizer(), tiny_par())
