"""Recipes on the synthetic dataset "shapes": they train on two CPU cores, without any download."""

from dataclasses import replace
from functools import partial
from typing import Literal

from mutoscope.data.sources.shapes.source import ShapesData
from mutoscope.layers.condition_regions import TASKS
from mutoscope.layers.shortcut import Shortcut
from mutoscope.models.far import FARConfig
from mutoscope.models.magi import MAGIConfig
from mutoscope.models.magvit import MagvitConfig
from mutoscope.models.nova import NOVAConfig
from mutoscope.models.par import PARConfig
from mutoscope.tokenizers.causal3d import Causal3DConfig
from mutoscope.tokenizers.vq3d import VQ3DConfig
from mutoscope.training.config import (
    FeaturesRecipe,
    LoopConfig,
    ModelRecipe,
    OptimConfig,
    TokenizerRecipe,
)

ALL_BUT_MAGIS_HEAD = (
    "token_embedding",
    "mask_token",
    "role_embedding",
    "interval_embedding",
    "noise_embedding",
    "class_embedding",
    "action_embedding",
    "null_action",
    "norm_in",
    "norm_out",
    "blocks",
    "head_position",
)


def shapes_loop(
    num_steps: int, batch_size: int, ema_decay: float, clip_norm: float, recognisable_after: int | None = None
) -> LoopConfig:
    """What the loops of all these recipes have in common: averaged weights that warm up, and held-back clips."""
    return LoopConfig(
        num_steps=num_steps,
        batch_size=batch_size,
        ema_decay=ema_decay,
        ema_warmup=True,
        clip_norm=clip_norm,
        num_workers=0,
        validation_share=0.01,  # of a cache: 160 to 400 clips; the endless dataset of a tokenizer loses none
        recognisable_after=recognisable_after,
    )


def vq_shapes() -> TokenizerRecipe:
    """MAGVIT's 3D-VQ, small: 16x32x32 clips to 8x8x8 tokens from 512 codes (voxels of 2x4x4), no adversarial loss.

    Squared error and the paper's three quantizer terms, with averaged weights as published. Departures from the paper:
    Muon on the kernels (22.6 dB after 400 updates, Adam 20.0) and beta1 0.9 for the rest; a weak entropy term, because
    most tokens of a clip show plain background; one normalisation group (slightly better than 2 and 8 in short runs).

    Cost: 41 minutes on two CPU cores at 2.5 GHz in float32, 13 clips/s.
    Result: PSNR of training batches 18.8 dB after 220 updates, 22.4 after 480, 24.3 after 980, 26.6 after 1,800, 28.6
    after 3,600 and about 30.5 at the end; held-back clips with averaged weights 30.7 dB.
    """
    return TokenizerRecipe(
        name="vq-shapes",
        data=ShapesData(num_frames=16, height=32, width=32),
        tokenizer=VQ3DConfig(
            filters=8,
            channel_multipliers=(2, 3, 8),
            num_res_blocks=1,
            temporal_downsample=(True, False),
            embedding_dim=16,
            codebook_size=512,
            num_groups=1,
            padding="zero",
            entropy_cost=0.005,
        ),
        optim=OptimConfig(1.5e-3, beta1=0.9, beta2=0.99, warmup_steps=100, muon_learning_rate=2.5e-3),
        loop=shapes_loop(num_steps=8_000, batch_size=4, ema_decay=0.998, clip_norm=1.0, recognisable_after=480),
    )


def magvit_shapes() -> ModelRecipe:
    """MAGVIT, small: a transformer of 2.9M parameters on the 512 tokens of `vq-shapes`, all ten tasks.

    One network for all tasks through the task token, one task per batch; class-conditional generation gets five times,
    frame prediction three times and both together twice the share of the others. AdamW (0.9, 0.96) with Muon on the
    matrices, decay 0.045, gradients clipped at 1, warm-up and cosine as published; learning rates are those with the
    lower loss of two in runs of 500 updates. The only dropout is that of a tenth of the labels, which the published
    recipe lacks and guidance needs: a small network sees too few clips to overfit.

    Sampling: guidance 4, temperature 0.8 and choice temperature 30 instead of 4.5, which leaves fewer clips with plain
    background only; guidance 2 and choice temperature 20 for tasks that complete a conditioning region, where more
    guidance costs 1 dB.

    The network also predicts the class from the first frame (class loss), and frame prediction draws the class first:
    otherwise tokens drawn in the same step follow different motions, and the main shape is kept in 0.73 of the clips.

    Cost: half a minute to encode clips and conditions and 5 minutes of training on one H200 in bfloat16
    (`--loop.autocast bf16 --loop.num-workers 3`), 2,400 clips/s. Two CPU cores need two days for as many clips;
    `--loop.batch-size 16 --loop.num-steps 12000 --cache-clips 8000` gives a preview in an afternoon.
    Result: loss on masked tokens 1.8 after 400 updates, 1.65 after 1,000, 1.45 after 2,000, 1.1 after 4,000 and 0.9 at
    the end. The bundled weights were trained without the class loss first and with it for 4,200 more updates of 32
    clips at a fifth of the learning rates, after which 0.95 of the main shapes are classified correctly.
    """
    return ModelRecipe(
        name="magvit-shapes",
        tokenizer="vq-shapes",
        data=ShapesData(num_frames=16, height=32, width=32),
        model=MagvitConfig(
            num_layers=6,
            hidden_size=192,
            num_heads=3,
            mlp_size=768,
            codebook_size=512,
            num_classes=23,
            num_special_tokens=16,
            latent_shape=(8, 8, 8),
            task_token=True,
            dropout=0.0,
            label_dropout=0.1,
            class_loss=0.5,
        ),
        optim=OptimConfig(3e-3, 0.9, 0.96, weight_decay=0.045, warmup_steps=200, muon_learning_rate=6e-3),
        loop=shapes_loop(num_steps=6_000, batch_size=128, ema_decay=0.998, clip_norm=1.0),
        task_weights=dict.fromkeys(TASKS, 1.0)
        | {"class-conditional": 5.0, "frame-prediction": 3.0, "class-conditional-frame-prediction": 2.0},
        cache_clips=30_000,
        sampling={"guidance_scale": 4.0, "choice_temperature": 30.0, "temperature": 0.8, "draw_class": True},
        task_sampling={
            task: {"guidance_scale": 2.0, "choice_temperature": 20.0}
            for task in TASKS
            if not task.startswith("class-conditional") and task != "frame-prediction"
        },
        blend_given=True,
    )


def par_shapes(num_parallel: int) -> ModelRecipe:
    """PAR, small: 1.4M parameters on the 512 tokens of `vq-shapes`, class-conditional, n tokens per step.

    131 steps with n = 4, 47 with n = 16, 512 with n = 1 (LlamaGen). AdamW with Muon on the matrices, warm-up and one
    cosine; the only dropout is that of the label, because a small network sees too few clips to overfit.

    Cost: four minutes with n = 4 on one H200 in bfloat16, 1,300 clips/s. On two CPU cores in float32, 13 clips/s,
    `--loop.batch-size 16 --loop.num-steps 3600` takes 75 minutes and ends at a loss of 0.69.
    Result: loss 1.3 after 400 updates, 0.88 after 1,000, 0.69 after 2,000, 0.58 after 3,000 and 0.51 at the end with
    n = 4, about 0.01 more with n = 16. At a loss of 0.69 the class is recognised in 0.84 of clips. The bundled weights
    had 4,546 updates (n = 4) and 2,828 (n = 16, loss 0.60). Not measured for n = 1.
    """
    return ModelRecipe(
        name=f"par-shapes-{num_parallel}x",
        tokenizer="vq-shapes",
        data=ShapesData(num_frames=16, height=32, width=32),
        model=PARConfig(
            num_layers=6,
            hidden_size=128,
            num_heads=4,
            codebook_size=512,
            latent_shape=(8, 8, 8),
            num_parallel=num_parallel,
            num_classes=23,
            mlp_size=384,
            token_dropout=0.0,
            residual_dropout=0.0,
            mlp_dropout=0.0,
        ),
        optim=OptimConfig(2e-3, 0.9, 0.95, weight_decay=0.05, warmup_steps=200, muon_learning_rate=4e-3),
        loop=shapes_loop(
            num_steps=4_500,
            batch_size=64,
            ema_decay=0.998,
            clip_norm=1.0,
            recognisable_after=None if num_parallel == 1 else 2_000,
        ),
        task_weights={"class-conditional": 1.0},
        cache_clips=30_000,
        sampling={"guidance_scale": 1.5, "temperature": 0.9},
    )


def nova_shapes() -> ModelRecipe:
    """NOVA, small: text to video on the per-frame latents of `vae-shapes`, 16 tokens per frame.

    Captions of the synthetic dataset through a word encoder without weights. AdamW with Muon on the matrices, warm-up
    and one cosine.

    Cost: 5 minutes to encode the clips, then 50 minutes on one CPU core with AMX in bfloat16
    (`--loop.autocast bf16`), 33 clips/s; 26 clips/s on two cores without AMX in float32.
    Result: loss 2.3 after 250 updates, 1.9 after 500, 1.5 after 2,000, 1.2 after 4,000 and 1.15 at the end. For 200
    held-back captions, generated clips show the right colour in 0.98, the right shape in 0.84 and the right motion in
    0.71.
    """
    return ModelRecipe(
        name="nova-shapes",
        tokenizer="vae-shapes",
        data=ShapesData(num_frames=16, height=32, width=32),
        model=NOVAConfig(
            hidden_size=128,
            temporal_layers=3,
            temporal_heads=4,
            spatial_layers=4,
            spatial_heads=4,
            head_layers=3,
            head_size=112,
            latent_channels=4,
            latent_shape=(16, 8, 8),
            num_time_slots=None,
            mixer_rank=24,
            text_size=160,
            text_length=20,
        ),
        optim=OptimConfig(1.5e-3, 0.9, 0.95, weight_decay=0.02, warmup_steps=200, muon_learning_rate=3e-3),
        loop=shapes_loop(num_steps=6_000, batch_size=16, ema_decay=0.998, clip_norm=1.0),
        task_weights={"text-conditional": 1.0},
        cache_clips=16_000,
        sampling={"num_decoding_steps": 8, "num_diffusion_steps": 16, "guidance_scale": 3.0},
        text_encoder="words",
    )


def magi_shapes(teacher_forcing: Literal["complete", "masked"] = "complete") -> ModelRecipe:
    """MAGI, small, or its twin with masked teacher forcing: on the per-frame latents of `vae-shapes`, 16 tokens each.

    Classes, first frames and actions: every second clip is controllable. Frames are 1 to 3 time steps apart, and the
    context is noisy, as in the paper. AdamW with Muon on the matrices, warm-up and one cosine.

    For clips of any length the first frame stays in the window: half of the clips have a temporal gap after it, and the
    first frame stays free of noise, so that later frames can be compared with it. Where clips with a gap are context,
    some of their frames are corrupted (complete teacher forcing only), so that a lost shape can come back. A class is
    hidden in a tenth of the clips, but actions are not: a clip without either is a free one. All context is hidden in a
    tenth, for guidance by history.

    Cost: seven minutes on one H200 in bfloat16, 700 to 1,200 clips/s. On two CPU cores with AMX, 20 to 33 clips/s
    compiled, `--loop.batch-size 8 --cache-clips 16000 --loop.autocast bf16` gives a preview in an hour.
    Result: without temporal gaps, loss 0.23 after 400 updates, 0.17 after 1,000, 0.14 after 2,000 and 0.12 after 4,000.
    The bundled weights continued from there with all of the above for 19,550 updates of 32 clips at learning rates up
    to 6e-4 and 1.2e-3 and ended at a loss of 0.131. Limits: a controllable clip moves an eighth as much as a free one,
    and a first frame does not show which of the two it belongs to.
    """
    suffix = "" if teacher_forcing == "complete" else "-mtf"
    return ModelRecipe(
        name=f"magi-shapes{suffix}",
        tokenizer="vae-shapes",
        data=ShapesData(
            num_frames=16,
            height=32,
            width=32,
            max_interval=3,
            mixed=True,
            max_jump=112,
            flawed_history=teacher_forcing == "complete",
        ),
        model=MAGIConfig(
            hidden_size=128,
            num_layers=6,
            num_heads=4,
            head_layers=3,
            head_size=128,
            latent_channels=4,
            latent_shape=(16, 8, 8),
            num_classes=27,
            action_size=2,
            teacher_forcing=teacher_forcing,
            clean_first_frame=True,
            drop_actions=False,
            history_dropout=0.1,
            dropout=0.0,
        ),
        optim=OptimConfig(2e-3, 0.9, 0.95, weight_decay=0.02, warmup_steps=200, muon_learning_rate=4e-3),
        loop=shapes_loop(num_steps=4_700, batch_size=64, ema_decay=0.998, clip_norm=3.0),
        task_weights={"class-conditional": 1.0, "frame-prediction": 1.0, "action-conditional": 1.0},
        cache_clips=24_000,
        sampling={
            "num_decoding_steps": 4,
            "num_diffusion_steps": 10,
            "guidance_by": "history",
            "guidance_scale": 1.5,
            "sample_range": 4.0,
            "window_mode": "anchored",
            "context_noise_level": 1,
        },
    )


def magi_shapes_few_steps() -> ModelRecipe:
    """`magi-shapes` with a head that draws tokens in 1, 2, 4 … 64 steps (arXiv 2410.12557); all else stays as bundled.

    Only the head is trained, from the bundled one but for its last layer and what reads the lengths of steps.

    Cost: 2.5 seconds per update of 32 clips on one CPU core at 2.0 GHz in bfloat16. Result: after 800 updates of 16
    clips (validation loss 0.307) one step is worth ten of the bundled head: shapes-FVD 229 against 220, and 1986 of its
    one.
    """
    twin = magi_shapes()
    assert isinstance(twin.model, MAGIConfig)
    return replace(
        twin,
        name="magi-shapes-few-steps",
        start_from="magi-shapes",
        frozen=ALL_BUT_MAGIS_HEAD,
        model=replace(twin.model, diffusion=Shortcut()),
        optim=OptimConfig(2e-3, 0.9, 0.95, weight_decay=0.02, warmup_steps=100, muon_learning_rate=2e-3),
        loop=replace(twin.loop, num_steps=2_000, batch_size=32),
        cache_clips=16_000,
        sampling=twin.sampling | {"num_diffusion_steps": 2, "sample_range": None},
    )


def far_shapes(is_long: bool = False) -> ModelRecipe:
    """FAR, small, on the per-frame latents of `vae-shapes`, 16 tokens each; or its long twin on clips of 48 frames.

    Classes, first frames and actions: every second clip is controllable. The long twin reads the last 8 frames in
    patches of 2x2 latents and all earlier ones in patches of 4x4, so that a frame is 4 tokens. AdamW with Muon on the
    matrices, warm-up and one cosine, as in `magi-shapes`; the paper's constant rate learns too slowly for short runs.

    Cost: 0.06 seconds of one CPU core at 2.0 GHz per clip and update in float32, so five hours on one core; 0.04
    for the long twin, whose loss is on 8 frames. Not trained to the end here.
    """
    frames = 48 if is_long else 16
    return ModelRecipe(
        name="far-shapes-long" if is_long else "far-shapes",
        tokenizer="vae-shapes",
        data=ShapesData(num_frames=frames, height=32, width=32, mixed=True),
        model=FARConfig(
            hidden_size=128,
            num_layers=6,
            rotary_channels=(8, 12, 12),
            latent_channels=4,
            latent_shape=(frames, 8, 8),
            patch_size=2,
            coarse_patch_size=4 if is_long else None,
            window=8 if is_long else frames,
            num_classes=27,
            action_size=2,
        ),
        optim=OptimConfig(2e-3, 0.9, 0.95, weight_decay=0.02, warmup_steps=200, muon_learning_rate=4e-3),
        loop=shapes_loop(num_steps=4_700, batch_size=64, ema_decay=0.998, clip_norm=1.0),
        task_weights={"class-conditional": 1.0, "frame-prediction": 1.0, "action-conditional": 1.0},
        cache_clips=8_000 if is_long else 24_000,
        sampling={"num_decoding_steps": 10, "guidance_scale": 1.5},
    )


def shapes_features() -> FeaturesRecipe:
    """The feature network of every `shapes-...` metric: seven heads on labels and attributes, endless augmented clips.

    Cost: 9 minutes on two CPU cores at 2.5 GHz, 82 clips/s.
    Result: colours and motions are learned within 300 updates, shapes from update 450 on; class accuracy on training
    batches is 0.4 at update 500, 0.75 at 700, 0.9 at 850 and 0.98 from 1,250 on.
    """
    return FeaturesRecipe(
        name="shapes-features",
        data=ShapesData(num_frames=16, height=32, width=32),
        optim=OptimConfig(peak_learning_rate=2e-3, beta1=0.9, beta2=0.99, weight_decay=0.01, warmup_steps=200),
        loop=shapes_loop(num_steps=1_400, batch_size=32, ema_decay=0.995, clip_norm=1.0),
    )


def vae_shapes() -> TokenizerRecipe:
    """A KL autoencoder of single frames, small: 16x32x32 clips to 4 channels on a grid of 16x8x8, for NOVA, MAGI, FAR.

    Squared error and a weak KL term towards N(0, 1); optimisers as in `vq_shapes`. When training ends, latents are
    normalised to mean 0 and variance 1. Widths, cost of the KL term and number of channels are choices that were not
    compared with others.

    Cost: 14 minutes on two CPU cores at 2.5 GHz in float32, 9 clips/s.
    Result: PSNR of training batches 25 dB after 220 updates, 32 after 460, 36 after 880 and 38 at the end; held-back
    clips with averaged weights 37.0 dB, at a shapes-FVD of 0.07 from the clips themselves.
    """
    return TokenizerRecipe(
        name="vae-shapes",
        data=ShapesData(num_frames=16, height=32, width=32),
        tokenizer=Causal3DConfig(
            filters=16,
            channel_multipliers=(1, 3, 6),
            num_res_blocks=1,
            temporal_downsample=(False, False),
            num_groups=1,
            bottleneck="kl",
            latent_channels=4,
            kl_cost=1e-4,
            per_frame=True,
        ),
        optim=OptimConfig(1.5e-3, beta1=0.9, beta2=0.99, warmup_steps=100, muon_learning_rate=2.5e-3),
        loop=shapes_loop(num_steps=1_800, batch_size=4, ema_decay=0.998, clip_norm=1.0, recognisable_after=220),
    )


RECIPES = {
    "vq-shapes": vq_shapes,
    "vae-shapes": vae_shapes,
    "magvit-shapes": magvit_shapes,
    "nova-shapes": nova_shapes,
    "magi-shapes": magi_shapes,
    "magi-shapes-few-steps": magi_shapes_few_steps,
    "far-shapes": far_shapes,
    "far-shapes-long": partial(far_shapes, is_long=True),
    "magi-shapes-mtf": partial(magi_shapes, "masked"),
    **{f"par-shapes-{n}x": partial(par_shapes, n) for n in (1, 4, 16)},
    "shapes-features": shapes_features,
}
