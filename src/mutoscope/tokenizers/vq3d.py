"""MAGVIT's 3D-VQ tokenizer (arXiv 2212.05199, §3.1 and appendix A.1).

Top to bottom: configuration, building blocks, encoder, decoder, tokenizer.
The networks compute in [0, 1] as in the paper; arguments and results are in [-1, 1] as everywhere in this package.
"""

import itertools
import math
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
from mutoscope.tokenizers.quantizers import EntropyKind, VectorQuantizer, VectorQuantizerConfig

Padding = Literal["reflect", "zero", "replicate"]
NORM_EPS = 1e-6  # released code; PyTorch's default is 1e-5
TRUNCATED_STD = 0.87962566103423978  # standard deviation of a standard normal cut at two sigma

RANGES = {
    "filters": WIDTH,
    "channel_multipliers": WIDTH,
    "num_res_blocks": DEPTH,
    "embedding_dim": WIDTH,
    "codebook_size": WIDTH,
    "num_groups": COUNT,
    "commitment_cost": NOT_NEGATIVE,
    "codebook_cost": NOT_NEGATIVE,
    "entropy_cost": NOT_NEGATIVE,
    "entropy_temperature": POSITIVE,
}


@dataclass(frozen=True)
class VQ3DConfig:
    """Sizes of the network. Defaults are MAGVIT-B at 128×128: 40,579,843 parameters.

    `temporal_downsample` has one flag per transition between stages: True halves time as well as space.
    `padding`: the paper pads by reflection; the released configurations pad with zeros.
    `per_frame`: the 2D-VQ, the same network with 2D convolutions, applied to each frame separately.
    """

    filters: int = 64
    channel_multipliers: tuple[int, ...] = (1, 2, 2, 4)
    num_res_blocks: int = 2
    temporal_downsample: tuple[bool, ...] = (True, True, False)
    embedding_dim: int = 256
    codebook_size: int = 1024
    num_groups: int = 32
    padding: Padding = "reflect"
    commitment_cost: float = 0.25
    codebook_cost: float = 1.0
    entropy_cost: float = 0.1
    entropy_temperature: float = 0.01
    entropy_kind: EntropyKind = "softmax"
    per_frame: bool = False

    def __post_init__(self) -> None:
        check_fields(self, RANGES)
        if self.per_frame and any(self.temporal_downsample):
            raise UserError("A per-frame tokenizer cannot halve time: set every flag of temporal_downsample to False.")
        stages = len(self.channel_multipliers)
        if len(self.temporal_downsample) != stages - 1:
            raise UserError(
                f"temporal_downsample needs one flag per stage transition: {stages} stages have {stages - 1}, "
                f"found {len(self.temporal_downsample)}."
            )
        for width in self.widths:
            if width % self.num_groups:
                raise UserError(
                    f"Every stage width must be a multiple of num_groups: {width} is not a multiple of "
                    f"{self.num_groups}. Change filters, channel_multipliers or num_groups."
                )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each stage, from the pixels to the latents."""
        return tuple(self.filters * multiplier for multiplier in self.channel_multipliers)

    @classmethod
    def paper(
        cls, size: Literal["B", "L"] = "B", resolution: Literal[64, 128] = 128, per_frame: bool = False
    ) -> "VQ3DConfig":
        """The published sizes: B or L, for 128×128 clips or the 64×64 layout of BAIR; 3D-VQ, or 2D-VQ per frame."""
        if size not in ("B", "L") or resolution not in (64, 128):
            raise UserError(f"3D-VQ is published as B or L at 64 or 128 pixels, found {size!r} at {resolution!r}.")
        multipliers, temporal = ((1, 2, 4), (True, True)) if resolution == 64 else ((1, 2, 2, 4), (True, True, False))
        return cls(
            filters={"B": 64, "L": 128}[size],
            channel_multipliers=multipliers,
            temporal_downsample=tuple(flag and not per_frame for flag in temporal),
            per_frame=per_frame,
        )


class Conv3d(nn.Conv3d):
    """Stride 1 and unchanged size; the padding mode applies to time and space. `per_frame`: one cell in time."""

    def __init__(self, channels_in: int, channels_out: int, size: int, config: VQ3DConfig, bias: bool) -> None:
        frames = 1 if config.per_frame else size
        margins = (frames // 2, size // 2, size // 2)
        zero = config.padding == "zero" or size == 1
        padding = margins if zero else (0, 0, 0)
        super().__init__(channels_in, channels_out, (frames, size, size), padding=padding, bias=bias)
        # F.pad counts axes from the last one, with two numbers for each.
        self.outside = None if zero else tuple(margin for margin in reversed(margins) for _ in range(2))
        self.mode = config.padding

    def forward(self, x: Tensor) -> Tensor:
        if self.outside is not None:
            x = F.pad(x, self.outside, mode=self.mode)
        return super().forward(x)


def group_norm(channels: int, config: VQ3DConfig) -> nn.GroupNorm:
    """Group normalisation with the epsilon of the released code."""
    return nn.GroupNorm(config.num_groups, channels, eps=NORM_EPS)


class ResBlock(nn.Module):
    """Pre-activation residual block: (norm, swish, 3×3×3 convolution) twice."""

    def __init__(self, channels_in: int, channels_out: int, config: VQ3DConfig) -> None:
        super().__init__()
        self.norm1 = group_norm(channels_in, config)
        self.conv1 = Conv3d(channels_in, channels_out, 3, config, bias=False)
        self.norm2 = group_norm(channels_out, config)
        self.conv2 = Conv3d(channels_out, channels_out, 3, config, bias=False)
        same = channels_in == channels_out
        self.shortcut = nn.Identity() if same else Conv3d(channels_in, channels_out, 1, config, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + self.shortcut(x)


class Down(nn.Module):
    """Average pooling by 2 in space and, with `temporal`, in time; odd ends average over real cells only."""

    def __init__(self, temporal: bool) -> None:
        super().__init__()
        self.window = (2 if temporal else 1, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool3d(x, self.window, ceil_mode=True, count_include_pad=False)


class Up(nn.Module):
    """Nearest-neighbour upsampling by 2, then a convolution."""

    def __init__(self, channels: int, temporal: bool, config: VQ3DConfig) -> None:
        super().__init__()
        self.factor = (2.0 if temporal else 1.0, 2.0, 2.0)
        self.conv = Conv3d(channels, channels, 3, config, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=self.factor, mode="nearest"))


def res_blocks(channels_in: int, channels_out: int, config: VQ3DConfig) -> list[nn.Module]:
    widths = [channels_in] + [channels_out] * config.num_res_blocks
    return [ResBlock(a, b, config) for a, b in itertools.pairwise(widths)]


class Encoder(nn.Sequential):
    """Pixels to latents: stages of residual blocks with pooling between them, then a bottleneck."""

    def __init__(self, config: VQ3DConfig) -> None:
        widths = config.widths
        layers: list[nn.Module] = [Conv3d(3, config.filters, 3, config, bias=False)]
        channels = config.filters
        for i, width in enumerate(widths):
            layers += res_blocks(channels, width, config)
            channels = width
            if i < len(widths) - 1:
                layers.append(Down(config.temporal_downsample[i]))
        layers += res_blocks(channels, channels, config)
        layers += [group_norm(channels, config), nn.SiLU()]
        layers.append(Conv3d(channels, config.embedding_dim, 1, config, bias=True))
        super().__init__(*layers)


class Decoder(nn.Sequential):
    """Latents to pixels: the encoder mirrored, with upsampling in place of pooling."""

    def __init__(self, config: VQ3DConfig) -> None:
        widths = config.widths
        channels = widths[-1]
        layers: list[nn.Module] = [Conv3d(config.embedding_dim, channels, 3, config, bias=True)]
        layers += res_blocks(channels, channels, config)
        for i in reversed(range(len(widths))):
            layers += res_blocks(channels, widths[i], config)
            channels = widths[i]
            if i > 0:
                layers.append(Up(channels, config.temporal_downsample[i - 1], config))
        layers += [group_norm(channels, config), nn.SiLU()]
        layers.append(Conv3d(channels, 3, 3, config, bias=True))
        super().__init__(*layers)


class VQ3D(VideoTokenizer):
    """3D convolutional encoder, vector quantizer, decoder.

    GroupNorm statistics run over all of time and space of a clip. So a long video encoded in chunks differs slightly
    from the same video encoded in a single pass (docs/tokenizers.md says by how much).
    """

    def __init__(self, config: VQ3DConfig) -> None:
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
                config.entropy_kind,
            )
        )
        self.initialize_weights()

    def initialize_weights(self) -> None:
        """Flax's default, as in the released code. Norms start as the identity; the quantizer draws its codebook."""
        for module in self.modules():
            # Kernels: LeCun normal, cut at two standard deviations, of variance 1 / fan_in after the cut. Biases: 0.
            if isinstance(module, nn.Conv3d):
                fan_in = module.in_channels * math.prod(module.kernel_size)
                std = fan_in**-0.5 / TRUNCATED_STD
                nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @property
    def spec(self) -> TokenizerSpec:
        config = self.config
        return TokenizerSpec(
            temporal_stride=2 ** sum(config.temporal_downsample),
            spatial_stride=2 ** len(config.temporal_downsample),
            vocab_size=config.codebook_size,
            per_frame=config.per_frame,
        )

    def encode_to_latents(self, video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b d lt lh lw"]:
        """Latents before quantization, of pixels in [-1, 1]. Raises UserError for sizes the strides do not divide."""
        stride_t, stride_s = self.spec.temporal_stride, self.spec.spatial_stride
        t, h, w = video.shape[-3:]
        if t % stride_t or h % stride_s or w % stride_s:
            raise UserError(
                f"The tokenizer needs frames in multiples of {stride_t} and sizes in multiples of {stride_s}, "
                f"found {t} frames of {h}×{w}. Pad the clip, or use the tiled encoder of tokenizers/tiling.py."
            )
        self._check_reflection(t // stride_t, h // stride_s, w // stride_s)
        return self._run(self.encoder, (video + 1.0) / 2.0)

    def continuous_latents(self, video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b d lt lh lw"]:
        return self.encode_to_latents(video)

    def _run(self, half: nn.Module, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c2 t2 h2 w2"]:
        """Encoder or decoder. `per_frame` folds frames into the batch, which also separates their norm statistics."""
        if not self.config.per_frame:
            return half(x)
        y = half(rearrange(x, "b c t h w -> (b t) c 1 h w"))  # (b*t, c2, 1, h2, w2)
        return rearrange(y, "(b t) c 1 h w -> b c t h w", b=len(x))

    def _check_reflection(self, *latent_shape: int) -> None:
        """Reflection copies the inner neighbour of a border cell, so the coarsest grid needs two cells on each axis."""
        mirrored = latent_shape[1:] if self.config.per_frame else latent_shape
        if self.config.padding == "reflect" and min(mirrored) < 2:
            strides = self.spec.temporal_stride, self.spec.spatial_stride, self.spec.spatial_stride
            smallest, found = [2 * s for s in strides], [n * s for n, s in zip(latent_shape, strides, strict=True)]
            raise UserError(
                "Padding by reflection needs at least {} frames of {}×{}, ".format(*smallest)
                + 'found {} frames of {}×{}. Use a larger clip, or padding="zero" when training.'.format(*found)
            )

    def encode(self, video: Float[Tensor, "b 3 t h w"]) -> Int[Tensor, "b lt lh lw"]:
        return self.quantizer.tokens(self.encode_to_latents(video))

    def decode(self, tokens: Int[Tensor, "b lt lh lw"]) -> Float[Tensor, "b 3 t h w"]:
        self._check_reflection(*tokens.shape[1:])
        return self._run(self.decoder, self.quantizer.lookup(tokens)) * 2.0 - 1.0

    @property
    def has_batch_terms(self) -> bool:
        return self.config.entropy_cost > 0

    def forward_train(
        self, video: Float[Tensor, "b 3 t h w"], draws: Draws | None = None, whole: WholeMean = all_at_hand
    ) -> TokenizerOutput:
        """Reconstruction and losses of stage 1: squared error in [0, 1] plus the three quantizer terms."""
        quantized, tokens, losses = self.quantizer(self.encode_to_latents(video), draws, whole)
        reconstruction = self._run(self.decoder, quantized)  # [0, 1]
        squared_error = (reconstruction.float() - (video + 1.0) / 2.0).square().mean()
        return TokenizerOutput(reconstruction * 2.0 - 1.0, tokens, {"reconstruction": squared_error, **losses})
