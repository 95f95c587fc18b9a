"""NOVA's own recipes (arXiv 2412.14169 §4.1 and appendix A): text to image, then text to video from those weights.

Captions are the text files beside images and videos of a folder (`--data.path`); latents and text features are cached
once. `--tokenizer` names the folder of a published autoencoder and `--text-encoder` that of Phi-2. These recipes have
not been run to their end here.

Cost as published: 127 A100 days for the images at 512 pixels and 342 with video; 267, 320 and 608 for 0.3B, 0.6B and
1.4B at 1024 pixels. Departures from the scripts: latents are cached as means instead of being drawn again every epoch,
the averaged weights start at once, and one caption is kept per clip.
"""

from collections.abc import Callable
from functools import partial

from mutoscope.data.sources.images import ImagesData
from mutoscope.data.sources.recorded_data import FolderData
from mutoscope.models.nova import IMAGE_SIZES, NOVAConfig
from mutoscope.training.config import LoopConfig, ModelRecipe, OptimConfig

ALL_CLIPS = 10**9  # more than there are: a finite source ends the token cache at its last clip
OPTIM = OptimConfig(1e-4, 0.9, 0.95, weight_decay=0.02, decay_all=True, schedule="constant")


def images(size: str) -> ModelRecipe:
    """Text to image at 1024 pixels: 30,000 updates of 1,024 images, SDXL's autoencoder.

    Published GenEval: 0.67 (0.3B), 0.69 (0.6B), 0.71 (1.4B); DPG-Bench 80.60, 82.25, 83.01.
    """
    return ModelRecipe(
        name=f"nova-{size}-1024",
        tokenizer="runs/sdxl-vae",
        data=ImagesData(num_frames=1, height=1024, width=1024),
        model=NOVAConfig.paper(size),
        optim=OPTIM,
        loop=LoopConfig(30_000, 1024, accumulation=8, ema_decay=0.98, ema_every=100, autocast="bf16"),
        task_weights={"text-conditional": 1.0},
        cache_clips=ALL_CLIPS,
        sampling={"num_decoding_steps": 64, "num_diffusion_steps": 25, "guidance_scale": 5.0},
        text_encoder="runs/phi-2",
        frozen=("text.norm", "time_embedding", "temporal_encoder.patch_embedding"),
        protocol="geneval",
    )


def videos() -> ModelRecipe:
    """Text to video, 33 frames of 480×768 at every second frame: 60,000 updates of 384 clips, Open-Sora Plan's VAE.

    Meant to start from the weights of a text-to-image run (`--start-from`). Published VBench total: 78.48, with
    rewritten prompts 80.12.
    """
    return ModelRecipe(
        name="nova-0.6B-video",
        tokenizer="runs/osp-vae",
        data=FolderData(num_frames=33, height=480, width=768, frame_stride=2, fps=12),
        model=NOVAConfig(),
        optim=OPTIM,
        loop=LoopConfig(60_000, 384, accumulation=8, ema_decay=0.97, ema_every=100, autocast="bf16"),
        task_weights={"text-conditional": 1.0},
        cache_clips=ALL_CLIPS,
        sampling={"num_decoding_steps": 128, "num_diffusion_steps": 25, "guidance_scale": 7.0},
        text_encoder="runs/phi-2",
        motion=True,
        frozen=("text.norm", "flow_embedding", "fps_embedding"),
        protocol="vbench",
    )


RECIPES: dict[str, Callable[[], ModelRecipe]] = {
    **{f"nova-{size}-1024": partial(images, size) for size in IMAGE_SIZES},
    "nova-0.6B-video": videos,
}
