"""Recipes of neural Doom: a scenario of ViZDoom, or several in one model, steered by left, right, forward and attack.

The data are recorded first, from packages alone (`pip install 'mutoscope[worlds]'`), in three minutes on two cores:

    mutoscope record doom-basic recordings/doom --episodes 320 --max-frames 180 --height 72 --width 96 --endless
    mutoscope train magi-doom --data recordings/doom --out runs/magi-doom

`magi-doom` trains its tokenizer first, by `vae-doom`. Scenarios with commas between, or `doom` for three of them,
become the classes of one model. Nothing in these recipes is made for Doom but the sizes: they train on any recording
with actions.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

from mutoscope.data.sources.recorded_data import LeRobotData
from mutoscope.layers.gaussian_diffusion import LearnedVariance
from mutoscope.models.far import FARConfig
from mutoscope.models.magi import MAGIConfig
from mutoscope.tokenizers.causal3d import Causal3DConfig
from mutoscope.training.config import (
    LoopConfig,
    ModelRecipe,
    OptimConfig,
    Recipe,
    RolloutConfig,
    TokenizerRecipe,
)

HEIGHT, WIDTH, FPS = 72, 96, 8.75
DISCRETE_SIZE = (96, 128)  # a code of the discrete twins covers 16x16 pixels
NUM_FRAMES = 16  # 1.8 seconds
NUM_CLASSES, NUM_KEYS, CHANNELS = 3, 4, 8
TASKS = ("frame-prediction", "class-conditional-frame-prediction", "class-conditional", "action-conditional")


def _loop(num_steps: int, batch_size: int, ema_decay: float, clip_norm: float) -> LoopConfig:
    return LoopConfig(
        num_steps=num_steps,
        batch_size=batch_size,
        ema_decay=ema_decay,
        ema_warmup=True,
        clip_norm=clip_norm,
        sample_every=500,
        validation_share=0.03,
        validate_every=500,
        validation_clips=32,
    )


def vae_doom() -> TokenizerRecipe:
    """An autoencoder of single frames with continuous latents: 72x96 pixels to 8 channels on a grid of 9x12.

    2.0M parameters. Latents are scaled by their own noise, so that equal errors cost about equally much in pixels: the
    next frame is easier to predict than with one variance per channel. Patches of 4x4 pixels are channels from first to
    last, so that no convolution runs at full resolution: after equal time on a processor the error is half
    that of patches of 2x2, and a frame is decoded fast enough for real time. Squared error and a weak KL term.

    Cost: 0.7 seconds per update on two CPU cores at 2.0 GHz without matrix units, 14 minutes.
    Result: held-back frames of `doom-basic` reach 29.9 dB after 300 updates, 32.1 after 600 and 33.3 after 1,200. Of
    three scenarios at 96x128 pixels, 29.9 dB after 1,000 updates (19 minutes): what is far away blurs.
    """
    return TokenizerRecipe(
        name="vae-doom",
        data=LeRobotData(num_frames=2, height=HEIGHT, width=WIDTH, fps=FPS, clip_step=2, tasks_as_classes=True),
        tokenizer=Causal3DConfig(
            filters=64,
            channel_multipliers=(1, 2),
            num_res_blocks=1,
            temporal_downsample=(False,),
            num_groups=1,
            bottleneck="kl",
            latent_channels=CHANNELS,
            kl_cost=1e-4,
            per_frame=True,
            patch_size=4,
            latent_scaling="posterior",
        ),
        optim=OptimConfig(1.5e-3, beta1=0.9, beta2=0.99, warmup_steps=100, muon_learning_rate=2.5e-3),
        loop=_loop(num_steps=1_200, batch_size=8, ema_decay=0.995, clip_norm=1.0),
    )


def magi_doom() -> ModelRecipe:
    """MAGI on the latents of `vae-doom`: 12 tokens per frame, four keys, scenarios as classes where there are several.

    5.0M parameters. The head predicts the clean token. What keeps a stream alive: noise on the history (dynamic noise
    injection, §3.3), frames that are 1 or 2 steps apart (dynamic intervals, §3.3), a first frame that stays in the
    window beside the latest ones and is free of noise, and, in a fifth of the later updates, a history that the model
    has generated itself.

    Cost: 2.8 seconds per update on two CPU cores at 2.0 GHz without matrix units, as two processes of one thread under
    torchrun: 87 minutes. Result on `doom-basic`: validation loss 0.39 after 300 updates, 0.32 after 1,000 and 0.30 at
    the end. After 200 updates there are walls, weapon and flashes, from 500 on walls move as the keys say, from 900 on
    the monster appears. The bundled `magi-doom`, far from converged.
    """
    return ModelRecipe(
        name="magi-doom",
        tokenizer="vae-doom",
        data=LeRobotData(
            num_frames=NUM_FRAMES,
            height=HEIGHT,
            width=WIDTH,
            fps=FPS,
            clip_step=12,
            intervals=(1, 1, 1, 1, 1, 2),
            max_gap=150,
            gap_share=0.3,
            tasks_as_classes=True,
        ),
        model=MAGIConfig(
            hidden_size=224,
            num_layers=5,
            num_heads=7,
            head_layers=2,
            head_size=224,
            latent_channels=CHANNELS,
            latent_shape=(NUM_FRAMES, HEIGHT // 8, WIDTH // 8),
            patch_size=3,
            num_classes=NUM_CLASSES,
            action_size=NUM_KEYS,
            clean_first_frame=True,
            drop_actions=False,
            noise_levels=3,
            noise_step=0.1,  # the change from one frame to the next is small in these latents
            noise_mode="channel",  # a position less than as a token of its own
            dropout=0.0,
            loss_repeat=2,
            diffusion=LearnedVariance(prediction="sample"),
        ),
        optim=OptimConfig(2e-3, 0.9, 0.95, weight_decay=0.02, warmup_steps=100, muon_learning_rate=4e-3),
        loop=_loop(num_steps=1_900, batch_size=16, ema_decay=0.998, clip_norm=3.0),
        task_weights=dict.fromkeys(TASKS, 1.0),
        cache_clips=3_600,
        sampling={
            "num_decoding_steps": 2,
            "num_diffusion_steps": 4,
            "temperature": 0.3,  # the next frame is almost certain: less noise in what a young network is unsure of
            "sample_range": 8.0,
            "window_mode": "anchored",
            "context_noise_level": 1,
        },
        rollouts=RolloutConfig(share=0.2, start_step=800),
        protocol="world",
    )


def far_doom() -> ModelRecipe:
    """FAR on the latents of `vae-doom`, equal to `magi-doom` in size, data and updates, for a comparison of the two.

    4.8M parameters, 12 tokens per frame. What its paper has against drift: clean context that is marked as such in a
    tenth of the frames of training; in a fifth of the later updates these frames are the model's own, as in the twin.
    It knows no intervals and no temporal gaps, so that all frames are one step apart.

    Cost: 1.1 seconds of one CPU core at 2.0 GHz per update of 16 clips, rollouts apart. Not trained here yet.
    """
    twin = magi_doom()
    assert isinstance(twin.data, LeRobotData)
    return replace(
        twin,
        name="far-doom",
        data=replace(twin.data, intervals=(), max_gap=0),
        model=FARConfig(
            hidden_size=224,
            num_layers=5,
            rotary_channels=(8, 12, 12),
            latent_channels=CHANNELS,
            latent_shape=(NUM_FRAMES, HEIGHT // 8, WIDTH // 8),
            patch_size=3,
            window=NUM_FRAMES,
            num_classes=NUM_CLASSES,
            action_size=NUM_KEYS,
        ),
        sampling={"num_decoding_steps": 6},
    )


def vq_doom() -> TokenizerRecipe:
    """The discrete twin of `vae-doom`: 16x16 pixels to one of 64,000 codes (finite scalar quantisation), 48 a frame."""
    continuous = vae_doom()
    height, width = DISCRETE_SIZE
    tokenizer = replace(
        continuous.tokenizer,
        latent_scaling="channel",
        channel_multipliers=(1, 2, 3),
        temporal_downsample=(False, False),
        bottleneck="fsq",
        levels=(8, 8, 8, 5, 5, 5),
    )
    data = replace(continuous.data, height=height, width=width)
    return replace(continuous, name="vq-doom", data=data, tokenizer=tokenizer)


def magi_doom_vq() -> ModelRecipe:
    """The discrete twin of `magi-doom`: the codes of `vq-doom`, each read and predicted as two digits."""
    continuous = magi_doom()
    assert isinstance(continuous.model, MAGIConfig)
    height, width = DISCRETE_SIZE
    model = replace(
        continuous.model,
        latent_shape=(NUM_FRAMES, height // 16, width // 16),
        patch_size=1,
        codebook_parts=(512, 125),  # the first three levels of a code, and the last three
    )
    return replace(
        continuous,
        name="magi-doom-vq",
        tokenizer="vq-doom",
        data=replace(continuous.data, height=height, width=width),
        model=model,
        sampling={"num_decoding_steps": 6, "window_mode": "anchored", "context_noise_level": 1, "temperature": 0.9},
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    "vae-doom": vae_doom,
    "magi-doom": magi_doom,
    "far-doom": far_doom,
    "vq-doom": vq_doom,
    "magi-doom-vq": magi_doom_vq,
}


def _record(height: int, width: int) -> str:
    size = f"--height {height} --width {width}"
    return f"mutoscope record doom-basic recordings/doom --episodes 320 --max-frames 180 {size} --endless"


RECORDED_BY: Mapping[str, str] = {
    name: _record(*(DISCRETE_SIZE if name in ("vq-doom", "magi-doom-vq") else (HEIGHT, WIDTH))) for name in RECIPES
}
