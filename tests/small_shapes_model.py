"""A complete model folder of the built-in world at its real clip size, with very small random networks."""

from pathlib import Path

import torch

from mutoscope import hub
from mutoscope.data.sources.shapes.world import CLASS_NAMES
from mutoscope.models.magvit import Magvit, MagvitConfig
from mutoscope.models.par import PAR, PARConfig
from mutoscope.tokenizers.vq3d import VQ3D, VQ3DConfig

NUM_FRAMES, SIZE, FPS = 16, 32, 8
TASKS = ("class-conditional", "frame-prediction")


def small_tokenizer_config() -> VQ3DConfig:
    """16×32×32 clips to 4×8×8 tokens from 16 codes."""
    return VQ3DConfig(
        filters=8,
        channel_multipliers=(1, 1, 2),
        num_res_blocks=1,
        temporal_downsample=(True, True),
        embedding_dim=8,
        codebook_size=16,
        num_groups=4,
    )


def small_magvit_config() -> MagvitConfig:
    return MagvitConfig(
        num_layers=1,
        hidden_size=32,
        num_heads=2,
        mlp_size=64,
        codebook_size=16,
        num_classes=len(CLASS_NAMES),
        num_special_tokens=16,
        latent_shape=(4, 8, 8),
        task_token=True,
        tasks=TASKS,
    )


def small_index(family: str, tasks: tuple[str, ...]) -> hub.ModelIndex:
    return hub.ModelIndex(
        family=family,
        num_frames=NUM_FRAMES,
        height=SIZE,
        width=SIZE,
        fps=FPS,
        class_names=CLASS_NAMES,
        tasks=tasks,
        data={"kind": "shapes", "height": SIZE, "width": SIZE, "num_frames": NUM_FRAMES, "fps": FPS},
    )


def save_small_model(folder: Path) -> Path:
    torch.manual_seed(0)
    index = small_index("magvit", TASKS)
    return hub.save_pretrained(folder, index, VQ3D(small_tokenizer_config()), Magvit(small_magvit_config()))


def save_small_par(folder: Path) -> Path:
    torch.manual_seed(0)
    config = PARConfig(1, 32, 2, None, 16, (4, 8, 8), num_parallel=16, num_classes=len(CLASS_NAMES), mlp_size=32)
    index = small_index("par", ("class-conditional",))
    return hub.save_pretrained(folder, index, VQ3D(small_tokenizer_config()), PAR(config))
