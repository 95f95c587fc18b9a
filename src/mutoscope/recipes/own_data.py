"""Recipes for recordings of your own: `mutoscope train magi --data PATH` and its siblings.

The frame size, the rate, the classes, captions and actions follow from the data (`runs/adapt.py`); what is written here
is the rest. A tokenizer of the recording's own is trained first, into OUT/tokenizer-training, unless `--tokenizer`
names one: a tokenizer of another kind of video blurs what a model could otherwise learn.

Sizes are those that two CPU cores train in an evening; a GPU reads larger frames with the same networks.
"""

from collections.abc import Callable

from mutoscope.data.sources.recorded_data import FolderData
from mutoscope.layers.condition_regions import TASKS
from mutoscope.models.far import FARConfig
from mutoscope.models.magi import MAGIConfig
from mutoscope.models.magvit import MagvitConfig
from mutoscope.models.nova import NOVAConfig
from mutoscope.models.par import PARConfig
from mutoscope.tokenizers.causal3d import Causal3DConfig
from mutoscope.tokenizers.vq3d import VQ3DConfig
from mutoscope.training.config import LoopConfig, ModelRecipe, OptimConfig, Recipe, TokenizerRecipe

CONTINUOUS, DISCRETE = "tokenizer", "tokenizer-vq"  # tokenizers that the models' recipes train first
SIDE = 64  # pixels, until the data are known
NUM_FRAMES = 16
MAX_CLIPS = 6_000  # windows in the token cache: minutes of encoding, and more than an evening's updates can overfit
MAGVIT_CLIPS = 1_500  # each of which is encoded nine times: itself and the condition videos of eight tasks
ALL_TASKS = ("frame-prediction", "class-conditional", "text-conditional", "action-conditional")


def _clips(num_frames: int = NUM_FRAMES) -> FolderData:
    return FolderData(num_frames=num_frames, height=SIDE, width=SIDE)


def _loop(batch_size: int, ema_decay: float, clip_norm: float) -> LoopConfig:
    """An evening on two cores, a twentieth of the recordings held back, contact sheets from the start."""
    return LoopConfig(
        num_steps=3_000,
        batch_size=batch_size,
        ema_decay=ema_decay,
        ema_warmup=True,
        clip_norm=clip_norm,
        sample_every=250,
        validation_share=0.05,
        validate_every=250,
        validation_clips=32,
    )


def tokenizer() -> TokenizerRecipe:
    """An autoencoder of single frames with continuous latents: 8x8 pixels to 8 channels, for NOVA, MAGI and FAR.

    1.4M parameters. Squared error and a weak KL term; Muon on the kernels. A frame is all it sees, so that clips of two
    frames show more different frames per update than long ones.

    Cost: 2 updates per second at 64x80 on one CPU core in bfloat16 (`--loop.autocast bf16`) beside other work, so 25
    minutes.
    Result: on 240 videos of a ball on a table (`benchmarks/own_videos.py`) held-back clips reach 25.0 dB after 100
    updates, 33.7 after 250, 39.5 after 500 and 41.7 after 800.
    """
    return TokenizerRecipe(
        name=CONTINUOUS,
        data=_clips(num_frames=2),
        tokenizer=Causal3DConfig(
            filters=16,
            channel_multipliers=(1, 2, 4, 6),
            num_res_blocks=1,
            temporal_downsample=(False, False, False),
            num_groups=1,
            bottleneck="kl",
            latent_channels=8,
            kl_cost=1e-4,
            per_frame=True,
        ),
        optim=OptimConfig(1.5e-3, beta1=0.9, beta2=0.99, warmup_steps=100, muon_learning_rate=2.5e-3),
        loop=_loop(batch_size=8, ema_decay=0.998, clip_norm=1.0),
        fits_data=True,
    )


def tokenizer_vq() -> TokenizerRecipe:
    """MAGVIT's 3D-VQ, small: voxels of 2x8x8 pixels to one of 1,024 codes, for MAGVIT and PAR.

    Without adversarial training, which small networks and short runs do not gain from; expect soft edges.
    """
    return TokenizerRecipe(
        name=DISCRETE,
        data=_clips(),
        tokenizer=VQ3DConfig(
            filters=16,
            channel_multipliers=(1, 2, 4, 6),
            num_res_blocks=1,
            temporal_downsample=(True, False, False),
            embedding_dim=16,
            codebook_size=1_024,
            num_groups=1,
            padding="zero",
            entropy_cost=0.005,
        ),
        optim=OptimConfig(1.5e-3, beta1=0.9, beta2=0.99, warmup_steps=100, muon_learning_rate=2.5e-3),
        loop=_loop(batch_size=2, ema_decay=0.998, clip_norm=1.0),
        fits_data=True,
    )


def magi() -> ModelRecipe:
    """MAGI with complete teacher forcing: continues first frames, follows actions, classes or captions; any length.

    4.4M parameters, 20 tokens per frame of 64x80 pixels. Actions are never hidden: a recording has them for every
    frame. The history is hidden in a tenth of the clips, for guidance by history.

    Cost: 0.35 updates per second at 64x80 on one CPU core in bfloat16 beside other work.
    Result: on the same videos the held-back loss is 0.35 after 100 updates, 0.14 after 250 and 0.12 after 400, where
    backgrounds stay and the ball fades while it moves. Not trained to the end here.
    """
    return ModelRecipe(
        name="magi",
        tokenizer=CONTINUOUS,
        data=_clips(),
        model=MAGIConfig(
            hidden_size=192,
            num_layers=6,
            num_heads=6,
            head_layers=3,
            head_size=192,
            latent_channels=8,
            latent_shape=(NUM_FRAMES, SIDE // 8, SIDE // 8),
            drop_actions=False,
            history_dropout=0.1,
            dropout=0.0,
        ),
        optim=OptimConfig(2e-3, 0.9, 0.95, weight_decay=0.02, warmup_steps=100, muon_learning_rate=4e-3),
        loop=_loop(batch_size=16, ema_decay=0.995, clip_norm=3.0),
        task_weights=dict.fromkeys(ALL_TASKS, 1.0),
        cache_clips=MAX_CLIPS,
        # sample_range: without it ten diffusion steps of a network trained for an hour run away to coloured noise.
        sampling={"num_decoding_steps": 4, "num_diffusion_steps": 10, "sample_range": 4.0, "context_noise_level": 1},
        fits_data=True,
    )


def far() -> ModelRecipe:
    """FAR: continues first frames, follows actions or classes; any length, in a few Euler steps per frame.

    2.9M parameters, 20 tokens per frame of 64x80 pixels. Not trained to the end here.
    """
    return ModelRecipe(
        name="far",
        tokenizer=CONTINUOUS,
        data=_clips(),
        model=FARConfig(
            hidden_size=160,
            num_layers=6,
            rotary_channels=(8, 12, 12),
            latent_channels=8,
            latent_shape=(NUM_FRAMES, SIDE // 8, SIDE // 8),
            patch_size=2,
        ),
        optim=OptimConfig(2e-3, 0.9, 0.95, weight_decay=0.02, warmup_steps=100, muon_learning_rate=4e-3),
        loop=_loop(batch_size=16, ema_decay=0.995, clip_norm=1.0),
        task_weights=dict.fromkeys(ALL_TASKS, 1.0),
        cache_clips=MAX_CLIPS,
        sampling={"num_decoding_steps": 10},
        fits_data=True,
    )


def magvit() -> ModelRecipe:
    """MAGVIT: one transformer for all ten tasks, or for the eight that need no classes where there are none."""
    return ModelRecipe(
        name="magvit",
        tokenizer=DISCRETE,
        data=_clips(),
        model=MagvitConfig(
            num_layers=6,
            hidden_size=256,
            num_heads=4,
            mlp_size=1_024,
            codebook_size=1_024,
            num_special_tokens=16,
            latent_shape=(NUM_FRAMES // 2, SIDE // 8, SIDE // 8),
            task_token=True,
            dropout=0.0,
            label_dropout=0.1,
        ),
        optim=OptimConfig(2e-3, 0.9, 0.96, weight_decay=0.045, warmup_steps=100, muon_learning_rate=4e-3),
        loop=_loop(batch_size=8, ema_decay=0.995, clip_norm=1.0),
        task_weights=dict.fromkeys(TASKS, 1.0)
        | {"class-conditional": 4.0, "frame-prediction": 4.0, "class-conditional-frame-prediction": 2.0},
        cache_clips=MAGVIT_CLIPS,
        sampling={"guidance_scale": 2.0, "choice_temperature": 20.0},
        fits_data=True,
    )


def par() -> ModelRecipe:
    """PAR: n = 4 distant tokens per step, from a class, or from one class for all clips where there are none."""
    return ModelRecipe(
        name="par",
        tokenizer=DISCRETE,
        data=_clips(),
        model=PARConfig(
            num_layers=6,
            hidden_size=256,
            num_heads=4,
            codebook_size=1_024,
            latent_shape=(NUM_FRAMES // 2, SIDE // 8, SIDE // 8),
            num_parallel=4,
            num_classes=1,
            mlp_size=768,
            token_dropout=0.0,
            residual_dropout=0.0,
            mlp_dropout=0.0,
        ),
        optim=OptimConfig(2e-3, 0.9, 0.95, weight_decay=0.05, warmup_steps=100, muon_learning_rate=4e-3),
        loop=_loop(batch_size=8, ema_decay=0.995, clip_norm=1.0),
        task_weights=dict.fromkeys(ALL_TASKS, 1.0),
        cache_clips=MAX_CLIPS,
        sampling={"guidance_scale": 1.5, "temperature": 0.9},
        fits_data=True,
    )


def nova() -> ModelRecipe:
    """NOVA: from a caption; where there are no captions from a class, or from one class for all clips."""
    return ModelRecipe(
        name="nova",
        tokenizer=CONTINUOUS,
        data=_clips(),
        model=NOVAConfig(
            hidden_size=192,
            temporal_layers=3,
            temporal_heads=6,
            spatial_layers=4,
            spatial_heads=6,
            head_layers=3,
            head_size=192,
            latent_channels=8,
            latent_shape=(NUM_FRAMES, SIDE // 8, SIDE // 8),
            num_time_slots=None,
            mixer_rank=24,
            text_size=None,
            num_classes=1,
        ),
        optim=OptimConfig(1.5e-3, 0.9, 0.95, weight_decay=0.02, warmup_steps=100, muon_learning_rate=3e-3),
        loop=_loop(batch_size=16, ema_decay=0.995, clip_norm=1.0),
        task_weights=dict.fromkeys(ALL_TASKS, 1.0),
        cache_clips=MAX_CLIPS,
        sampling={"num_decoding_steps": 8, "num_diffusion_steps": 16, "guidance_scale": 2.0},
        fits_data=True,
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    "magi": magi,
    "far": far,
    "magvit": magvit,
    "par": par,
    "nova": nova,
    CONTINUOUS: tokenizer,
    DISCRETE: tokenizer_vq,
}
