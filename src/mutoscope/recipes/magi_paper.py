"""MAGI's own recipes (arXiv 2501.12389 §4.1): UCF-101 and Kinetics-600 at 256 pixels.

The paper states learning rates, batches, epochs, data and tokenizers, and that the rest follows MAR (arXiv 2406.11838),
from which optimiser, warm-up, clipping, averaging, dropout and mask ratios come. Sizes are MAR's, as the paper names
none. `--tokenizer` names the folder of a published autoencoder. These recipes have not been run to their end here.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

from mutoscope.data.base import MAX_INTERVAL
from mutoscope.data.sources.datasets.source import DatasetData
from mutoscope.models.magi import MAGIConfig
from mutoscope.training.config import LoopConfig, ModelRecipe, OptimConfig

ALL_CLIPS = 10**9  # more than there are: a finite source ends the token cache at its last clip
Setting = Literal["ucf101", "ucf101-cosmos", "kinetics600"]
# name -> folder, frames of a clip, channels and shape of its latents
TOKENIZERS: dict[Setting, tuple[str, int, int, tuple[int, int, int]]] = {
    "ucf101": ("runs/sd-vae", 16, 4, (16, 32, 32)),
    "ucf101-cosmos": ("runs/cosmos-vae", 17, 16, (5, 32, 32)),
    "kinetics600": ("runs/omnitokenizer-vae", 17, 8, (5, 32, 32)),
}
# name -> learning rate, clips per update, updates, updates of warm-up (100 epochs; a tenth of the run)
SCHEDULES = {"ucf101": (1e-4, 128, 104_000, 7_450), "kinetics600": (2e-4, 256, 281_000, 28_100)}


def magi(setting: Setting, size: str, teacher_forcing: Literal["complete", "masked"] = "complete") -> ModelRecipe:
    """1,400 epochs of UCF-101's 9,537 training clips, or 150 of Kinetics-600's 480,000.

    Published FVD: UCF-101 unconditional 420.6 (Stable Diffusion's autoencoder) and 297.8 (Cosmos), 2,048 clips;
    Kinetics-600 5-frame prediction 11.5, 50,000 clips at 64 pixels. First-frame prediction on UCF-101 is about 23 %
    better with complete than with masked teacher forcing.
    """
    tokenizer, frames, channels, shape = TOKENIZERS[setting]
    rate, batch, updates, warmup = SCHEDULES[setting.removesuffix("-cosmos")]
    suffix = "" if teacher_forcing == "complete" else "-mtf"
    return ModelRecipe(
        name=f"magi-{size}-{setting}{suffix}",
        tokenizer=tokenizer,
        data=DatasetData(
            kind="kinetics600" if setting == "kinetics600" else "ucf101",
            num_frames=frames,
            height=256,
            width=256,
            fps=25,
            max_interval=MAX_INTERVAL,
        ),
        model=MAGIConfig.paper(
            size,
            latent_channels=channels,
            latent_shape=shape,
            teacher_forcing=teacher_forcing,
        ),
        optim=OptimConfig(
            rate, 0.9, 0.95, weight_decay=0.02, warmup_steps=warmup, decay_tensors=True, schedule="constant"
        ),
        loop=LoopConfig(updates, batch, accumulation=4, ema_decay=0.9999, clip_norm=3.0, autocast="bf16"),
        task_weights={"unconditional": 1.0, "frame-prediction": 1.0},
        cache_clips=ALL_CLIPS,
        sampling={"num_decoding_steps": 64, "num_diffusion_steps": 100, "temperature": 0.95},
        protocol="kinetics600-frame-prediction" if setting == "kinetics600" else "ucf101-first-frame",
    )


RECIPES: dict[str, Callable[[], ModelRecipe]] = {
    **{f"magi-{size}-{s}": partial(magi, s, size) for s in TOKENIZERS for size in ("B", "L", "H")},
    "magi-B-ucf101-mtf": partial(magi, "ucf101", "B", "masked"),
}
