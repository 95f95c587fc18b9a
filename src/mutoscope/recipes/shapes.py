"""Recipes on the built-in world: everything here trains on two CPU cores, with nothing to download."""

from mutoscope.tokenizers.vq3d import VQ3DConfig
from mutoscope.training.config import DataConfig, LoopConfig, OptimConfig, TokenizerRecipe


def vq_shapes() -> TokenizerRecipe:
    """MAGVIT's 3D-VQ, small: 16x32x32 clips to 4x8x8 tokens from 512 codes (4x4x4 voxels), no adversarial loss.

    Squared error and the paper's three quantizer terms; Adam with beta1 0, beta2 0.99 and averaged weights as
    published, at a higher learning rate because the network and the batch are small.
    """
    return TokenizerRecipe(
        name="vq-shapes",
        data=DataConfig(kind="shapes", num_frames=16, height=32, width=32),
        tokenizer=VQ3DConfig(
            filters=32,
            channel_multipliers=(1, 2, 3),
            num_res_blocks=1,
            temporal_downsample=(True, True),
            embedding_dim=32,
            codebook_size=512,
            num_groups=8,
        ),
        optim=OptimConfig(peak_learning_rate=1e-3, beta1=0.0, beta2=0.99, warmup_steps=100),
        loop=LoopConfig(num_steps=12_000, batch_size=8, ema_decay=0.999, clip_norm=1.0),
    )
