"""A causal video autoencoder: the first frame alone, later frames in groups that see no future.

After MAGVIT-v2 (arXiv 2310.05737 §3.2), whose tokenizer was never released; the layout here is our own. Since
convolutions are causal in time and norms run over single frames, encoding and decoding in parts equals the whole clip.
Three bottlenecks: LFQ and FSQ give tokens, KL gives continuous latents. The same network without time is an
autoencoder of single frames.

Top to bottom: configuration, layers, encoder, decoder, tokenizer.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import log2, prod
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from mutoscope.checks import COUNT, DEPTH, NOT_NEGATIVE, POSITIVE, WIDTH, Range, check_fields
from mutoscope.errors import UserError
from mutoscope.layers.batch_means import WholeMean, all_at_hand
from mutoscope.layers.draws import Draws
from mutoscope.tokenizers.base import StreamState, TokenizerOutput, TokenizerSpec, VideoTokenizer
from mutoscope.tokenizers.quantizers import (
    FiniteScalarQuantizer,
    GaussianBottleneck,
    LookupFreeQuantizer,
    Scaling,
)

Bottleneck = Literal["lfq", "fsq", "kl"]
NORM_EPS = 1e-6  # as in MAGVIT's and VQGAN's tokenizers

MAX_BITS = 16  # of a token, which is stored in two bytes
RANGES = {
    "filters": WIDTH,
    "channel_multipliers": WIDTH,
    "num_res_blocks": DEPTH,
    "num_groups": COUNT,
    "patch_size": COUNT,
    "num_bits": Range(1, MAX_BITS),
    "levels": Range(low=2),
    "latent_channels": WIDTH,
    "commitment_cost": NOT_NEGATIVE,
    "entropy_cost": NOT_NEGATIVE,
    "entropy_temperature": POSITIVE,
    "kl_cost": NOT_NEGATIVE,
}


@dataclass(frozen=True)
class Causal3DConfig:
    """Sizes of the network. Defaults: 17 frames of 128×128 to 5×16×16 tokens of 65,536 codes.

    Every stage after the first halves height and width, and time too where `temporal_downsample` is True. `patch_size`:
    p×p pixels become one position of 3·p² channels before the first convolution and pixels again after the last, so
    that no convolution runs at full resolution (as in LTX-Video, arXiv 2501.00103 §2.1). `num_bits` is for LFQ (2^bits
    codes), `levels` for FSQ (their product), `latent_channels` for KL. `per_frame`: kernels of size 1 in time, so that
    each frame is encoded separately. `latent_scaling`: of KL's latents, see `GaussianBottleneck`. `reconstruction`:
    mean absolute (l1) or squared (l2) error in [-1, 1].
    """

    filters: int = 128
    channel_multipliers: tuple[int, ...] = (1, 2, 2, 4)
    num_res_blocks: int = 2
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    num_groups: int = 32
    bottleneck: Bottleneck = "lfq"
    num_bits: int = 16
    levels: tuple[int, ...] = (8, 8, 8, 5, 5, 5)
    latent_channels: int = 16
    commitment_cost: float = 0.25
    entropy_cost: float = 0.1
    entropy_temperature: float = 0.01
    kl_cost: float = 1e-6
    latent_scaling: Scaling = "channel"
    per_frame: bool = False
    patch_size: int = 1
    reconstruction: Literal["l1", "l2"] = "l2"

    def __post_init__(self) -> None:
        for name in ("channel_multipliers", "temporal_downsample", "levels"):  # JSON has no tuples
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_fields(self, RANGES)
        stages = len(self.channel_multipliers)
        if len(self.temporal_downsample) != stages - 1:
            raise UserError(
                f"temporal_downsample needs one flag per stage transition: {stages} stages have {stages - 1}, "
                f"found {len(self.temporal_downsample)}."
            )
        if self.per_frame and any(self.temporal_downsample):
            raise UserError(f"per_frame never halves time: temporal_downsample must be all false, found {self}.")
        if any(width % self.num_groups for width in self.widths):
            raise UserError(f"Every stage width must be a multiple of num_groups {self.num_groups}: {self.widths}.")
        if not self.levels or log2(prod(self.levels)) > MAX_BITS:
            raise UserError(f"Tokens have at most 65,536 codes: found levels {self.levels}.")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each stage, from the pixels to the latents."""
        return tuple(self.filters * multiplier for multiplier in self.channel_multipliers)

    @property
    def pixel_channels(self) -> int:
        """Channels of a position that the network reads and writes: the colours of one patch."""
        return 3 * self.patch_size**2

    @property
    def kernel(self) -> tuple[int, int, int]:
        """Frames, rows and columns that a convolution sees."""
        return (1, 3, 3) if self.per_frame else (3, 3, 3)

    @property
    def embedding_dim(self) -> int:
        """Channels of the latents after the bottleneck."""
        return {"lfq": self.num_bits, "fsq": len(self.levels), "kl": self.latent_channels}[self.bottleneck]


# ---------------------------------------------------------------------------------------------------------------------
# Layers. Each takes the state of a stream, or None for a whole clip.


def fold_patches(x: Float[Tensor, "b c t h w"], size: int) -> Float[Tensor, "b c*{size}**2 t h//{size} w//{size}"]:
    """Turns patches of size×size positions of each frame into channels."""
    frames = rearrange(x, "b c t h w -> (b t) c h w")
    return rearrange(F.pixel_unshuffle(frames, size), "(b t) c h w -> b c t h w", b=len(x))


def unfold_patches(x: Float[Tensor, "b n t h w"], size: int) -> Float[Tensor, "b n//{size}**2 t h*{size} w*{size}"]:
    """Inverse of `fold_patches`. `pixel_shuffle` keeps the memory format; einops would return to NCHW."""
    frames = rearrange(x, "b c t h w -> (b t) c h w")
    return rearrange(F.pixel_shuffle(frames, size), "(b t) c h w -> b c t h w", b=len(x))


class CausalConv3d(nn.Conv3d):
    """Frame t sees frames up to t; copies of the first frame pad time, zeros pad space."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: tuple[int, int, int] = (1, 1, 1),
        stride: tuple[int, int, int] = (1, 1, 1),
    ) -> None:
        super().__init__(channels_in, channels_out, kernel, stride, padding=(0, kernel[1] // 2, kernel[2] // 2))
        self.num_past = kernel[0] - 1

    def forward(
        self, x: Float[Tensor, "b c t h w"], state: StreamState | None = None
    ) -> Float[Tensor, "b c2 t2 h2 w2"]:
        if self.num_past == 0:
            return self._frame_by_frame(x)
        past = state.past.get(self) if state else None
        if past is None:
            past = x[:, :, :1].expand(-1, -1, self.num_past, -1, -1)
        x = torch.cat([past, x], dim=2)  # (b, c, past + t, h, w)
        if state is not None:
            # The next output starts `stride` frames after the first frame of the last one.
            state.past[self] = x[:, :, x.shape[2] - (self.num_past + 1 - self.stride[0]) :]
        return super().forward(x)

    def _frame_by_frame(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c2 t h2 w2"]:
        """The same result by a convolution of images, which is faster than one of volumes."""
        frames = rearrange(x, "b c t h w -> (b t) c h w")
        y = F.conv2d(frames, self.weight[:, :, 0], self.bias, self.stride[1:], self.padding[1:])
        return rearrange(y, "(b t) c h w -> b c t h w", b=len(x))


class FrameNorm(nn.GroupNorm):
    """Group normalisation of each frame, followed by swish."""

    def __init__(self, channels: int, config: Causal3DConfig) -> None:
        super().__init__(config.num_groups, channels, eps=NORM_EPS)

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h w"]:
        y = super().forward(rearrange(x, "b c t h w -> (b t) c h w"))
        return F.silu(rearrange(y, "(b t) c h w -> b c t h w", b=len(x)))


class ResBlock(nn.Module):
    """(norm, swish, causal convolution) twice."""

    def __init__(self, channels_in: int, channels_out: int, config: Causal3DConfig) -> None:
        super().__init__()
        self.norm1, self.conv1 = FrameNorm(channels_in, config), CausalConv3d(channels_in, channels_out, config.kernel)
        self.norm2, self.conv2 = (
            FrameNorm(channels_out, config),
            CausalConv3d(channels_out, channels_out, config.kernel),
        )
        same = channels_in == channels_out
        self.shortcut = None if same else CausalConv3d(channels_in, channels_out)

    def forward(self, x: Float[Tensor, "b c t h w"], state: StreamState | None) -> Float[Tensor, "b c2 t h w"]:
        h = self.conv1(self.norm1(x), state)
        h = self.conv2(self.norm2(h), state)
        return h + (x if self.shortcut is None else self.shortcut(x))


class Down(CausalConv3d):
    """Halves space and, with `temporal`, time: frames 0, 2, 4 … see the frame before them."""

    def __init__(self, channels: int, temporal: bool, config: Causal3DConfig) -> None:
        super().__init__(channels, channels, config.kernel, stride=(2 if temporal else 1, 2, 2))


class Up(nn.Module):
    """Doubles space and, with `temporal`, time: channels become pixels. The first frame of a clip stays single."""

    def __init__(self, channels: int, temporal: bool, config: Causal3DConfig) -> None:
        super().__init__()
        self.factor = 2 if temporal else 1
        self.conv = CausalConv3d(channels, channels * self.factor * 4, config.kernel)

    def forward(self, x: Float[Tensor, "b c t h w"], state: StreamState | None) -> Float[Tensor, "b c t2 h2 w2"]:
        begins = state is None or self.conv not in state.past
        y = self.conv(x, state)  # (b, c*f*4, t, h, w)
        if self.factor == 1:
            return unfold_patches(y, 2)
        y = rearrange(y, "b (c f p q) t h w -> b c (t f) (h p) (w q)", f=self.factor, p=2, q=2)
        return y[:, :, self.factor - 1 :] if begins else y


class Stack(nn.Module):
    """A sequence of layers that share the state of a stream."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(
        self, x: Float[Tensor, "b c t h w"], state: StreamState | None = None
    ) -> Float[Tensor, "b c2 t2 h2 w2"]:
        for layer in self.layers:
            x = layer(x) if isinstance(layer, FrameNorm) else layer(x, state)
        return x


def res_blocks(channels_in: int, channels_out: int, count: int, config: Causal3DConfig) -> list[nn.Module]:
    return [ResBlock(a, b, config) for a, b in itertools.pairwise([channels_in] + [channels_out] * count)]


def encoder(config: Causal3DConfig, channels_out: int) -> Stack:
    """Network from pixels to the input of the bottleneck."""
    layers: list[nn.Module] = [CausalConv3d(config.pixel_channels, config.filters, config.kernel)]
    channels = config.filters
    for i, width in enumerate(config.widths):
        layers += res_blocks(channels, width, config.num_res_blocks, config)
        channels = width
        if i < len(config.widths) - 1:
            layers.append(Down(channels, config.temporal_downsample[i], config))
    layers += res_blocks(channels, channels, config.num_res_blocks, config)
    return Stack([*layers, FrameNorm(channels, config), CausalConv3d(channels, channels_out)])


def decoder(config: Causal3DConfig) -> Stack:
    """Network from codes or latents to pixels: the encoder mirrored."""
    channels = config.widths[-1]
    layers: list[nn.Module] = [CausalConv3d(config.embedding_dim, channels, config.kernel)]
    layers += res_blocks(channels, channels, config.num_res_blocks, config)
    for i in reversed(range(len(config.widths))):
        layers += res_blocks(channels, config.widths[i], config.num_res_blocks, config)
        channels = config.widths[i]
        if i > 0:
            layers.append(Up(channels, config.temporal_downsample[i - 1], config))
    return Stack([*layers, FrameNorm(channels, config), CausalConv3d(channels, config.pixel_channels, config.kernel)])


class Causal3D(VideoTokenizer):
    """Encoder, bottleneck and decoder; pixels in [-1, 1].

    Clips have 1 + k·s frames, s the temporal stride. A clip may also come in parts: the first of 1 + k·s frames, the
    others of multiples of s; for decoding, in parts of any number of latent frames.
    """

    def __init__(self, config: Causal3DConfig) -> None:
        super().__init__()
        self.config = config
        c = config
        if c.bottleneck == "lfq":
            costs = c.commitment_cost, c.entropy_cost, c.entropy_temperature
            self.bottleneck: LookupFreeQuantizer | FiniteScalarQuantizer | GaussianBottleneck = LookupFreeQuantizer(
                c.num_bits, *costs
            )
        elif c.bottleneck == "fsq":
            self.bottleneck = FiniteScalarQuantizer(c.levels)
        else:
            self.bottleneck = GaussianBottleneck(c.kl_cost, c.latent_channels, c.latent_scaling)
        self.encoder = encoder(config, c.embedding_dim * (2 if c.bottleneck == "kl" else 1))
        self.decoder = decoder(config)

    @property
    def spec(self) -> TokenizerSpec:
        config = self.config
        codes = {"lfq": 2**config.num_bits, "fsq": prod(config.levels), "kl": None}[config.bottleneck]
        return TokenizerSpec(
            temporal_stride=2 ** sum(config.temporal_downsample),
            spatial_stride=config.patch_size * 2 ** len(config.temporal_downsample),
            vocab_size=codes,
            latent_channels=config.latent_channels if codes is None else None,
            causal_in_time=not config.per_frame,
            per_frame=config.per_frame,
        )

    def encode_to_latents(
        self, video: Float[Tensor, "b 3 t h w"], state: StreamState | None = None
    ) -> Float[Tensor, "b d lt lh lw"]:
        """Input of the bottleneck. Raises UserError for sizes that the strides do not divide."""
        stride, side = self.spec.temporal_stride, self.spec.spatial_stride
        t, h, w = video.shape[-3:]
        alone = 0 if state is not None and self.encoder.layers[0] in state.past else 1
        if (t - alone) % stride or t < 1 or h % side or w % side:
            raise UserError(
                f"The tokenizer needs {alone} + k·{stride} frames and sizes in multiples of {side}, found {t} frames "
                f"of {h}×{w}. Pad the clip, or use the tiled encoder of tokenizers/tiling.py."
            )
        return self.encoder(self._frames_layout(fold_patches(video, self.config.patch_size)), state)

    def _frames_layout(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h w"]:
        """The memory format of the convolutions. Channels last is up to twice as fast for images on CPUs, and in it
        the layers' changes between clips and single frames are views; convolutions of volumes stay as they are."""
        return x.contiguous(memory_format=torch.channels_last_3d) if self.config.per_frame else x

    def _pixels(self, latents: Float[Tensor, "b d lt lh lw"], state: StreamState | None = None) -> Tensor:
        patches = self.decoder(self._frames_layout(latents), state)  # (b, 3*p*p, t, h/p, w/p)
        return unfold_patches(patches, self.config.patch_size)

    def encode(self, video: Float[Tensor, "b 3 t h w"]) -> Int[Tensor, "b lt lh lw"] | Float[Tensor, "b d lt lh lw"]:
        return self.bottleneck.encode(self.encode_to_latents(video))

    def continuous_latents(self, video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b d lt lh lw"]:
        # A KL bottleneck reads means and variances, which are no latents yet.
        return self.encode(video) if self.spec.vocab_size is None else self.encode_to_latents(video)

    def decode(self, tokens: Int[Tensor, "b lt lh lw"] | Float[Tensor, "b d lt lh lw"]) -> Float[Tensor, "b 3 t h w"]:
        return self._pixels(self.bottleneck.lookup(tokens))

    def encode_part(self, video: Float[Tensor, "b 3 t h w"], state: StreamState) -> Tensor:
        """Tokens or latents of the next frames of a stream."""
        return self.bottleneck.encode(self.encode_to_latents(video, state))

    def decode_part(self, latents: Tensor, state: StreamState) -> Float[Tensor, "b 3 t h w"]:
        """Pixels of the next tokens or latents of a stream."""
        return self._pixels(self.bottleneck.lookup(latents), state)

    def stream_encode(self, parts: Iterable[Tensor]) -> Iterator[Tensor]:
        """Tokens or latents of a clip, one part after another; all parts together equal `encode` of the whole."""
        state = StreamState()
        for part in parts:
            yield self.encode_part(part, state)

    @property
    def can_rewind(self) -> bool:
        return True

    def stream_decode(self, latents: Iterable[Tensor], state: StreamState | None = None) -> Iterator[Tensor]:
        state = StreamState() if state is None else state
        for part in latents:
            yield self.decode_part(part, state)

    @property
    def has_batch_terms(self) -> bool:
        return self.config.bottleneck == "lfq" and self.config.entropy_cost > 0

    def forward_train(
        self, video: Float[Tensor, "b 3 t h w"], draws: Draws | None = None, whole: WholeMean = all_at_hand
    ) -> TokenizerOutput:
        """Reconstruction and losses: absolute or squared error in [-1, 1] plus the bottleneck's terms.

        The KL bottleneck draws its latents from `draws`; without these, their mean is decoded.
        """
        latents, tokens, losses = self.bottleneck(self.encode_to_latents(video), draws, whole)
        reconstruction = self._pixels(latents)
        distance = F.l1_loss if self.config.reconstruction == "l1" else F.mse_loss
        error = distance(reconstruction.float(), video)
        return TokenizerOutput(reconstruction, tokens, {"reconstruction": error, **losses})

    def set_latent_statistics(self, videos: Iterable[Float[Tensor, "b 3 t h w"]]) -> None:
        """Normalises every channel of the latents to mean 0 and variance 1 over these clips; `decode` inverts it.

        Raises UserError for a tokenizer of discrete tokens.
        """
        if not isinstance(self.bottleneck, GaussianBottleneck):
            raise UserError(f"Tokens of the {self.config.bottleneck} bottleneck have no statistics; latents of kl do.")
        with torch.no_grad():
            self.bottleneck.normalize(self.encode_to_latents(video) for video in videos)
