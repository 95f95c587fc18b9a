"""Network of the published KL autoencoders, for images (Stable Diffusion) and for video (Open-Sora Plan).

One network covers both (arXiv 2112.10752; arXiv 2412.00131), since the second inflates the first: every block works
either on single frames ("2") or on clips ("3"). Modules have the names of the released weights, which load unchanged.

Top to bottom: configuration, layers, encoder, decoder. The tokenizer is in `autoencoder_kl.py`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from mutoscope.errors import UserError


@dataclass(frozen=True)
class AutoencoderKLConfig:
    """Sizes of the network; defaults are the image autoencoder of Stable Diffusion: 83,653,863 parameters.

    `down_dims`, `up_dims`: 2 or 3 for every stage, from the pixels and from the latents. A stage before a 3-D one
    halves time too. `scaling_factor` and `shift_factor` normalise latents: (mean − shift)·scale.
    `tile_frames`: frames in one pass of the 3-D network, 1 + k·stride.
    """

    block_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    latent_channels: int = 4
    num_groups: int = 32
    down_dims: tuple[int, ...] = (2, 2, 2, 2)
    up_dims: tuple[int, ...] = (2, 2, 2, 2)
    quant_conv: bool = True
    post_quant_conv: bool = True
    scaling_factor: float = 0.18215  # Stable Diffusion's: latents of unit standard deviation (arXiv 2112.10752)
    shift_factor: float = 0.0
    tile_frames: int = 17

    def __post_init__(self) -> None:
        for name in ("block_channels", "down_dims", "up_dims"):  # JSON has no tuples
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not len(self.block_channels) == len(self.down_dims) == len(self.up_dims) > 0:
            raise UserError(
                f"Every stage needs its width and its dimensions, found {len(self.block_channels)} widths, "
                f"{len(self.down_dims)} down_dims and {len(self.up_dims)} up_dims."
            )
        if set(self.down_dims + self.up_dims) - {2, 3} or len({self.down_dims[-1], *self.up_dims}) > 1:
            raise UserError(
                "Stages are 2-D or 3-D; those of the decoder are all of one kind, that of the encoder's last stage: "
                f"found down_dims {self.down_dims}, up_dims {self.up_dims}."
            )
        if list(self.down_dims) != sorted(self.down_dims):
            raise UserError(f"A 2-D stage cannot follow a 3-D one, found down_dims {self.down_dims}.")
        if any(width % self.num_groups for width in self.block_channels):
            raise UserError(f"Every width must be a multiple of num_groups {self.num_groups}: {self.block_channels}.")
        if self.scaling_factor == 0 or (self.tile_frames - 1) % self.temporal_stride or self.tile_frames < 2:
            raise UserError(
                f"scaling_factor must not be 0 and tile_frames must be 1 + k·{self.temporal_stride}, found "
                f"{self.scaling_factor} and {self.tile_frames}."
            )

    @classmethod
    def opensora(cls) -> "AutoencoderKLConfig":
        """The video autoencoder of Open-Sora Plan: 239,189,991 parameters."""
        return cls(down_dims=(2, 2, 3, 3), up_dims=(3, 3, 3, 3))

    @property
    def halves_time(self) -> tuple[bool, ...]:
        """Whether the step from a stage of the encoder to the next halves time; the decoder doubles it as often."""
        return tuple(dim == 3 for dim in self.down_dims[1:])

    @property
    def temporal_stride(self) -> int:
        return 2 ** sum(self.halves_time)

    @property
    def is_3d(self) -> bool:
        return self.up_dims[0] == 3


NORM_EPS = 1e-6  # of the released weights; PyTorch's default is 1e-5


# ---------------------------------------------------------------------------------------------------------------------
# Layers. 2-D ones take frames (n, c, h, w), 3-D ones clips (b, c, t, h, w).


class CausalConv3d(nn.Conv3d):
    """Frame t sees frames up to t; copies of the first frame pad time, zeros pad space."""

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c2 t2 h2 w2"]:
        past = x[:, :, :1].expand(-1, -1, self.kernel_size[0] - 1, -1, -1)
        return super().forward(torch.cat([past, x], dim=2))


def conv(dims: int, channels_in: int, channels_out: int, size: int = 3) -> nn.Conv2d | CausalConv3d:
    """Convolution of stride 1 that keeps the size, over frames (`dims` 2) or clips (3)."""
    if dims == 2:
        return nn.Conv2d(channels_in, channels_out, size, padding=size // 2)
    return CausalConv3d(channels_in, channels_out, size, padding=(0, size // 2, size // 2))


def norm(channels: int, config: AutoencoderKLConfig) -> nn.GroupNorm:
    """Group normalisation with the epsilon of the released weights."""
    return nn.GroupNorm(config.num_groups, channels, eps=NORM_EPS)


class ResBlock(nn.Module):
    """(norm, swish, 3-wide convolution) twice; a convolution of size 1 on the shortcut where the width changes."""

    def __init__(self, dims: int, channels_in: int, channels_out: int, config: AutoencoderKLConfig) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(channels_in, config), conv(dims, channels_in, channels_out)
        self.norm2, self.conv2 = norm(channels_out, config), conv(dims, channels_out, channels_out)
        same = channels_in == channels_out
        self.conv_shortcut = None if same else conv(dims, channels_in, channels_out, 1)

    def forward(self, x: Float[Tensor, "n c *grid"]) -> Float[Tensor, "n c2 *grid"]:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Attention(nn.Module):
    """One head over all positions of a frame; the norm before it runs over the whole clip."""

    def __init__(self, channels: int, config: AutoencoderKLConfig) -> None:
        super().__init__()
        self.group_norm = norm(channels, config)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.Sequential(nn.Linear(channels, channels))

    def forward(self, x: Float[Tensor, "b c *grid"]) -> Float[Tensor, "b c *grid"]:
        y = as_frames(self.group_norm(x))  # (n, c, h, w)
        rows = rearrange(y, "n c h w -> n 1 (h w) c")  # one head
        a = self.to_out(F.scaled_dot_product_attention(self.to_q(rows), self.to_k(rows), self.to_v(rows)))
        a = rearrange(a, "n 1 (h w) c -> n c h w", h=y.shape[2])
        return x + (a if x.ndim == 4 else as_clips(a, len(x)))


class Downsample(nn.Module):
    """Halves space, padded at the right and bottom, and in 3-D time, with the first frame alone."""

    def __init__(self, dims: int, channels: int) -> None:
        super().__init__()
        kind = nn.Conv2d if dims == 2 else CausalConv3d
        self.conv = kind(channels, channels, 3, stride=2)

    def forward(self, x: Float[Tensor, "n c *grid"]) -> Float[Tensor, "n c *smaller"]:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles space. With `time`, doubles all frames but the first one, and interpolates linearly."""

    def __init__(self, dims: int, channels: int, time: bool) -> None:
        super().__init__()
        self.time = time
        if dims == 2 or time:
            self.conv = conv(dims, channels, channels)
        else:
            self.conv = nn.Conv3d(channels, channels, (1, 3, 3), padding=(0, 1, 1))

    def forward(self, x: Float[Tensor, "n c *grid"]) -> Float[Tensor, "n c *larger"]:
        return self.conv(self._linear(x) if self.time else self._nearest(x))

    @staticmethod
    def _nearest(x: Tensor) -> Tensor:
        scale = (2.0, 2.0) if x.ndim == 4 else (1.0, 2.0, 2.0)
        return F.interpolate(x, scale_factor=scale, mode="nearest")

    @staticmethod
    def _linear(x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t2 h2 w2"]:
        first = F.interpolate(x[:, :, :1], scale_factor=(1.0, 2.0, 2.0), mode="trilinear")
        if x.shape[2] == 1:
            return first
        later = F.interpolate(x[:, :, 1:], scale_factor=(2.0, 2.0, 2.0), mode="trilinear")
        return torch.cat([first, later], dim=2)


class MiddleBlock(nn.Module):
    """Residual block, attention inside every frame, residual block."""

    def __init__(self, dims: int, channels: int, config: AutoencoderKLConfig) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResBlock(dims, channels, channels, config) for _ in range(2))
        self.attentions = nn.ModuleList([Attention(channels, config)])

    def forward(self, x: Float[Tensor, "n c *grid"]) -> Float[Tensor, "n c *grid"]:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Stage(nn.Module):
    """Residual blocks of one width, then the step to the next stage, if any."""

    def __init__(self, blocks: list[ResBlock], downsample: nn.Module | None = None, upsample: nn.Module | None = None):
        super().__init__()
        self.resnets = nn.ModuleList(blocks)
        if downsample is not None:
            self.downsamplers = nn.ModuleList([downsample])
        if upsample is not None:
            self.upsamplers = nn.ModuleList([upsample])

    def layers(self) -> Iterator[nn.Module]:
        """Blocks and steps in order."""
        for part in self.children():
            yield from part.children()


def as_frames(x: Float[Tensor, "b c *grid"]) -> Float[Tensor, "n c h w"]:
    """Clips folded into a batch of frames; frames are returned unchanged."""
    return x if x.ndim == 4 else rearrange(x, "b c t h w -> (b t) c h w")


def as_clips(x: Float[Tensor, "n c *grid"], batch: int) -> Float[Tensor, "b c t h w"]:
    """Frames unfolded into `batch` clips; clips are returned unchanged."""
    return x if x.ndim == 5 else rearrange(x, "(b t) c h w -> b c t h w", b=batch)


class Encoder(nn.Module):
    """Pixels to the moments of the latents."""

    def __init__(self, config: AutoencoderKLConfig) -> None:
        super().__init__()
        widths, dims, steps = config.block_channels, config.down_dims, (*config.halves_time, None)
        self.conv_in = conv(dims[0], 3, widths[0])
        self.down_blocks = nn.ModuleList()
        channels = widths[0]
        for width, dim, halves_time in zip(widths, dims, steps, strict=True):
            step = None if halves_time is None else Downsample(3 if halves_time else 2, width)
            blocks = [
                ResBlock(dim, channels if i == 0 else width, width, config) for i in range(config.layers_per_block)
            ]
            self.down_blocks.append(Stage(blocks, downsample=step))
            channels = width
        self.mid_block = MiddleBlock(dims[-1], channels, config)
        self.conv_norm_out = norm(channels, config)
        self.conv_out = conv(dims[-1], channels, 2 * config.latent_channels)

    def forward(self, video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "n d *grid"]:
        x = video if isinstance(self.conv_in, nn.Conv3d) else as_frames(video)
        x = self.conv_in(x)
        for stage in self.down_blocks:
            for layer in stage.layers():
                # From the first 3-D layer on, features are clips.
                x = as_clips(x, len(video)) if _is_3d(layer) else x
                x = layer(x)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))


def _is_3d(layer: nn.Module) -> bool:
    return any(isinstance(part, nn.Conv3d) for part in layer.modules())


class Decoder(nn.Module):
    """Latents to pixels."""

    def __init__(self, config: AutoencoderKLConfig) -> None:
        super().__init__()
        widths, dim = config.block_channels[::-1], config.up_dims[0]
        doublings = sum(config.halves_time)
        self.conv_in = conv(dim, config.latent_channels, widths[0])
        self.mid_block = MiddleBlock(dim, widths[0], config)
        self.up_blocks = nn.ModuleList()
        channels = widths[0]
        for i, width in enumerate(widths):
            step = None if i == len(widths) - 1 else Upsample(dim, width, time=i < doublings)
            blocks = [
                ResBlock(dim, channels if j == 0 else width, width, config) for j in range(config.layers_per_block + 1)
            ]
            self.up_blocks.append(Stage(blocks, upsample=step))
            channels = width
        self.conv_norm_out = norm(channels, config)
        self.conv_out = conv(dim, channels, 3)

    def forward(self, x: Float[Tensor, "n d *grid"]) -> Float[Tensor, "n 3 *larger"]:
        x = self.mid_block(self.conv_in(x))
        for stage in self.up_blocks:
            for layer in stage.layers():
                x = layer(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))
