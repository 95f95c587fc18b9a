"""LlamaGen's and PAR's own recipes (arXiv 2406.06525, 2412.15119).

`vq16-imagenet` is the image tokenizer. `llamagen-XL-imagenet`, `par-XL-4x-imagenet` ... are the transformers on its
tokens, `par-XL-4x-ucf101` ... those on clips, whose tokenizer `causal-ucf101` is our own: the paper's was never
released. `--data.path` names the folder of images or videos. These recipes have not been run to their end here.

Two departures from the official scripts, both towards the paper: a warm-up and one cosine, which the scripts lack, and
attention dropout of 0.1.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from mutoscope.data.sources.datasets.source import DatasetData, ImagenetData
from mutoscope.models.par import PARConfig
from mutoscope.tokenizers.causal3d import Causal3DConfig
from mutoscope.tokenizers.discriminator import DiscriminatorConfig, PatchDiscriminatorConfig
from mutoscope.tokenizers.vq2d import VQ2DConfig
from mutoscope.training.config import (
    AdversarialConfig,
    LoopConfig,
    ModelRecipe,
    OptimConfig,
    TokenizerRecipe,
)

IMAGENET_IMAGES, UCF101_CLIPS = 1_281_167, 9_537
# The paper's 8 frames per second: every third of 25.
UCF101 = DatasetData(kind="ucf101", num_frames=17, height=128, width=128, frame_stride=3, fps=8)
ALL_CLIPS = 10**9  # more than there are: a finite source ends the token cache at its last clip

# guidance scale of the published evaluations
GUIDANCE = {
    ("B", 1): 2.0, ("L", 1): 2.0, ("XL", 1): 1.75, ("XXL", 1): 1.75, ("3B", 1): 1.65,
    ("L", 4): 1.60, ("XL", 4): 1.50, ("XXL", 4): 1.435, ("3B", 4): 1.345, ("XXL", 16): 1.435, ("3B", 16): 1.5,
}  # fmt: skip


def vq16_imagenet() -> TokenizerRecipe:
    """VQ-16 with adversarial training (PatchGAN) from update 20,000 on; batch 128, 40 epochs, 256×256.

    The perceptual term, LPIPS, needs two files: `--adversarial.perceptual-weights` (torchvision's VGG-16) and
    `--adversarial.perceptual-heads` (LPIPS' `vgg.pth`). Without them the run warns and has no perceptual loss.
    Published: rFID 2.19 at 256 pixels, 0.94 at 384.
    """
    per_epoch = IMAGENET_IMAGES // 128
    return TokenizerRecipe(
        name="vq16-imagenet",
        data=ImagenetData(num_frames=1, height=256, width=256, random_crops=True),
        tokenizer=VQ2DConfig.paper(16),
        optim=OptimConfig(1e-4, beta1=0.9, beta2=0.95),
        loop=LoopConfig(40 * per_epoch, 128, clip_norm=1.0, autocast="bf16"),
        adversarial=AdversarialConfig(
            PatchDiscriminatorConfig(),
            gan_loss="hinge",
            gan_weight=0.5,
            discriminator_weight=0.25,  # the hinge's half, times the same 0.5
            start_step=20_000,
            r1_weight=0.0,
            perceptual_weight=1.0,
        ),
        protocol="imagenet-reconstruction",
    )


def imagenet(size: str, num_parallel: int) -> ModelRecipe:
    """A transformer on ten crops per image of 384 pixels; 300 epochs, warm-up 15, batch 256 (XXL and 3B: 512).

    Published FID at 256 pixels: LlamaGen L 3.07, XL 2.62, XXL 2.34, 3B 2.18; PAR-4x L 3.76, XL 2.61, XXL 2.35, 3B 2.29;
    PAR-16x XXL 3.02, 3B 2.88.
    """
    large = size in ("XXL", "3B")
    batch_size = 512 if large else 256
    per_epoch = IMAGENET_IMAGES // batch_size
    return ModelRecipe(
        name=recipe_name(size, num_parallel, "imagenet"),
        tokenizer="runs/vq16-imagenet",
        data=ImagenetData(num_frames=1, height=384, width=384, ten_crops=True),
        model=PARConfig.paper(size, num_parallel=num_parallel, attention_dropout=0.1),
        optim=_optim(2e-4 if large else 1e-4, 15 * per_epoch),
        loop=LoopConfig(300 * per_epoch, batch_size, clip_norm=1.0, autocast="bf16"),
        task_weights={"class-conditional": 1.0},
        cache_clips=ALL_CLIPS,
        sampling={"guidance_scale": GUIDANCE.get((size, num_parallel), 1.5)},
        protocol="imagenet",
    )


def causal_ucf101() -> TokenizerRecipe:
    """17 frames of 128×128 to 5×16×16 tokens of 65,536 codes (LFQ). Sizes and length are our choice.

    Published for the authors' own, unreleased tokenizer of that grid: reconstruction FVD 32.
    """
    per_epoch = UCF101_CLIPS // 128
    return TokenizerRecipe(
        name="causal-ucf101",
        data=replace(UCF101, random_crops=True),
        tokenizer=Causal3DConfig(),
        optim=OptimConfig(1e-4, beta1=0.0, beta2=0.99, warmup_steps=per_epoch),
        loop=LoopConfig(2000 * per_epoch, 128, ema_decay=0.999),
        adversarial=AdversarialConfig(DiscriminatorConfig(clip_shape=(17, 128, 128))),
        protocol="ucf101-reconstruction",
    )


def ucf101(num_parallel: int) -> ModelRecipe:
    """Clips of 17 frames; 3,000 epochs, warm-up 150, batch 256; sampled with guidance 1.15 and top-k 8,000.

    Published FVD: 1x 94.1 (1,280 steps), 4x 99.5 (323), 16x 103.4 (95), with 792M parameters, a number that no listed
    size reaches with 65,536 codes; XL has 899M here.
    """
    per_epoch = UCF101_CLIPS // 256
    return ModelRecipe(
        name=recipe_name("XL", num_parallel, "ucf101"),
        tokenizer="runs/causal-ucf101",
        data=replace(UCF101, windows=16),
        model=PARConfig.paper(
            "XL",
            codebook_size=65_536,
            latent_shape=(5, 16, 16),
            num_parallel=num_parallel,
            num_classes=101,
            attention_dropout=0.1,
        ),
        optim=_optim(1e-4, 150 * per_epoch),
        loop=LoopConfig(3000 * per_epoch, 256, clip_norm=1.0, autocast="bf16"),
        task_weights={"class-conditional": 1.0},
        cache_clips=ALL_CLIPS,
        sampling={"guidance_scale": 1.15, "top_k": 8000},
        protocol="ucf101-par",
    )


def recipe_name(size: str, num_parallel: int, dataset: str) -> str:
    if num_parallel == 1 and dataset == "imagenet":
        return f"llamagen-{size}-{dataset}"
    return f"par-{size}-{num_parallel}x-{dataset}"


def _optim(peak: float, warmup_steps: int) -> OptimConfig:
    return OptimConfig(peak, 0.9, 0.95, weight_decay=0.05, warmup_steps=warmup_steps, decay_embeddings=True)


def _recipes() -> dict[str, Callable[[], TokenizerRecipe | ModelRecipe]]:
    found: dict[str, Callable[[], TokenizerRecipe | ModelRecipe]] = {
        "vq16-imagenet": vq16_imagenet,
        "causal-ucf101": causal_ucf101,
    }
    for size in ("B", "L", "XL", "XXL", "3B"):
        for n in (1, 4, 16):
            found[recipe_name(size, n, "imagenet")] = partial(imagenet, size, n)
    for n in (1, 4, 16):
        found[recipe_name("XL", n, "ucf101")] = partial(ucf101, n)
    return found


RECIPES = _recipes()
