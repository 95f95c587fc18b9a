"""Perceptual losses of stage 1, computed frame by frame by ImageNet networks with weights from local files.

MAGVIT compares the 1000 logits of a ResNet-50 (arXiv 2212.05199, §3.1); LlamaGen compares VGG-16 features as LPIPS
does (arXiv 1801.03924), with learned weights per channel. Nothing is downloaded: `load_perceptual` reads local files,
networks in torchvision's naming and LPIPS' weights in its own.
"""

import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mutoscope.errors import UserError, reason
from mutoscope.layers.precision import full_precision
from mutoscope.state_dicts import open_containers, read_stored, without_wrappers

Compare = Literal["logits", "features"]
Flavor = Literal["torchvision", "released"]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDE = 224  # pixels of ImageNet crops
LENGTH_EPS = 1e-10  # LPIPS: keeps the scaling to unit length finite where all features are 0


@dataclass(frozen=True)
class ResNetConfig:
    """A ResNet of bottleneck blocks; defaults are ResNet-50.

    `flavor`: "torchvision" is the network of public weights, with a ReLU before the max-pool, symmetric padding and
    inputs normalised by ImageNet's mean and standard deviation. "released" is the network in MAGVIT's code, without
    these three.
    """

    blocks: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    num_outputs: int = 1000
    flavor: Flavor = "torchvision"


def pad_same(x: Float[Tensor, "n c h w"], kernel: int, stride: int, value: float = 0.0) -> Float[Tensor, "n c h2 w2"]:
    """Pads so that an axis of n cells yields ceil(n / stride), with odd cells at the end (TensorFlow's "same")."""
    pads: list[int] = []
    for size in (x.shape[-1], x.shape[-2]):
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads, value=value)


class Conv(nn.Conv2d):
    """A convolution without bias, padded according to its flavor."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int, flavor: Flavor) -> None:
        symmetric = kernel // 2 if flavor == "torchvision" else 0
        super().__init__(channels_in, channels_out, kernel, stride, padding=symmetric, bias=False)
        self.flavor = flavor

    def forward(self, x: Tensor) -> Tensor:
        if self.flavor == "released":
            x = pad_same(x, self.kernel_size[0], self.stride[0])
        return super().forward(x)


class Bottleneck(nn.Module):
    """1×1, 3×3 (which carries the stride), 1×1 to four times the width; names as in torchvision."""

    def __init__(self, channels_in: int, width: int, stride: int, flavor: Flavor) -> None:
        super().__init__()
        self.conv1, self.bn1 = Conv(channels_in, width, 1, 1, flavor), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = Conv(width, width, 3, stride, flavor), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = Conv(width, 4 * width, 1, 1, flavor), nn.BatchNorm2d(4 * width)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or channels_in != 4 * width:
            shortcut = Conv(channels_in, 4 * width, 1, stride, flavor)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(self.conv1(x)))
        h = F.relu(self.bn2(self.conv2(h)))
        return F.relu(self.bn3(self.conv3(h)) + self.downsample(x))


class ResNet(nn.Module):
    """Frames in [0, 1] to logits, or to the last feature map."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config = config
        self.conv1, self.bn1 = Conv(3, config.width, 7, 2, config.flavor), nn.BatchNorm2d(config.width)
        channels = config.width
        for i, count in enumerate(config.blocks):
            width = config.width * 2**i
            strides = [1 if i == 0 else 2] + [1] * (count - 1)
            widths = [channels] + [4 * width] * (count - 1)
            stage = [Bottleneck(c, width, s, config.flavor) for c, s in zip(widths, strides, strict=True)]
            self.add_module(f"layer{i + 1}", nn.Sequential(*stage))
            channels = 4 * width
        self.fc = nn.Linear(channels, config.num_outputs)

    def features(self, frames: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n c h2 w2"]:
        """Last feature map of frames in [0, 1]."""
        if self.config.flavor == "torchvision":
            x = F.relu(self.bn1(self.conv1(normalize(frames))))
            x = F.max_pool2d(x, 3, 2, padding=1)
        else:
            x = self.bn1(self.conv1(frames))
            x = F.max_pool2d(pad_same(x, 3, 2, value=-torch.inf), 3, 2)
        for i in range(len(self.config.blocks)):
            x = self.get_submodule(f"layer{i + 1}")(x)
        return x

    def forward(self, frames: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n outputs"]:
        return self.fc(self.features(frames).mean(dim=(2, 3)))


class VGG16(nn.Module):
    """Frames in [0, 1] to the five feature maps before each pooling; parameter names as in torchvision."""

    MAP_WIDTHS = (64, 128, 256, 512, 512)
    WIDTHS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)  # 0: max-pool

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in self.WIDTHS:
            if width == 0:
                layers.append(nn.MaxPool2d(2, 2))
                continue
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        self.features = nn.Sequential(*layers)

    def forward(self, frames: Float[Tensor, "n 3 h w"]) -> list[Float[Tensor, "n _c _h _w"]]:
        x, maps = normalize(frames), []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                maps.append(x)
            x = layer(x)
        return [*maps, x]


class AlexNet(nn.Module):
    """Frames in [0, 1] to the five feature maps after each convolution; parameter names as in torchvision."""

    MAP_WIDTHS = (64, 192, 384, 256, 256)

    def __init__(self) -> None:
        super().__init__()
        first = [nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)]
        second = [nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)]
        third = [nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()]
        fourth = [nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()]
        fifth = [nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()]
        self.features = nn.Sequential(*first, *second, *third, *fourth, *fifth)

    def forward(self, frames: Float[Tensor, "n 3 h w"]) -> list[Float[Tensor, "n _c _h _w"]]:
        x, maps = normalize(frames), []
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                maps.append(x)
        return maps


def normalize(frames: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
    """From [0, 1] to zero mean and unit standard deviation per channel over ImageNet."""
    mean, std = (frames.new_tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (frames - mean) / std


class PerceptualLoss(nn.Module):
    """Distance of two clips in [0, 1] in the features of a frozen image network.

    ResNet: mean squared difference of the logits (or of the last feature map), frames resized to 224×224 as published.
    VGG-16 and AlexNet: mean squared difference of the five feature maps, each cell scaled to unit length, frames at
    their own size.
    """

    def __init__(self, network: ResNet | VGG16 | AlexNet, compare: Compare = "logits") -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.compare = compare

    @full_precision  # differences of nearly equal features lose all their digits in half precision
    def forward(self, real: Float[Tensor, "b 3 t h w"], fake: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, ""]:
        real, fake = (video.transpose(1, 2).flatten(0, 1) for video in (real, fake))  # (b·t, 3, h, w)
        if not isinstance(self.network, ResNet):
            pairs = zip(self.network(real), self.network(fake), strict=True)
            return torch.stack([(_unit(a) - _unit(b)).square().sum(1).mean() for a, b in pairs]).mean()
        network = self.network if self.compare == "logits" else self.network.features
        return F.mse_loss(network(_resize(real)), network(_resize(fake)))

    def train(self, mode: bool = True) -> "PerceptualLoss":
        """Keeps evaluation mode: the batch statistics are those of ImageNet."""
        return super().train(False)


class LPIPS(nn.Module):
    """Distance of two clips in [0, 1] by VGG-16 or AlexNet features, with learned weights per channel.

    arXiv 1801.03924, Eq. 1; the weights are those of version 0.1.

    In each cell of the five feature maps, features are scaled to unit length and their squared differences weighted per
    channel and summed; the result is the mean over cells, the sum over maps and the mean over frames. It is always in
    evaluation mode, since the dropout before the weights was for learning them. (An outer call of train() turns it on
    again in LlamaGen's script, which adds noise to the loss and keeps its mean.)
    """

    def __init__(self, network: VGG16 | AlexNet) -> None:
        super().__init__()
        self.network = network
        self.heads = nn.ParameterList(torch.ones(width) for width in network.MAP_WIDTHS)
        self.eval().requires_grad_(False)

    @full_precision
    def per_layer(self, real: Float[Tensor, "n 3 h w"], fake: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 5"]:
        """Contribution of each of the five maps to the distance of each pair of frames in [0, 1]."""
        triples = zip(self.heads, self.network(real), self.network(fake), strict=True)
        means = [((_unit_length(a) - _unit_length(b)).square().mean((2, 3)) * w).sum(1) for w, a, b in triples]
        return torch.stack(means, dim=1)

    @full_precision  # differences of nearly equal features lose all their digits in half precision
    def forward(self, real: Float[Tensor, "b 3 t h w"], fake: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, ""]:
        real, fake = (video.transpose(1, 2).flatten(0, 1) for video in (real, fake))  # (b·t, 3, h, w)
        return self.per_layer(real, fake).sum(1).mean()

    def train(self, mode: bool = True) -> "LPIPS":
        """Keeps evaluation mode."""
        return super().train(False)


def _unit_length(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """LPIPS adds its epsilon to the length; `vector_norm` has a gradient at 0, where a square root has none."""
    return x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + LENGTH_EPS)


def _resize(frames: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 224 224"]:
    return F.interpolate(frames, size=(SIDE, SIDE), mode="bilinear", align_corners=False)


def _unit(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    return x / (x.square().sum(1, keepdim=True) + LENGTH_EPS).sqrt()


# ---------------------------------------------------------------------------------------------------------------------
# Weights from a local file


def load_perceptual(
    path: str | Path, compare: Compare = "logits", heads: str | Path | None = None
) -> PerceptualLoss | LPIPS:
    """Loss with torchvision's ResNet-50 (or another bottleneck ResNet), VGG-16 or AlexNet from a local file.

    `path`: a `.pth`, `.pt` or `.safetensors` file. `heads`: LPIPS' linear weights for VGG-16 or AlexNet (its `vgg.pth`,
    `alex.pth`); with them, the distance is LPIPS. Raises UserError for a missing file, another network, or weights that
    do not fit.
    """
    weights = _read(Path(path))
    if "features.0.weight" in weights:
        alex = weights["features.0.weight"].shape[-1] == 11  # side of AlexNet's first kernels
        network: ResNet | VGG16 | AlexNet = AlexNet() if alex else VGG16()
        weights = {name: value for name, value in weights.items() if name.startswith("features.")}
    elif "layer1.0.conv3.weight" in weights and "fc.weight" in weights:
        network = ResNet(infer_resnet_config(weights))
        weights = {name: value for name, value in weights.items() if not name.endswith("num_batches_tracked")}
    else:
        raise UserError(
            f"{path} holds neither torchvision's VGG-16 or AlexNet nor one of its ResNets with bottleneck blocks."
        )
    try:
        problems = network.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise UserError(f"{path} does not hold torchvision's {type(network).__name__}: {reason(error)}.") from None
    missing = [name for name in problems.missing_keys if not name.endswith("num_batches_tracked")]
    if missing or problems.unexpected_keys:
        raise UserError(f"{path}: parameter {(missing or problems.unexpected_keys)[0]!r} is missing or unknown.")
    if heads is None:
        return PerceptualLoss(network, compare)
    if isinstance(network, ResNet):
        raise UserError(f"LPIPS' weights {str(heads)!r} belong to a VGG-16 or AlexNet, but {path} holds a ResNet.")
    return _load_heads(LPIPS(network), Path(heads))


def _load_heads(loss: LPIPS, path: Path) -> LPIPS:
    """Reads LPIPS' weights: lin0.model.1.weight (1, 64, 1, 1) and so on; all other tensors are ignored."""
    found = {
        int(match[1]): value
        for name, value in _read(path).items()
        if (match := re.fullmatch(r"lin(\d)\.model\.\d\.weight", str(name)))
    }
    for i, head in enumerate(loss.heads):
        if i not in found or found[i].numel() != head.numel():
            raise UserError(
                f"{path} is no file of LPIPS' weights for {type(loss.network).__name__}: "
                f"lin{i} with {head.numel()} values is missing."
            )
        head.copy_(found[i].flatten())
    return loss


def infer_resnet_config(weights: dict[str, Tensor]) -> ResNetConfig:
    """Sizes from parameter names and shapes."""
    stages = itertools.takewhile(lambda i: f"layer{i}.0.conv1.weight" in weights, itertools.count(1))
    blocks = tuple(len({n.split(".")[1] for n in weights if n.startswith(f"layer{i}.")}) for i in stages)
    return ResNetConfig(blocks, weights["conv1.weight"].shape[0], weights["fc.weight"].shape[0])


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"There is no file {str(path)!r} with the weights of the perceptual loss.")
    stored = open_containers(read_stored(path))
    weights = {name: value for name, value in stored.items() if isinstance(value, Tensor)}
    if len(weights) < len(stored):
        raise UserError(f"{path} is not a readable weights file: it holds more than named tensors.")
    return without_wrappers(weights)
