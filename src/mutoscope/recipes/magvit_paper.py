"""MAGVIT's own recipes: every dataset and size of arXiv 2212.05199 (§4.1, appendix B.2, Tab. 8 and 9).

A recipe is named after what it trains and on what: `magvit-vq-b-ucf101` is the tokenizer, `magvit-b-ucf101` the
transformer on its tokens. `--data.path` names a copy of the dataset (docs/datasets.md). These recipes have not been
run to their end here; the published figures of each dataset are listed with it for comparison.

Tokenizers see random windows and crops of every video, as in the paper. Transformers learn from tokens encoded once, of
`windows` × `crops` clips per video (BAIR: all 15 windows, also mirrored).

Numbers of updates follow the released code: floor(videos / batch) updates per epoch. The ImageNet tokenizer is the one
recipe whose length was never published; ours is a choice.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from mutoscope.data.sources.datasets.source import DatasetData, ImagenetData, VideoSetKind
from mutoscope.layers.condition_regions import TASKS
from mutoscope.models.magvit import MagvitConfig
from mutoscope.tokenizers.discriminator import DiscriminatorConfig
from mutoscope.tokenizers.vq3d import VQ3DConfig
from mutoscope.training.config import (
    AdversarialConfig,
    LoopConfig,
    ModelRecipe,
    OptimConfig,
    Options,
    TokenizerRecipe,
)

Size = Literal["B", "L", "H"]
EIGHT_TASKS = tuple(task for task in TASKS if not task.startswith("class-conditional"))
ALL_CLIPS = 10**9  # more than there are: a finite source ends the token cache at its last clip
IMAGENET_IMAGES, IMAGENET_EPOCHS = 1_281_167, 100


@dataclass(frozen=True)
class PaperDataset:
    """One row of the paper's tables.

    kind: the dataset. windows, crops, mirrored: clips of a video that a transformer learns from; tokenizers mirror
      clips too (the released code mirrors BAIR only).
    epochs: of the tokenizers B and L, then of the transformers B and L.
    sampling: options of the sampler that differ from 12 steps, cosine, choice temperature 4.5.
    published: FVD of B and L by `protocol`.
    """

    kind: VideoSetKind
    num_videos: int
    side: int
    epochs: tuple[int, int, int, int]
    tasks: tuple[str, ...]
    protocol: str
    published: str
    num_classes: int = 0
    fps: int = 25
    sampling: Options | None = None
    context_frames: int = 1
    latent_context_frames: int = 1
    windows: int = 1
    crops: int = 1
    mirrored: bool = False


DATASETS = {
    "ucf101": PaperDataset(
        "ucf101", 9_537, 128, (500, 2000, 2000, 2000), ("class-conditional",), "ucf101-magvit",
        "B 159 ± 2 (IS 83.6), L 76 ± 2 (IS 89.3)", num_classes=101, windows=16, crops=3,
    ),
    "bair": PaperDataset(
        "bair", 43_264, 64, (400, 800, 400, 800), ("frame-prediction",), "bair-frame-prediction-debiased",
        "B 76 (debiased 48), L 62 (debiased 31)", fps=10, windows=15, mirrored=True,
    ),
    "bair-mt8": PaperDataset(
        "bair", 43_264, 64, (400, 800, 1200, 1600), EIGHT_TASKS, "bair-multi-task",
        "mean over eight tasks, debiased: B 32.8, L 22.8", fps=10, windows=15, mirrored=True,
    ),
    "kinetics600": PaperDataset(
        "kinetics600", 384_000, 128, (45, 180, 180, 360), ("frame-prediction",), "kinetics600-frame-prediction",
        "B 24.5 ± 0.9, L 9.9 ± 0.3", sampling={"schedule": "uniform", "choice_temperature": 7.5},
        context_frames=5, latent_context_frames=2, windows=2,
    ),
    "ssv2-mt10": PaperDataset(
        "ssv2", 169_000, 128, (135, 400, 720, 1440), TASKS, "ssv2-multi-task",
        "mean over ten tasks: B 43.4, L 27.3", num_classes=174, fps=12, windows=2,
    ),
    "nuscenes": PaperDataset(
        "nuscenes", 5_400, 128, (1280, 5120, 2560, 10240), ("frame-prediction",),
        "nuscenes-frame-prediction", "B 29.3, L 20.6", fps=12, windows=16, crops=3,
    ),
    "objectron": PaperDataset(
        "objectron", 14_400, 128, (1000, 2000, 1000, 2000), ("frame-interpolation",),
        "objectron-frame-interpolation", "L 26.7", fps=30, windows=16,
    ),
}  # fmt: skip


def updates(num_videos: int, batch_size: int, epochs: int) -> int:
    return num_videos // batch_size * epochs


def tokenizer(dataset: str, size: Size) -> TokenizerRecipe:
    """The 3D-VQ of a dataset, with adversarial training: Adam (0, 0.99), rate 1e-4, one epoch of warm-up, one cosine.

    LeCam stays off as in every released configuration (the paper uses it and gives no weight); the perceptual term
    needs `--adversarial.perceptual-weights FILE`. UCF-101 and BAIR were inflated from a 2D-VQ trained on ImageNet:
    `--start-from FOLDER` (from scratch B reaches 127 instead of 58 FVD in reconstruction, Tab. 7).
    Cost as published: B 0.41 updates/s on 16 TPUv2 chips, L 0.56 on 32 TPUv4 chips.
    """
    row = DATASETS[dataset]
    width: Literal["B", "L"] = "B" if size == "B" else "L"  # there is no published H tokenizer
    resolution: Literal[64, 128] = 64 if row.side == 64 else 128
    batch_size = 128 if width == "B" else 256
    per_epoch = row.num_videos // batch_size
    return TokenizerRecipe(
        name=f"magvit-vq-{width.lower()}-{dataset}",
        data=replace(_data(row), random_crops=True),
        tokenizer=VQ3DConfig.paper(width, resolution),
        optim=OptimConfig(1e-4, beta1=0.0, beta2=0.99, warmup_steps=per_epoch),
        loop=LoopConfig(per_epoch * row.epochs[width == "L"], batch_size, ema_decay=0.999),
        adversarial=AdversarialConfig(DiscriminatorConfig.paper(width, resolution)),
        protocol=row.protocol,
    )


def transformer(dataset: str, size: Size) -> ModelRecipe:
    """The transformer of a dataset: AdamW (0.9, 0.96), decay 0.045, clipping at 1, 5,000 updates of warm-up, batch 256.

    A model of one task has no task token; several tasks share the model through it, one task per batch. The paper
    shows H without a recipe: its length here is L's.
    Cost as published: B 1.24 updates/s on 16 TPUv2 chips, L 2.70 on 32 TPUv4 chips.
    """
    row, short = DATASETS[dataset], size.lower()
    multi = {"num_special_tokens": 16, "task_token": True} if len(row.tasks) > 1 else {}
    vq = "b" if size == "B" else "l"
    return ModelRecipe(
        name=f"magvit-{short}-{dataset}",
        tokenizer=f"runs/magvit-vq-{vq}-{dataset}",
        data=replace(_data(row), windows=row.windows, crops=row.crops),
        model=MagvitConfig.paper(
            size,
            num_classes=row.num_classes,
            tasks=row.tasks,
            context_frames=row.context_frames,
            latent_context_frames=row.latent_context_frames,
            **multi,
        ),
        optim=OptimConfig(1e-4, 0.9, 0.96, weight_decay=0.045, warmup_steps=5_000),
        loop=LoopConfig(updates(row.num_videos, 256, row.epochs[2 if size == "B" else 3]), 256, clip_norm=1.0),
        task_weights=dict.fromkeys(row.tasks, 1.0),
        cache_clips=ALL_CLIPS,
        sampling=row.sampling or {},
        protocol=row.protocol,
    )


def imagenet_2d(size: Size) -> TokenizerRecipe:
    """The 2D-VQ that UCF-101 and BAIR start from: the same network on single frames, 128×128.

    Neither epochs, batch nor crops were published; 100 epochs of batches of 256 in random crops are our choice.
    """
    width: Literal["B", "L"] = "B" if size == "B" else "L"
    discriminator = replace(DiscriminatorConfig.paper(width), clip_shape=(1, 128, 128), per_frame=True)
    per_epoch = IMAGENET_IMAGES // 256
    return TokenizerRecipe(
        name=f"magvit-2d-vq-{width.lower()}-imagenet",
        data=ImagenetData(num_frames=1, height=128, width=128, random_crops=True),
        tokenizer=VQ3DConfig.paper(width, per_frame=True),
        optim=OptimConfig(1e-4, beta1=0.0, beta2=0.99, warmup_steps=per_epoch),
        loop=LoopConfig(per_epoch * IMAGENET_EPOCHS, 256, ema_decay=0.999),
        adversarial=AdversarialConfig(discriminator),
        protocol="imagenet-reconstruction",
    )


def _data(row: PaperDataset) -> DatasetData:
    """16 frames in a row, the shorter side of the video scaled to that of the clip."""
    return DatasetData(
        kind=row.kind, num_frames=16, height=row.side, width=row.side, fps=row.fps, mirrored=row.mirrored
    )


def _recipes() -> dict[str, Callable[[], TokenizerRecipe | ModelRecipe]]:
    found: dict[str, Callable[[], TokenizerRecipe | ModelRecipe]] = {}
    for dataset in DATASETS:
        for size in ("B", "L"):
            found[f"magvit-vq-{size.lower()}-{dataset}"] = partial(tokenizer, dataset, size)
        for size in ("B", "L", "H"):
            found[f"magvit-{size.lower()}-{dataset}"] = partial(transformer, dataset, size)
    for size in ("B", "L"):
        found[f"magvit-2d-vq-{size.lower()}-imagenet"] = partial(imagenet_2d, size)
    return found


RECIPES = _recipes()
