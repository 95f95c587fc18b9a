"""I3D (arXiv 1705.07750) with RGB input, the network whose Kinetics-400 logits are the features of FVD and KVD.

    video (b, 3, t, 224, 224) in [-1, 1], t at least 9
      -> stem: three units and two max-pools
      -> nine mixed blocks in three groups, a max-pool before the second and the third
      -> average over 7×7 cells and two steps, 1×1×1 convolution -> logits (b, 400) averaged over the remaining steps

A unit is convolution, batch norm with stored statistics, ReLU. Padding is TensorFlow's "same" everywhere: what does not
divide goes to the end of an axis. Names of parameters are those of the common weight files (`i3d_pretrained_400.pt` of
VideoGPT, TATS and cd-fvd, converted from TF-Hub; `rgb_imagenet.pt` of pytorch-i3d, which is trained otherwise).
"""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mutoscope.errors import UserError
from mutoscope.evaluation.networks.weights import fit_weights, read_weights

MIN_FRAMES = 9
SIDE = 224
SMALLEST_SIDE = 193  # from here to 224 the last map has 7×7 cells
WHAT = "I3D with Kinetics-400 classes"
MIXED_NAMES = ("3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c")
POOL_BEFORE = {
    "3b": ("MaxPool3d_3a_3x3", (1, 3, 3), (1, 2, 2)),
    "4b": ("MaxPool3d_4a_3x3", (3, 3, 3), (2, 2, 2)),
    "5b": ("MaxPool3d_5a_2x2", (2, 2, 2), (2, 2, 2)),
}
Sizes = tuple[int, int, int]


@dataclass(frozen=True)
class I3DConfig:
    """Channels of the stem's units, of every mixed block's (b0, b1a, b1b, b2a, b2b, b3b), and the batch norm's eps.

    eps is 1e-3 in TensorFlow's network and MAGVIT's, 1e-5 in the ports of VideoGPT and TATS: about 1 % of the logits.
    """

    stem: tuple[int, ...] = (64, 64, 192)
    mixed: tuple[tuple[int, ...], ...] = (
        (64, 96, 128, 16, 32, 32),
        (128, 128, 192, 32, 96, 64),
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
        (256, 160, 320, 32, 128, 128),
        (384, 192, 384, 48, 128, 128),
    )
    num_classes: int = 400
    eps: float = 1e-3


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Cells to add before and after an axis so that its length becomes ceil(size / stride)."""
    total = max(kernel - (size % stride or stride), 0)
    return total // 2, total - total // 2


def pad_same(x: Float[Tensor, "b c t h w"], kernel: Sizes, stride: Sizes) -> Float[Tensor, "b c t2 h2 w2"]:
    """Zeros around time, height and width."""
    pads: list[int] = []
    for axis in (2, 1, 0):  # F.pad wants the last axis first
        pads += same_padding(x.shape[2 + axis], kernel[axis], stride[axis])
    return F.pad(x, pads) if any(pads) else x


def conv_same(x: Float[Tensor, "b c t h w"], conv: nn.Conv3d) -> Float[Tensor, "b d t2 h2 w2"]:
    """Convolution with same padding, done by the convolution itself if both ends get the same."""
    kernel, stride = _sizes(conv.kernel_size), _sizes(conv.stride)
    if kernel == (1, 1, 1) and stride == (1, 1, 1):  # with channels last in memory, one matrix product
        return F.linear(x.movedim(1, -1), conv.weight.flatten(1), conv.bias).movedim(-1, 1)
    sides = [same_padding(x.shape[2 + axis], kernel[axis], stride[axis]) for axis in range(3)]
    if all(front == back for front, back in sides):
        return F.conv3d(x, conv.weight, conv.bias, stride, padding=[front for front, _ in sides])
    return F.conv3d(pad_same(x, kernel, stride), conv.weight, conv.bias, stride)


def _sizes(values: tuple[int, ...]) -> Sizes:
    t, h, w = values
    return t, h, w


def max_pool_same(x: Float[Tensor, "b c t h w"], kernel: Sizes, stride: Sizes) -> Float[Tensor, "b c t2 h2 w2"]:
    """Max-pool with zeros at the borders, as in the PyTorch ports; TensorFlow's pads with -inf.

    Equal inside the network, where inputs are never negative.
    """
    # On the CPU this layout is several times as fast.
    x = pad_same(x, kernel, stride).contiguous(memory_format=torch.channels_last_3d)
    return F.max_pool3d(x, kernel, stride)


class Unit(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(self, channels_in: int, channels: int, kernel: int, stride: int, eps: float) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(channels_in, channels, kernel, stride, bias=False)
        self.bn: nn.Module = nn.BatchNorm3d(channels, eps)

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b d t2 h2 w2"]:
        return F.relu_(self.bn(conv_same(x, self.conv3d)))

    def fold(self) -> None:
        """Fold the batch norm into the convolution."""
        if isinstance(self.bn, nn.BatchNorm3d):
            self.conv3d, self.bn = fuse_conv_bn_eval(self.conv3d, self.bn), nn.Identity()


class Mixed(nn.Module):
    """Four branches side by side: 1×1×1; 1×1×1 and 3×3×3, twice; max-pool and 1×1×1."""

    def __init__(self, channels_in: int, widths: tuple[int, ...], eps: float) -> None:
        super().__init__()
        c0, c1a, c1b, c2a, c2b, c3 = widths
        self.b0 = Unit(channels_in, c0, 1, 1, eps)
        self.b1a, self.b1b = Unit(channels_in, c1a, 1, 1, eps), Unit(c1a, c1b, 3, 1, eps)
        self.b2a, self.b2b = Unit(channels_in, c2a, 1, 1, eps), Unit(c2a, c2b, 3, 1, eps)
        self.b3b = Unit(channels_in, c3, 1, 1, eps)
        self.channels = c0 + c1b + c2b + c3

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b d t h w"]:
        pooled = max_pool_same(x, (3, 3, 3), (1, 1, 1))
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pooled)], dim=1)


class Logits(nn.Module):
    """The classifier, under the name it has in weight files."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(channels, num_classes, 1)


class I3D(nn.Module):
    """Clips in [-1, 1] to logits, in evaluation mode always."""

    def __init__(self, config: I3DConfig) -> None:
        super().__init__()
        self.config = config
        first, second, third = config.stem
        self.Conv3d_1a_7x7 = Unit(3, first, 7, 2, config.eps)
        self.Conv3d_2b_1x1 = Unit(first, second, 1, 1, config.eps)
        self.Conv3d_2c_3x3 = Unit(second, third, 3, 1, config.eps)
        channels = third
        for name, widths in zip(MIXED_NAMES, config.mixed, strict=True):
            block = Mixed(channels, widths, config.eps)
            self.add_module(f"Mixed_{name}", block)
            channels = block.channels
        self.logits = Logits(channels, config.num_classes)
        self.eval().requires_grad_(False)

    def endpoints(self, video: Float[Tensor, "b 3 t h w"]) -> Iterator[tuple[str, Tensor]]:
        """Every map of the trunk (b, c, t', h', w') with its name, in order; takes clips of any size."""
        x = self.Conv3d_1a_7x7(video)
        yield "Conv3d_1a_7x7", x
        x = max_pool_same(x, (1, 3, 3), (1, 2, 2))
        yield "MaxPool3d_2a_3x3", x
        for name in ("Conv3d_2b_1x1", "Conv3d_2c_3x3"):
            x = self.get_submodule(name)(x)
            yield name, x
        for name in MIXED_NAMES:
            if name in POOL_BEFORE:
                pool, kernel, stride = POOL_BEFORE[name]
                x = max_pool_same(x, kernel, stride)
                yield pool, x
            x = self.get_submodule(f"Mixed_{name}")(x)
            yield f"Mixed_{name}", x

    def pooled(self, video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b c steps 1 1"]:
        """The input of the classifier, ceil(t / 8) - 1 steps. Raises UserError for too short clips or other sizes."""
        check_clip(*video.shape[2:])
        maps = self.endpoints(video.contiguous(memory_format=torch.channels_last_3d))
        _, last = deque(maps, maxlen=1).pop()  # earlier maps are freed one by one
        return F.avg_pool3d(last, (2, 7, 7), stride=1)

    def logits_per_step(self, video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b classes steps"]:
        return self.logits.conv3d(self.pooled(video)).flatten(2)

    def forward(self, video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b classes"]:
        """Logits averaged over steps."""
        return self.logits_per_step(video).mean(dim=2)

    def fold(self) -> "I3D":
        """Fold all batch norms into the convolutions and reorder weights for speed: equal up to rounding."""
        for module in self.modules():
            if isinstance(module, Unit):
                module.fold()
        return self.to(memory_format=torch.channels_last_3d).requires_grad_(False)

    def train(self, mode: bool = True) -> "I3D":
        """Stays in evaluation mode: statistics are those of Kinetics."""
        return super().train(False)


def check_clip(num_frames: int, height: int = SIDE, width: int = SIDE) -> None:
    """Raises UserError unless I3D gives one vector for a clip of this size."""
    if num_frames < MIN_FRAMES:
        raise UserError(f"I3D needs clips of at least {MIN_FRAMES} frames, found {num_frames}: take longer clips.")
    if not (SMALLEST_SIDE <= height <= SIDE and SMALLEST_SIDE <= width <= SIDE):
        raise UserError(f"I3D needs frames of {SIDE}×{SIDE} pixels, found {height}×{width}: resize them.")


def infer_config(weights: Mapping[str, Tensor], eps: float) -> I3DConfig:
    """Channel counts from the shapes of the tensors."""
    branches = ("b0", "b1a", "b1b", "b2a", "b2b", "b3b")
    stem = [f"{name}.conv3d.weight" for name in ("Conv3d_1a_7x7", "Conv3d_2b_1x1", "Conv3d_2c_3x3")]
    mixed = [[f"Mixed_{name}.{branch}.conv3d.weight" for branch in branches] for name in MIXED_NAMES]
    return I3DConfig(
        stem=tuple(len(weights[name]) for name in stem),
        mixed=tuple(tuple(len(weights[name]) for name in block) for block in mixed),
        num_classes=len(weights["logits.conv3d.weight"]),
        eps=eps,
    )


def load_i3d(path: Path | str, eps: float = 1e-3, sha256: str | None = None) -> tuple[I3D, str]:
    """I3D with the weights of a local file, and the file's SHA-256. Nothing is downloaded.

    Takes a state dict in the naming of VideoGPT, TATS and pytorch-i3d (.pt, .pth, .safetensors); where the batch norms
    have no weight, as in TensorFlow's file, it is 1. Raises UserError for a TorchScript file, another architecture
    or, with `sha256`, another file.
    """
    weights, found = read_weights(path, WHAT, sha256)
    for name in [name for name in weights if name.endswith(".bn.running_var")]:
        weights.setdefault(name.replace("running_var", "weight"), torch.ones_like(weights[name]))
    network = I3D(replace(I3DConfig(), eps=eps))
    fit_weights(network, weights, path, WHAT)
    return network.fold(), found
