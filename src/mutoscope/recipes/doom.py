"""Recipes of neural Doom: three scenarios of ViZDoom in one model, steered by left, right, forward and attack.

The data are recorded first, from packages alone (`pip install 'mutoscope[worlds]'`), in 15 minutes on two cores:

    mutoscope record doom recordings/doom --episodes 240 --max-frames 200 --height 96 --width 128 --endless
    mutoscope train magi-doom --data recordings/doom --out runs/magi-doom

`magi-doom` trains its tokenizer first, by `vae-doom`. Nothing in these recipes is made for Doom but the sizes: they
train on any recording with actions.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

from mutoscope.data.sources.recorded_data import LeRobotData
from mutoscope.layers.gaussian_diffusion import LearnedVariance
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

HEIGHT, WIDTH, FPS = 96, 128, 8.75
NUM_FRAMES = 16  # 1.8 seconds
NUM_CLASSES, NUM_KEYS, CHANNELS = 3, 4, 6
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
    """An autoencoder of single frames with continuous latents: 96x128 pixels to 6 channels on a grid of 12x16.

    2.0M parameters. Patches of 4x4 pixels are channels from the first convolution to the last, so that none runs at
    full resolution: after equal time on a processor its error is half that of patches of 2x2, and it decodes a frame
    fast enough for real time. Squared error and a weak KL term.

    Cost: 1.1 seconds per update on two CPU cores at 2.0 GHz without matrix units, 19 minutes.
    Result: held-back frames reach 27.4 dB after 250 updates, 29.2 after 750 and 29.9 after 1,000: near things keep
    their look, what is far away blurs.
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
        ),
        optim=OptimConfig(1.5e-3, beta1=0.9, beta2=0.99, warmup_steps=100, muon_learning_rate=2.5e-3),
        loop=_loop(num_steps=1_000, batch_size=8, ema_decay=0.995, clip_norm=1.0),
    )


def magi_doom() -> ModelRecipe:
    """MAGI on the latents of `vae-doom`: 12 tokens per frame, four keys, three scenarios as classes.

    5.0M parameters. The head predicts the clean token. What keeps a stream alive: noise on the history (dynamic noise
    injection, §3.3), frames that are 1 or 2 steps apart (dynamic intervals, §3.3), a first frame that stays in the
    window beside the latest ones and is free of noise, and, in a fifth of the later updates, a history that the model
    has generated itself.

    Cost: 2.1 seconds per update on two CPU cores at 2.0 GHz without matrix units, as two processes of one thread under
    torchrun. Result after 1,000 updates: validation loss 0.41 after 250, 0.37 after 500 and 0.33 after 1,000; walls,
    floor, weapon and flashes stay for as long as the stream runs, textures and monsters are blurred away. Not trained
    to the end here.
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
            patch_size=4,
            num_classes=NUM_CLASSES,
            action_size=NUM_KEYS,
            clean_first_frame=True,
            drop_actions=False,
            noise_levels=3,
            noise_mode="channel",  # a position less than as a token of its own
            dropout=0.0,
            loss_repeat=2,
            diffusion=LearnedVariance(prediction="sample"),
        ),
        optim=OptimConfig(2e-3, 0.9, 0.95, weight_decay=0.02, warmup_steps=100, muon_learning_rate=4e-3),
        loop=_loop(num_steps=3_000, batch_size=8, ema_decay=0.998, clip_norm=3.0),
        task_weights=dict.fromkeys(TASKS, 1.0),
        cache_clips=3_200,
        sampling={
            "num_decoding_steps": 2,
            "num_diffusion_steps": 4,
            "temperature": 0.3,  # the next frame is almost certain: less noise in what a young network is unsure of
            "sample_range": 4.0,
            "window_mode": "anchored",
            "context_noise_level": 1,
        },
        rollouts=RolloutConfig(share=0.2, start_step=1_800),
        protocol="world",
    )


def vq_doom() -> TokenizerRecipe:
    """The discrete twin of `vae-doom`: 16x16 pixels to one of 64,000 codes (finite scalar quantisation), 48 a frame."""
    continuous = vae_doom()
    tokenizer = replace(
        continuous.tokenizer,
        channel_multipliers=(1, 2, 3),
        temporal_downsample=(False, False),
        bottleneck="fsq",
        levels=(8, 8, 8, 5, 5, 5),
    )
    return replace(continuous, name="vq-doom", tokenizer=tokenizer)


def magi_doom_vq() -> ModelRecipe:
    """The discrete twin of `magi-doom`: the codes of `vq-doom`, each read and predicted as two digits."""
    continuous = magi_doom()
    assert isinstance(continuous.model, MAGIConfig)
    model = replace(
        continuous.model,
        latent_shape=(NUM_FRAMES, HEIGHT // 16, WIDTH // 16),
        patch_size=1,
        codebook_parts=(512, 125),  # the first three levels of a code, and the last three
    )
    return replace(
        continuous,
        name="magi-doom-vq",
        tokenizer="vq-doom",
        model=model,
        sampling={"num_decoding_steps": 6, "window_mode": "anchored", "context_noise_level": 1, "temperature": 0.9},
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    "vae-doom": vae_doom,
    "magi-doom": magi_doom,
    "vq-doom": vq_doom,
    "magi-doom-vq": magi_doom_vq,
}

_RECORD = f"mutoscope record doom recordings/doom --episodes 240 --height {HEIGHT} --width {WIDTH} --endless"
RECORDED_BY: Mapping[str, str] = dict.fromkeys(RECIPES, _RECORD)
