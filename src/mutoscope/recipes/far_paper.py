"""FAR's own recipes (arXiv 2503.19325 and its released settings): UCF-101, BAIR, DMLab and Minecraft.

All train 32 clips per update with AdamW at a constant rate of 1e-4, gradients clipped at 1, in bfloat16, and average
the weights with a decay of 0.9999. `--tokenizer` names the folder of the DC-AE that was trained on the same data, for
example a published one (`mutoscope convert dc-ae`). DMLab and Minecraft have no reader of their own layout here: give
them as a LeRobot dataset with actions. These recipes have not been run to their end here.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

from mutoscope.data.base import DataConfig
from mutoscope.data.sources.datasets.source import DatasetData
from mutoscope.data.sources.recorded_data import LeRobotData
from mutoscope.models.far import FARConfig
from mutoscope.training.config import LoopConfig, ModelRecipe, OptimConfig

ALL_CLIPS = 10**9  # more than there are: a finite source ends the token cache at its last clip
BATCH_SIZE = 32
LONG_WARMUP = 10_000
UCF101_CLASSES, NUM_ACTIONS = 101, 4
LONG_FRAMES, BAIR_FRAMES, FRAMES = 300, 30, 16
LATENTS = 8, 8  # rows and columns, at every frame size: the autoencoder's stride is 8, 16 or 32
World = Literal["dmlab", "minecraft"]
# name -> size, side of frames, frames per second
WORLDS: dict[World, tuple[str, int, float]] = {"dmlab": ("B-long", 64, 8.0), "minecraft": ("M-long", 128, 8.0)}


def ucf101(size: str, side: int, is_conditional: bool) -> ModelRecipe:
    """Clips of 16 frames, every third one of a video, by class or without.

    Published FVD of 2,048 clips: at 128 pixels 280 (99 by class, guidance 2), at 256 pixels 303 (113), with the size
    XL 279 (108). The authors train on all videos of both halves of a split; here it is the training half.
    Cost published: 12 to 15 days of one H100.
    """
    return _recipe(
        name=f"far-{size}-ucf101-{side}{'-cond' if is_conditional else ''}",
        tokenizer=f"runs/dc-ae-ucf101-{side}",
        data=DatasetData(kind="ucf101", num_frames=FRAMES, height=side, width=side, frame_stride=3, mirrored=True),
        model=FARConfig.paper(size, num_classes=UCF101_CLASSES if is_conditional else None),
        num_steps=400_000,
        task="class-conditional" if is_conditional else "unconditional",
        guidance_scale=2.0 if is_conditional else 1.0,
        protocol=f"ucf101-far{'-256' if side == 256 else ''}{'' if is_conditional else '-unconditional'}",
    )


def ucf101_prediction() -> ModelRecipe:
    """The next 12 frames of 64 pixels after 4, on the third training list. Published FVD 194.1, best of 100 samples.

    Cost published: 3.6 days of one H100.
    """
    return _recipe(
        name="far-B-ucf101-64",
        tokenizer="runs/dc-ae-ucf101-64",
        data=DatasetData(kind="ucf101", num_frames=FRAMES, height=64, width=64, fold=3, mirrored=True),
        model=FARConfig.paper("B"),
        num_steps=200_000,
        protocol="ucf101-far-prediction",
    )


def bair() -> ModelRecipe:
    """30 frames of 64 pixels; the last 28 after 2. Published FVD 144.3, best of 100 samples.

    Cost published: 2.6 days of one H100.
    """
    return _recipe(
        name="far-B-bair",
        tokenizer="runs/dc-ae-bair-64",
        data=DatasetData(kind="bair", num_frames=BAIR_FRAMES, height=64, width=64),
        model=FARConfig.paper("B", latent_shape=(BAIR_FRAMES, *LATENTS), window=BAIR_FRAMES),
        num_steps=200_000,
        protocol="bair-far",
    )


def world(name: World) -> ModelRecipe:
    """Long clips of up to 299 frames with actions: the last 16 frames in fine patches, all earlier ones in coarse ones.

    Published for 264 frames after 36: FVD 64 (DMLab) and 39 (Minecraft). Cost published: 18 days of one H100.
    """
    size, side, fps = WORLDS[name]
    return _recipe(
        name=f"far-{size}-{name}",
        tokenizer=f"runs/dc-ae-{name}-{side}",
        data=LeRobotData(num_frames=LONG_FRAMES, height=side, width=side, fps=fps),
        model=FARConfig.paper(size, action_size=NUM_ACTIONS, one_action=True),
        num_steps=1_000_000,
        warmup_steps=LONG_WARMUP,
        task="action-conditional",
        guidance_scale=1.5,
        protocol="world",
    )


def _recipe(
    *,
    name: str,
    tokenizer: str,
    data: DataConfig,
    model: FARConfig,
    num_steps: int,
    protocol: str,
    warmup_steps: int = 0,
    task: str = "frame-prediction",
    guidance_scale: float = 1.0,
) -> ModelRecipe:
    """What all of them have in common."""
    return ModelRecipe(
        name=name,
        tokenizer=tokenizer,
        data=data,
        model=model,
        optim=OptimConfig(1e-4, 0.9, 0.999, warmup_steps=warmup_steps, schedule="constant"),
        loop=LoopConfig(num_steps, BATCH_SIZE, ema_decay=0.9999, clip_norm=1.0, autocast="bf16"),
        task_weights={task: 1.0},
        cache_clips=ALL_CLIPS,
        sampling={"num_decoding_steps": 50, "guidance_scale": guidance_scale},
        protocol=protocol,
    )


SETTINGS = (("L", 128), ("L", 256), ("XL", 256))
RECIPES: dict[str, Callable[[], ModelRecipe]] = {
    **{f"far-{size}-ucf101-{side}": partial(ucf101, size, side, False) for size, side in SETTINGS},
    **{f"far-{size}-ucf101-{side}-cond": partial(ucf101, size, side, True) for size, side in SETTINGS},
    "far-B-ucf101-64": ucf101_prediction,
    "far-B-bair": bair,
    **{f"far-{size}-{name}": partial(world, name) for name, (size, _, _) in WORLDS.items()},
}
