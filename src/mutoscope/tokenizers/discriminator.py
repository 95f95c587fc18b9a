"""Discriminators and the adversarial losses of stage 1.

MAGVIT's is a small 3D residual network after StyleGAN, without norms, blur or equalised learning rates
(arXiv 2212.05199, §3.1 and appendix A.2). LlamaGen's is the PatchGAN of VQGAN (arXiv 1611.07004, 2012.09841).
"""

import itertools
import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mutoscope.checks import DEPTH, SIDE, WIDTH, check_fields
from mutoscope.errors import UserError
from mutoscope.layers.precision import autocast_off, full_precision

GanLoss = Literal["non-saturating", "hinge"]
SLOPE = 0.2  # of the leaky ReLU, in both papers
PATCH_STD = 0.02  # of PatchGAN's initial weights, and of its norms' scales around 1 (released code)


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Sizes of the network; `clip_shape` (frames, rows, columns) fixes the width of its first dense layer.

    Defaults are MAGVIT-B at 128×128: 15,339,457 parameters. `per_frame` classifies single frames with 2D convolutions,
    the counterpart of the 2D-VQ; frames are then folded into the batch.
    """

    filters: int = 64
    channel_multipliers: tuple[int, ...] = (2, 4, 4, 4, 4)
    clip_shape: tuple[int, int, int] = (16, 128, 128)
    per_frame: bool = False

    def __post_init__(self) -> None:
        for name in ("channel_multipliers", "clip_shape"):  # JSON has no tuples
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_fields(self, {"filters": WIDTH, "channel_multipliers": WIDTH, "clip_shape": SIDE})
        if not self.channel_multipliers:
            raise UserError(f"The discriminator needs at least one stage of positive width, found {self}.")

    @classmethod
    def paper(cls, size: Literal["B", "L"] = "B", resolution: Literal[64, 128] = 128) -> "DiscriminatorConfig":
        """The published sizes: B or L, for 128×128 clips or the 64×64 layout of BAIR."""
        if size not in ("B", "L") or resolution not in (64, 128):
            raise UserError(f"The discriminator is published as B or L at 64 or 128, found {size!r} at {resolution!r}.")
        multipliers = (2, 4, 4, 4, 4) if resolution == 128 else (2, 4, 4, 4)
        return cls({"B": 64, "L": 128}[size], multipliers, (16, resolution, resolution))

    @property
    def final_shape(self) -> tuple[int, int, int]:
        """Shape of the last feature map: every stage halves each axis, rounding up."""
        factor = 2 ** len(self.channel_multipliers)
        t, h, w = (math.ceil(size / factor) for size in self.clip_shape)
        return (1 if self.per_frame else t), h, w


def _conv(channels_in: int, channels_out: int, size: int, per_frame: bool, bias: bool = True) -> nn.Conv3d:
    frames = 1 if per_frame else size
    padding = (frames // 2, size // 2, size // 2)
    return nn.Conv3d(channels_in, channels_out, (frames, size, size), padding=padding, bias=bias)


def _pool(x: Float[Tensor, "b c t h w"], per_frame: bool) -> Float[Tensor, "b c t2 h2 w2"]:
    """Average over 2×2×2 cells; the last window of an odd axis averages over real cells only."""
    window = [min(2, size) for size in x.shape[-3:]]
    window[0] = 1 if per_frame else window[0]
    return F.avg_pool3d(x, window, ceil_mode=True, count_include_pad=False)


class Block(nn.Module):
    """Halves every axis: (convolution, pool, convolution) plus (pool, 1×1×1 convolution), over √2."""

    def __init__(self, channels_in: int, channels_out: int, per_frame: bool) -> None:
        super().__init__()
        self.per_frame = per_frame
        self.conv1 = _conv(channels_in, channels_in, 3, per_frame)
        self.conv2 = _conv(channels_in, channels_out, 3, per_frame)
        self.skip = _conv(channels_in, channels_out, 1, per_frame, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = _pool(F.leaky_relu(self.conv1(x), SLOPE), self.per_frame)
        h = F.leaky_relu(self.conv2(h), SLOPE)
        return (h + self.skip(_pool(x, self.per_frame))) / math.sqrt(2)


class Discriminator(nn.Module):
    """One logit per clip (per frame for `per_frame`); pixels in [0, 1], as in the paper."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.filters] + [config.filters * m for m in config.channel_multipliers]
        last = widths[-1]
        self.conv_in = _conv(3, config.filters, 3, config.per_frame)
        self.blocks = nn.Sequential(*(Block(a, b, config.per_frame) for a, b in itertools.pairwise(widths)))
        self.conv_out = _conv(last, last, 3, config.per_frame)
        self.dense = nn.Linear(last * math.prod(config.final_shape), last)
        self.logit = nn.Linear(last, 1)
        self.initialize_weights()

    def initialize_weights(self) -> None:
        """Released code: Xavier-uniform kernels and matrices, zero biases."""
        for module in self.modules():
            if isinstance(module, (nn.Conv3d, nn.Linear)):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "n 1"]:
        if tuple(video.shape[-3:]) != self.config.clip_shape:
            raise UserError(
                f"The discriminator was built for clips of {self.config.clip_shape} (frames, rows, columns), found "
                f"{tuple(video.shape[-3:])}."
            )
        if self.config.per_frame:
            video = video.transpose(1, 2).flatten(0, 1).unsqueeze(2)  # (b·t, 3, 1, h, w)
        x = F.leaky_relu(self.conv_in(video), SLOPE)  # (n, c, t, h, w)
        x = F.leaky_relu(self.conv_out(self.blocks(x)), SLOPE)  # (n, c, t', h', w')
        # Channels last, as the published dense layer reads them.
        x = x.permute(0, 2, 3, 4, 1).flatten(1)  # (n, t'*h'*w'*c)
        return self.logit(F.leaky_relu(self.dense(x), SLOPE))


@dataclass(frozen=True)
class PatchDiscriminatorConfig:
    """Width and number of halvings; defaults are LlamaGen's: 2,765,633 parameters."""

    filters: int = 64
    num_layers: int = 3

    def __post_init__(self) -> None:
        check_fields(self, {"filters": WIDTH, "num_layers": DEPTH})


class PatchDiscriminator(nn.Sequential):
    """One logit per patch of every frame; pixels in [0, 1] outside, [-1, 1] inside. Norms over the batch."""

    def __init__(self, config: PatchDiscriminatorConfig) -> None:
        width, last = config.filters, config.num_layers
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(SLOPE)]
        for i in range(1, last + 1):
            channels = [width * min(2 ** (i - 1), 8), width * min(2**i, 8)]
            layers += [nn.Conv2d(*channels, 4, 2 if i < last else 1, 1, bias=False), nn.BatchNorm2d(channels[1])]
            layers.append(nn.LeakyReLU(SLOPE))
        super().__init__(*layers, nn.Conv2d(width * min(2**last, 8), 1, 4, 1, 1))
        self.config = config
        self.initialize_weights()

    def initialize_weights(self) -> None:
        """PatchGAN's released code; biases of convolutions keep PyTorch's default."""
        for module in self.modules():
            # Kernels: N(0, 0.02²).
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=PATCH_STD)
            # Norms: scales N(1, 0.02²), biases 0.
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, mean=1.0, std=PATCH_STD)
                nn.init.zeros_(module.bias)

    def forward(self, video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "n 1 rows columns"]:
        return super().forward(video.transpose(1, 2).flatten(0, 1) * 2 - 1)  # (b·t, 3, h, w)


def make_discriminator(config: DiscriminatorConfig | PatchDiscriminatorConfig) -> nn.Module:
    """The network that a configuration describes."""
    return Discriminator(config) if isinstance(config, DiscriminatorConfig) else PatchDiscriminator(config)


# ---------------------------------------------------------------------------------------------------------------------
# Losses


@full_precision
def generator_loss(fake: Float[Tensor, "n 1 *patches"], kind: GanLoss = "non-saturating") -> Float[Tensor, ""]:
    """mean softplus(−D(v̂)), or −mean D(v̂) for the hinge."""
    return F.softplus(-fake).mean() if kind == "non-saturating" else -fake.mean()


@full_precision
def discriminator_loss(
    real: Float[Tensor, "n 1 *patches"], fake: Float[Tensor, "n 1 *patches"], kind: GanLoss = "non-saturating"
) -> Float[Tensor, ""]:
    """mean softplus(−D(v)) + mean softplus(D(v̂)), or the hinge mean relu(1 − D(v)) + mean relu(1 + D(v̂))."""
    if kind == "non-saturating":
        return F.softplus(-real).mean() + F.softplus(fake).mean()
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def r1_penalty(real: Float[Tensor, "n 1 *patches"], video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, ""]:
    """mean over the batch of ‖∂D(v)/∂v‖², without the customary ½. `video` must require gradients."""
    with autocast_off(video.device):  # which would narrow the products of the second derivative
        (gradient,) = torch.autograd.grad(real.float().sum(), video, create_graph=True)
        return gradient.float().square().sum(dim=(1, 2, 3, 4)).mean()


@full_precision
def lecam_loss(
    real_mean: Float[Tensor, ""],
    fake_mean: Float[Tensor, ""],
    average_real: Float[Tensor, ""],
    average_fake: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """relu(D̄(v) − a_fake)² + relu(a_real − D̄(v̂))² with the moving averages a of the batches' mean logits."""
    return F.relu(real_mean - average_fake).square() + F.relu(average_real - fake_mean).square()
