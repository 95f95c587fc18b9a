"""Tiny runs of every family and tokenizer, alone or under torchrun:

python -m training.split_runs OUT ACCUMULATION STOP_AFTER NUM_STEPS [NAME ...]

STOP_AFTER: updates after which the run gets SIGTERM; 0: it runs to its end. A run with checkpoints is resumed.
"""

import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mutoscope.data.base import ClipSource
from mutoscope.data.sources.shapes.source import ShapesData
from mutoscope.evaluation.networks.shapes_features import ShapesFeatures, ShapesFeaturesConfig
from mutoscope.families.magi import MAGI_FAMILY
from mutoscope.families.magvit import mix_tasks
from mutoscope.models.magi import MAGI
from mutoscope.models.magvit import Magvit, MagvitConfig
from mutoscope.models.magvit.baselines import MagvitAR, MagvitARConfig, PrefixMagvit
from mutoscope.models.nova import NOVA
from mutoscope.models.par import PAR, PARConfig
from mutoscope.recipes.shapes import magi_shapes
from mutoscope.runs.rollouts import own_context
from mutoscope.tokenizers.causal3d import Causal3D, Causal3DConfig
from mutoscope.tokenizers.discriminator import DiscriminatorConfig, PatchDiscriminator, PatchDiscriminatorConfig
from mutoscope.tokenizers.vq2d import VQ2D, VQ2DConfig
from mutoscope.tokenizers.vq3d import VQ3D, VQ3DConfig
from mutoscope.training.checkpoint import checkpoint_paths
from mutoscope.training.config import AdversarialConfig, LoopConfig, OptimConfig, RolloutConfig, TokenizerRecipe
from mutoscope.training.tokenizer_trainer import train_tokenizer
from mutoscope.training.trainer import train_model
from tiny_magi import tiny_config as magi_config
from tiny_nova import tiny_config as nova_config
from training.fakes import features_recipe

BATCH, STEPS = 8, 6
LOOP = LoopConfig(
    STEPS,
    BATCH,
    log_every=1,
    sample_every=100,
    checkpoint_every=100,
    num_workers=0,
    clip_norm=1.0,
    ema_decay=0.9,
    validation_share=0.1,
    validate_every=3,
    validation_clips=4,
)
OPTIM = OptimConfig(1e-3, beta2=0.99, weight_decay=0.05, warmup_steps=1)
# The entropy term's temperature of 0.01 and nearest codes that change amplify rounding; with the papers' rate less so.
TOKENIZER_OPTIM = replace(OPTIM, peak_learning_rate=1e-4)


class Clips(ClipSource[Any]):
    """Endless clips of named fields: clip i is drawn by a generator seeded with i."""

    num_clips = None

    def __init__(self, stop_after: int, **fields: Callable[[torch.Generator], Tensor]):
        self.stop_after, self.drawn = stop_after, fields

    def __getitem__(self, indices: Sequence[int]) -> dict[str, Any]:
        stop_at(self.stop_after, indices)
        generators = [torch.Generator().manual_seed(int(i)) for i in indices]
        clips: dict[str, Any] = {n: torch.stack([draw(g) for g in generators]) for n, draw in self.drawn.items()}
        if "condition" in clips:
            clips["conditions"] = dict.fromkeys(("frame-prediction", "inpaint-central"), clips.pop("condition"))
        if "attributes" in clips:
            clips["attributes"] = self._attributes(clips.pop("attributes"))
        return clips

    @staticmethod
    def _attributes(seeds: Tensor) -> dict[str, Tensor]:
        sizes = ShapesFeaturesConfig().head_sizes()
        choices = {name: seeds % size for name, size in sizes.items()}
        choices["num_objects"] = seeds % sizes["num_objects"] + 1
        presences = ("shapes_present", "colors_present")
        return {n: nn.functional.one_hot(c, sizes[n]) if n in presences else c for n, c in choices.items()}


def stop_at(stop_after: int, indices: Sequence[int]) -> None:
    """Sends SIGTERM to rank 0 as it reads the first clip of the last update before the stop."""
    if stop_after and indices[0] == BATCH * (stop_after - 1):
        signal.raise_signal(signal.SIGTERM)


def whole(high: int, *shape: int) -> Callable[[torch.Generator], Tensor]:
    return lambda g: torch.randint(high, shape, generator=g)


def normal(*shape: int) -> Callable[[torch.Generator], Tensor]:
    return lambda g: torch.randn(shape, generator=g)


def pixels(*shape: int) -> Callable[[torch.Generator], Tensor]:
    return lambda g: torch.randint(256, (*shape, 3), generator=g, dtype=torch.uint8)


def fresh(network: Callable[[], nn.Module]) -> Any:
    torch.manual_seed(0)
    return network()


# ---------------------------------------------------------------------------------------------------------------- runs

Options = Mapping[str, Any]
SHAPE = (2, 4, 4)
MAGVIT = MagvitConfig(
    2, 32, 2, 48, 20, 5, 16, SHAPE, tasks=("frame-prediction", "class-conditional", "inpaint-central"),
    task_token=True, dropout=0.1, label_dropout=0.2, class_loss=0.5,
)  # fmt: skip
PAR_CONFIG = PARConfig(
    2, 16, 2, codebook_size=20, latent_shape=SHAPE, num_parallel=4, num_classes=5, mlp_size=24, attention_dropout=0.1,
    drop_path=0.2,
)  # fmt: skip


def run_model(name: str, network: Callable[[], nn.Module], clips: Clips, options: Options, **more: Any) -> None:
    out, loop = options["out"] / name, options["loop"]
    resume = bool(checkpoint_paths(out / "checkpoints"))
    recipe = replace(features_recipe(), optim=OPTIM, loop=loop)
    train_model(fresh(network), recipe, clips, out, resume=resume, device="cpu", **more)


def run_tokenizer(
    name: str,
    network: Any,
    size: tuple[int, ...],
    options: Options,
    adversarial: AdversarialConfig | None = None,
    discriminator: nn.Module | None = None,
) -> None:
    out, loop = options["out"] / name, options["loop"]
    resume = bool(checkpoint_paths(out / "checkpoints"))
    tokenizer = fresh(network)
    recipe = TokenizerRecipe("tiny", ShapesData(), tokenizer.config, TOKENIZER_OPTIM, loop, adversarial)
    clips = Clips(options["stop_after"], video=pixels(*size))
    train_tokenizer(tokenizer, recipe, clips, out, discriminator=discriminator, resume=resume, device="cpu")


def magvit(options: Options) -> None:
    fields = {"tokens": whole(20, *SHAPE), "label": whole(5), "condition": whole(20, *SHAPE)}
    prepare = mix_tasks(MAGVIT, dict.fromkeys(MAGVIT.tasks, 1.0))
    run_model("magvit", lambda: Magvit(MAGVIT), Clips(options["stop_after"], **fields), options, prepare_batch=prepare)


def magvit_baselines(options: Options) -> None:
    clips = Clips(options["stop_after"], tokens=whole(20, *SHAPE), label=whole(5), condition_tokens=whole(20, *SHAPE))
    config = MagvitARConfig(2, 32, 2, 48, codebook_size=20, num_classes=5, latent_shape=SHAPE)
    run_model("magvit-ar", lambda: MagvitAR(config), clips, options)
    prefix = replace(MAGVIT, task_token=False, num_special_tokens=1, tasks=("class-conditional",), class_loss=0.0)
    run_model("magvit-prefix", lambda: PrefixMagvit(prefix), clips, options)


def par(options: Options) -> None:
    clips = Clips(options["stop_after"], tokens=whole(20, *SHAPE), label=whole(5))
    run_model("par", lambda: PAR(PAR_CONFIG), clips, options)


def nova(options: Options) -> None:
    clips = Clips(options["stop_after"], tokens=normal(3, 4, 8, 8), label=whole(3))
    run_model("nova", lambda: NOVA(nova_config(text_size=None, num_classes=3)), clips, options)


MAGI_FIELDS = {"label": whole(3), "actions": normal(5, 2), "length": lambda g: 3 + whole(3)(g)}


def magi(options: Options) -> None:
    clips = Clips(options["stop_after"], tokens=normal(3, 5, 4, 6), **MAGI_FIELDS)
    run_model("magi", lambda: MAGI(magi_config(dropout=0.1, history_dropout=0.2)), clips, options)


def magi_discrete(options: Options) -> None:
    config = magi_config(dropout=0.1, codebook_parts=(8, 4), latent_shape=(5, 4, 6))
    clips = Clips(options["stop_after"], tokens=whole(32, 5, *config.grid), **MAGI_FIELDS)
    run_model("magi-discrete", lambda: MAGI(config), clips, options)


def magi_rollouts(options: Options) -> None:
    recipe = replace(magi_shapes(), model=magi_config(), rollouts=RolloutConfig(1.0, 0, 3, 2, 2), sampling={})
    clips = Clips(options["stop_after"], tokens=normal(3, 5, 4, 6), label=whole(3), actions=normal(5, 2))
    model = fresh(lambda: MAGI(magi_config()))
    run_model("magi-rollouts", lambda: model, clips, options, corrupt=own_context(recipe, MAGI_FAMILY, model))


def features(options: Options) -> None:
    config = ShapesFeaturesConfig(8, (8, 8), ((1, 1), (2, 2)), 8)
    clips = Clips(options["stop_after"], video=pixels(8, 8, 8), attributes=whole(1000))
    run_model("features", lambda: ShapesFeatures(config), clips, options)


def tokenizer_3d(options: Options) -> None:
    config = VQ3DConfig(
        4, (1, 2), 1, (True,), embedding_dim=4, codebook_size=8, num_groups=2, padding="zero", entropy_cost=0.1
    )
    adversarial = AdversarialConfig(DiscriminatorConfig(4, (2,), (2, 4, 4)), lecam_weight=0.5, lecam_decay=0.5)
    run_tokenizer("vq3d-adversarial", lambda: VQ3D(config), (2, 4, 4), options, adversarial)


VQ2D_CONFIG = VQ2DConfig(4, (1, 2), 1, 4, 4, 8, num_groups=2, entropy_cost=0.1)
PATCHES = PatchDiscriminatorConfig(4, 1)
HINGE = AdversarialConfig(PATCHES, gan_loss="hinge", r1_weight=0.0)


def tokenizer_2d(options: Options) -> None:
    run_tokenizer("vq2d-patches", lambda: VQ2D(VQ2D_CONFIG), (2, 8, 8), options, HINGE)


def tokenizer_2d_without_norms(options: Options) -> None:
    """The same with nothing in the discriminator that depends on the clips beside a clip."""
    discriminator = fresh(lambda: PatchDiscriminator(PATCHES))
    for i, layer in enumerate(discriminator):
        if isinstance(layer, nn.BatchNorm2d):
            discriminator[i] = nn.Identity()
    run_tokenizer("vq2d-without-norms", lambda: VQ2D(VQ2D_CONFIG), (2, 8, 8), options, HINGE, discriminator)


def tokenizer_causal(options: Options) -> None:
    sizes = Causal3DConfig(4, (1, 2), 1, (True,), num_groups=2)
    lookup_free = replace(sizes, bottleneck="lfq", num_bits=4, entropy_cost=0.1)
    run_tokenizer("causal-lfq", lambda: Causal3D(lookup_free), (3, 4, 4), options)
    gaussian = replace(sizes, bottleneck="kl", latent_channels=3, kl_cost=0.1)
    run_tokenizer("causal-kl", lambda: Causal3D(gaussian), (3, 4, 4), options)


RUNS: dict[str, Callable[[Options], None]] = {
    "magvit": magvit,
    "magvit-baselines": magvit_baselines,
    "par": par,
    "nova": nova,
    "magi": magi,
    "magi-discrete": magi_discrete,
    "magi-rollouts": magi_rollouts,
    "features": features,
    "vq3d": tokenizer_3d,
    "vq2d": tokenizer_2d,
    "causal": tokenizer_causal,
}
BY_NAME: dict[str, Callable[[Options], None]] = {"vq2d-without-norms": tokenizer_2d_without_norms}
ONE_MICRO_BATCH = ("vq2d-patches",)  # a PatchGAN's batch norms see one micro-batch


def main(out: Path, accumulation: int, stop_after: int = 0, names: Sequence[str] = (), num_steps: int = STEPS) -> None:
    loop = replace(LOOP, accumulation=accumulation, num_steps=num_steps)
    for name in names or RUNS:
        (RUNS | BY_NAME)[name]({"out": out, "loop": loop, "stop_after": stop_after})


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[5:], int(sys.argv[4]))
