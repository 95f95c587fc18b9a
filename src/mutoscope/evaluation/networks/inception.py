"""Inception-v3 as FID uses it: TensorFlow's network of 2015-12-05, whose 2048 pooled numbers are the features.

It differs from torchvision's in three points: average pools inside the blocks omit the padding, the last block's
pool takes maxima, and there are 1008 classes. Weights trained by torchvision give other figures (about 1.5 lower FID).

    frame uint8 -> 299×299 by TensorFlow 1's bilinear rule, (x - 128) / 128 -> blocks -> mean over cells -> (n, 2048)

Names of parameters are those of the common conversion `pt_inception-2015-12-05-6726825d.pth`, which are torchvision's.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from mutoscope.evaluation.networks.resize import bilinear
from mutoscope.evaluation.networks.weights import fit_weights, read_weights
from mutoscope.meta_device import on_meta_device

SIDE = 299
WHAT = "Inception-v3 of 2015-12-05 with 1008 classes"
Kernel = int | tuple[int, int]


class ConvUnit(nn.Module):
    """Convolution without bias, batch norm with eps 1e-3, ReLU."""

    def __init__(self, channels_in: int, channels: int, kernel: Kernel, stride: int = 1, padding: Kernel = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(channels, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(self.bn(self.conv(x)))


def average(x: Tensor) -> Tensor:
    """3×3 means over the pixels inside the image only."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class BlockA(nn.Module):
    """35×35 cells: 1×1; 5×5; two 3×3; pool."""

    def __init__(self, channels_in: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = ConvUnit(channels_in, 64, 1)
        self.branch5x5_1, self.branch5x5_2 = ConvUnit(channels_in, 48, 1), ConvUnit(48, 64, 5, padding=2)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = ConvUnit(channels_in, 64, 1), ConvUnit(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = ConvUnit(96, 96, 3, padding=1)
        self.branch_pool = ConvUnit(channels_in, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        parts = [self.branch1x1(x), self.branch5x5_2(self.branch5x5_1(x)), double, self.branch_pool(average(x))]
        return torch.cat(parts, dim=1)


class BlockB(nn.Module):
    """35×35 to 17×17 cells."""

    def __init__(self, channels_in: int) -> None:
        super().__init__()
        self.branch3x3 = ConvUnit(channels_in, 384, 3, stride=2)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = ConvUnit(channels_in, 64, 1), ConvUnit(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = ConvUnit(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, stride=2)], dim=1)


class BlockC(nn.Module):
    """17×17 cells: 1×1; 7×7 and twice 7×7 as rows and columns; pool."""

    def __init__(self, channels_in: int, width: int) -> None:
        super().__init__()
        row, column = ((1, 7), (0, 3)), ((7, 1), (3, 0))  # kernel, padding
        self.branch1x1 = ConvUnit(channels_in, 192, 1)
        self.branch7x7_1 = ConvUnit(channels_in, width, 1)
        self.branch7x7_2 = ConvUnit(width, width, row[0], padding=row[1])
        self.branch7x7_3 = ConvUnit(width, 192, column[0], padding=column[1])
        self.branch7x7dbl_1 = ConvUnit(channels_in, width, 1)
        self.branch7x7dbl_2 = ConvUnit(width, width, column[0], padding=column[1])
        self.branch7x7dbl_3 = ConvUnit(width, width, row[0], padding=row[1])
        self.branch7x7dbl_4 = ConvUnit(width, width, column[0], padding=column[1])
        self.branch7x7dbl_5 = ConvUnit(width, 192, row[0], padding=row[1])
        self.branch_pool = ConvUnit(channels_in, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), single, double, self.branch_pool(average(x))], dim=1)


class BlockD(nn.Module):
    """17×17 to 8×8 cells."""

    def __init__(self, channels_in: int) -> None:
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = ConvUnit(channels_in, 192, 1), ConvUnit(192, 320, 3, stride=2)
        self.branch7x7x3_1 = ConvUnit(channels_in, 192, 1)
        self.branch7x7x3_2 = ConvUnit(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = ConvUnit(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = ConvUnit(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        long = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), long, F.max_pool2d(x, 3, stride=2)], dim=1)


class BlockE(nn.Module):
    """8×8 cells; 3×3 convolutions split into a row and a column side by side."""

    def __init__(self, channels_in: int, pool_maximum: bool) -> None:
        super().__init__()
        self.pool_maximum = pool_maximum
        self.branch1x1 = ConvUnit(channels_in, 320, 1)
        self.branch3x3_1 = ConvUnit(channels_in, 384, 1)
        self.branch3x3_2a = ConvUnit(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = ConvUnit(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1, self.branch3x3dbl_2 = ConvUnit(channels_in, 448, 1), ConvUnit(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = ConvUnit(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = ConvUnit(384, 384, (3, 1), padding=(1, 0))
        self.branch_pool = ConvUnit(channels_in, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = F.max_pool2d(x, 3, stride=1, padding=1) if self.pool_maximum else average(x)
        parts = [self.branch1x1(x), self.branch3x3_2a(single), self.branch3x3_2b(single)]
        parts += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double), self.branch_pool(pooled)]
        return torch.cat(parts, dim=1)


class InceptionV3(nn.Module):
    """Frames to 2048 pooled features, in evaluation mode always."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvUnit(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = ConvUnit(32, 32, 3)
        self.Conv2d_2b_3x3 = ConvUnit(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = ConvUnit(64, 80, 1)
        self.Conv2d_4a_3x3 = ConvUnit(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = BlockA(192, 32), BlockA(256, 64), BlockA(288, 64)
        self.Mixed_6a = BlockB(288)
        self.Mixed_6b, self.Mixed_6c = BlockC(768, 128), BlockC(768, 160)
        self.Mixed_6d, self.Mixed_6e = BlockC(768, 160), BlockC(768, 192)
        self.Mixed_7a = BlockD(768)
        self.Mixed_7b, self.Mixed_7c = BlockE(1280, pool_maximum=False), BlockE(2048, pool_maximum=True)
        self.fc = nn.Linear(2048, 1008)  # the classes of the weight file; features do not need them
        self.eval().requires_grad_(False)

    def preprocess(self, frames: UInt8[Tensor, "n h w 3"]) -> Float[Tensor, "n 3 299 299"]:
        x = bilinear(frames.permute(0, 3, 1, 2).float(), SIDE, SIDE, "legacy")
        return (x - 128) / 128

    def forward(self, frames: UInt8[Tensor, "n h w 3"]) -> Float[Tensor, "n 2048"]:
        x = self.preprocess(frames)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))
        x = F.max_pool2d(x, 3, stride=2)  # (n, 192, 35, 35)
        for name in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"):
            x = self.get_submodule(f"Mixed_{name}")(x)
        return x.mean(dim=(2, 3))  # (n, 2048)

    def train(self, mode: bool = True) -> "InceptionV3":
        """Stays in evaluation mode."""
        return super().train(False)


def load_inception(path: Path | str, sha256: str | None = None) -> tuple[InceptionV3, str]:
    """The network with the weights of a local file, and the file's SHA-256. Nothing is downloaded.

    Raises UserError for torchvision's own weights (1000 classes), another architecture or, with `sha256`, another file.
    """
    weights, found = read_weights(path, WHAT, sha256)
    with on_meta_device():
        network = InceptionV3()
    fit_weights(network, weights, path, WHAT)
    return network, found
