"""LlamaGen's image tokenizer, VQ-16 and VQ-8 (arXiv 2406.06525), applied to video frame by frame.

Top to bottom: configuration, building blocks, encoder, decoder, tokenizer.
"""

import itertools
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from mutoscope.checks import COUNT, DEPTH, NOT_NEGATIVE, POSITIVE, WIDTH, check_fields
from mutoscope.errors import UserError
from mutoscope.layers.batch_means import WholeMean, all_at_hand
from mutoscope.layers.draws import Draws
from mutoscope.tokenizers.base import TokenizerOutput, TokenizerSpec, VideoTokenizer
from mutoscope.tokenizers.quantizers import VectorQuantizer, VectorQuantizerConfig

NORM_EPS = 1e-6  # of the released weights; PyTorch's default is 1e-5
PIXEL_SCALE, PIXEL_SHIFT = 127.5, 128.0  # official scripts: [-1, 1] to 0…255, then truncated

RANGES = {
    "filters": WIDTH,
    "channel_multipliers": WIDTH,
    "num_res_blocks": DEPTH,
    "latent_channels": WIDTH,
    "embedding_dim": WIDTH,
    "codebook_size": WIDTH,
    "num_groups": COUNT,
    "commitment_cost": NOT_NEGATIVE,
    "codebook_cost": NOT_NEGATIVE,
    "entropy_cost": NOT_NEGATIVE,
    "entropy_temperature": POSITIVE,
}


@dataclass(frozen=True)
class VQ2DConfig:
    """Sizes of the network; defaults are VQ-16: 71,883,403 parameters.

    Every stage after the first halves height and width. The coarsest stage and the middle have attention over all
    positions.
    """

    filters: int = 128
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    latent_channels: int = 256
    embedding_dim: int = 8
    codebook_size: int = 16_384
    num_groups: int = 32
    normalized: bool = True
    commitment_cost: float = 0.25
    codebook_cost: float = 1.0
    entropy_cost: float = 0.0
    entropy_temperature: float = 0.01

    def __post_init__(self) -> None:
        object.__setattr__(self, "channel_multipliers", tuple(self.channel_multipliers))  # JSON has no tuples
        check_fields(self, RANGES)
        if not self.channel_multipliers or any(width % self.num_groups for width in self.widths):
            raise UserError(f"Every stage width must be a multiple of num_groups {self.num_groups}: {self.widths}.")

    @classmethod
    def paper(cls, stride: Literal[8, 16] = 16) -> "VQ2DConfig":
        """VQ-16 or VQ-8."""
        if stride not in (8, 16):
            raise UserError(f"LlamaGen's tokenizer is published with strides 8 and 16, found {stride!r}.")
        return cls() if stride == 16 else cls(channel_multipliers=(1, 2, 2, 4))

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each stage, from the pixels to the latents."""
        return tuple(self.filters * multiplier for multiplier in self.channel_multipliers)


class Norm(nn.GroupNorm):
    """Group normalisation with the epsilon of the released weights."""

    def __init__(self, channels: int, config: VQ2DConfig) -> None:
        super().__init__(config.num_groups, channels, eps=NORM_EPS)


def conv(channels_in: int, channels_out: int, size: int = 3) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, size, padding=size // 2)


class ResBlock(nn.Module):
    """(norm, swish, 3×3 convolution) twice; a 1×1 convolution on the shortcut where the width changes."""

    def __init__(self, channels_in: int, channels_out: int, config: VQ2DConfig) -> None:
        super().__init__()
        self.norm1, self.conv1 = Norm(channels_in, config), conv(channels_in, channels_out)
        self.norm2, self.conv2 = Norm(channels_out, config), conv(channels_out, channels_out)
        same = channels_in == channels_out
        self.shortcut = nn.Identity() if same else conv(channels_in, channels_out, 1)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h w"]:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.shortcut(x) + h


class Attention(nn.Module):
    """One head over all positions of a frame."""

    def __init__(self, channels: int, config: VQ2DConfig) -> None:
        super().__init__()
        self.norm = Norm(channels, config)
        self.q, self.k, self.v = (conv(channels, channels, 1) for _ in range(3))
        self.output = conv(channels, channels, 1)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        y = self.norm(x)
        q, k, v = (rearrange(part(y), "n c h w -> n 1 (h w) c") for part in (self.q, self.k, self.v))
        a = F.scaled_dot_product_attention(q, k, v)  # (n, 1, h*w, c)
        return x + self.output(rearrange(a, "n 1 (h w) c -> n c h w", h=x.shape[2]))


class Down(nn.Module):
    """Stride 2 after padding by one zero row below and one zero column on the right (released code)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h2 w2"]:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Up(nn.Module):
    """Nearest-neighbour upsampling by 2, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv(channels, channels)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h2 w2"]:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def stage(channels_in: int, channels_out: int, count: int, attend: bool, config: VQ2DConfig) -> list[nn.Module]:
    """Residual blocks, each followed by attention on the coarsest grid."""
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise([channels_in] + [channels_out] * count):
        layers += [ResBlock(a, b, config), Attention(b, config)] if attend else [ResBlock(a, b, config)]
    return layers


def middle(channels: int, config: VQ2DConfig) -> list[nn.Module]:
    """Residual block, attention, residual block on the coarsest grid."""
    return [ResBlock(channels, channels, config), Attention(channels, config), ResBlock(channels, channels, config)]


class Encoder(nn.Sequential):
    """Pixels to latents; the last convolution projects to the codebook's channels."""

    def __init__(self, config: VQ2DConfig) -> None:
        widths = config.widths
        layers: list[nn.Module] = [conv(3, config.filters)]
        channels = config.filters
        for i, width in enumerate(widths):
            last = i == len(widths) - 1
            layers += stage(channels, width, config.num_res_blocks, last, config)
            layers += [] if last else [Down(width)]
            channels = width
        layers += [*middle(channels, config), Norm(channels, config), nn.SiLU(), conv(channels, config.latent_channels)]
        super().__init__(*layers, conv(config.latent_channels, config.embedding_dim, 1))


class Decoder(nn.Sequential):
    """Codes to pixels: the encoder mirrored, with one more residual block per stage."""

    def __init__(self, config: VQ2DConfig) -> None:
        widths = config.widths
        channels = widths[-1]
        layers: list[nn.Module] = [conv(config.embedding_dim, config.latent_channels, 1)]
        layers += [conv(config.latent_channels, channels), *middle(channels, config)]
        for i in reversed(range(len(widths))):
            layers += stage(channels, widths[i], config.num_res_blocks + 1, i == len(widths) - 1, config)
            channels = widths[i]
            layers += [Up(channels)] if i > 0 else []
        super().__init__(*layers, Norm(channels, config), nn.SiLU(), conv(channels, 3))


class VQ2D(VideoTokenizer):
    """Convolutional encoder, quantizer with a codebook of unit vectors, decoder; each frame separately."""

    def __init__(self, config: VQ2DConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantizer = VectorQuantizer(
            VectorQuantizerConfig(
                config.codebook_size,
                config.embedding_dim,
                config.commitment_cost,
                config.codebook_cost,
                config.entropy_cost,
                config.entropy_temperature,
                normalized=config.normalized,
            )
        )

    @property
    def spec(self) -> TokenizerSpec:
        stride = 2 ** (len(self.config.channel_multipliers) - 1)
        return TokenizerSpec(
            temporal_stride=1, spatial_stride=stride, vocab_size=self.config.codebook_size, per_frame=True
        )

    def encode_to_latents(self, video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b d t lh lw"]:
        """Latents before quantization, of pixels in [-1, 1]. Raises UserError for sizes the stride does not divide."""
        stride = self.spec.spatial_stride
        if video.shape[-2] % stride or video.shape[-1] % stride:
            h, w = video.shape[-2:]
            raise UserError(f"The tokenizer needs sizes in multiples of {stride}, found {h}×{w}. Pad or resize them.")
        return self._per_frame(self.encoder, video)

    def continuous_latents(self, video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b d lt lh lw"]:
        return self.encode_to_latents(video)

    @staticmethod
    def _per_frame(half: nn.Module, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c2 t h2 w2"]:
        y = half(rearrange(x, "b c t h w -> (b t) c h w"))  # (b*t, c2, h2, w2)
        return rearrange(y, "(b t) c h w -> b c t h w", b=len(x))

    def encode(self, video: Float[Tensor, "b 3 t h w"]) -> Int[Tensor, "b t lh lw"]:
        return self.quantizer.tokens(self.encode_to_latents(video))

    def decode(self, tokens: Int[Tensor, "b t lh lw"]) -> Float[Tensor, "b 3 t h w"]:
        return self._per_frame(self.decoder, self.quantizer.lookup(tokens))

    @property
    def has_batch_terms(self) -> bool:
        return self.config.entropy_cost > 0

    def forward_train(
        self, video: Float[Tensor, "b 3 t h w"], draws: Draws | None = None, whole: WholeMean = all_at_hand
    ) -> TokenizerOutput:
        """Reconstruction and losses: squared error in [-1, 1] plus the quantizer's terms."""
        quantized, tokens, losses = self.quantizer(self.encode_to_latents(video), draws, whole)
        reconstruction = self._per_frame(self.decoder, quantized)
        error = F.mse_loss(reconstruction.float(), video)
        return TokenizerOutput(reconstruction, tokens, {"reconstruction": error, **losses})

    def levels(self, video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b 3 t h w"]:
        """[-1, 1] to 0…255 as the official scripts do: 127.5 x + 128, clipped, truncated."""
        return (PIXEL_SCALE * video + PIXEL_SHIFT).clamp(0, 255)
