"""The feature network of the shapes dataset: a small 3D convolutional network that predicts the attributes of a clip.

It is trained on the dataset's own labels and attributes and then frozen. Its 64 features per clip give shapes-FVD, its
heads attribute accuracy. It is not I3D, and no figure of it compares with a Kinetics FVD: every figure carries the name
`shapes` and the SHA-256 of the weights file.

    video (b, 3, t, h, w) in [-1, 1]
      -> stem, stride (2, 2, 2)           edges and colours
      -> three stages of factorised residual blocks, to an eighth of the frames, rows and columns. The first keeps
         its size, because a coarser grid loses outlines; coordinates are added after it, because paths need positions
      -> mean, maximum and attention pooling      any frame size, any length from 8 frames
      -> embedding (b, 64) -> seven linear heads
"""

import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from mutoscope import hub
from mutoscope.errors import UserError, reason
from mutoscope.layers.draws import Draws, of_batch, rand, randn
from mutoscope.layers.precision import project_exactly
from mutoscope.state_dicts import without_wrappers

MIN_FRAMES = 8
BUNDLED_FOLDER = hub.ZOO / "shapes-features"
# Heads that choose one option, and heads that decide for every option whether it is present.
CHOICE_HEADS = ("class", "shape", "color", "motion", "num_objects")
PRESENCE_HEADS = ("colors_present", "shapes_present")


@dataclass(frozen=True)
class ShapesFeaturesConfig:
    """Widths of the network and sizes of the dataset's vocabulary. About 465 thousand parameters."""

    stem_channels: int = 24
    stage_channels: tuple[int, ...] = (40, 80, 104)
    stage_strides: tuple[tuple[int, int], ...] = ((1, 1), (2, 2), (2, 2))  # (time, space)
    embedding_size: int = 64
    num_classes: int = 23
    num_shapes: int = 4
    num_colors: int = 8
    num_motions: int = 6
    max_objects: int = 3
    # Augmentation in training: the network must read soft or slightly noisy clips as well as clean ones.
    noise: float = 0.08  # largest standard deviation of added noise, on the [-1, 1] scale
    brightness: float = 0.15  # largest offset
    contrast: float = 0.15  # largest relative change
    soften_share: float = 0.5  # share of clips that are blurred or resampled down and up

    def head_sizes(self) -> dict[str, int]:
        """Outputs of every head, in the order of the one linear layer that holds all heads."""
        return {
            "class": self.num_classes,
            "shape": self.num_shapes,
            "color": self.num_colors,
            "motion": self.num_motions,
            "num_objects": self.max_objects,
            "colors_present": self.num_colors,
            "shapes_present": self.num_shapes,
        }


class LabelledClips(TypedDict):
    """A training batch: clips uint8 (b, t, h, w, 3), and int64 tensors of their attributes by name."""

    video: Tensor
    attributes: Mapping[str, Tensor]


class FactorisedBlock(nn.Module):
    """Residual block, space then time: a 1x3x3 convolution followed by a 3x1x1 one, each after a norm."""

    def __init__(self, in_channels: int, out_channels: int, stride: tuple[int, int] = (1, 1)) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(8, in_channels)
        time_stride, space_stride = stride
        self.space = nn.Conv3d(
            in_channels, out_channels, (1, 3, 3), (1, space_stride, space_stride), padding=(0, 1, 1), bias=False
        )
        self.norm2 = nn.GroupNorm(8, out_channels)
        self.time = nn.Conv3d(out_channels, out_channels, (3, 1, 1), (time_stride, 1, 1), padding=(1, 0, 0))
        self.shortcut = nn.Conv3d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()
        self.stride = (time_stride, space_stride, space_stride)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.space(F.silu(self.norm1(x)))
        hidden = self.time(F.silu(self.norm2(hidden)))
        if self.stride != (1, 1, 1):
            x = F.avg_pool3d(x, self.stride, ceil_mode=True)
        return self.shortcut(x) + hidden


class ShapesFeatures(nn.Module):
    """Embedding and attribute heads of clips of the shapes dataset."""

    def __init__(self, config: ShapesFeaturesConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = nn.Conv3d(4, config.stem_channels, (3, 5, 5), stride=(2, 2, 2), padding=(1, 2, 2))
        widths = (config.stem_channels, *config.stage_channels)
        self.stages = nn.Sequential(
            *(
                nn.Sequential(FactorisedBlock(narrow, wide, stride), FactorisedBlock(wide, wide))
                for (narrow, wide), stride in zip(itertools.pairwise(widths), config.stage_strides, strict=True)
            )
        )
        self.position = nn.Conv3d(3, widths[1], 1)
        self.norm = nn.GroupNorm(8, widths[-1])
        self.attention = nn.Conv3d(widths[-1], 2, 1)
        self.embedding = nn.Linear(4 * widths[-1], config.embedding_size)
        self.heads = nn.Linear(config.embedding_size, sum(config.head_sizes().values()))

    def forward(self, video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b d"]:
        """Embedding of each clip; `video` is in [-1, 1] with at least 8 frames of any size."""
        if video.shape[2] < MIN_FRAMES:
            raise UserError(f"The shapes features need clips of at least {MIN_FRAMES} frames, found {video.shape[2]}.")
        # The maximum of red, green and blue outlines shapes of all colours equally.
        x = torch.cat([video, video.amax(dim=1, keepdim=True)], dim=1)  # (b, 4, t, h, w)
        x = self.stem(x.contiguous(memory_format=torch.channels_last_3d))  # (b, c, t/2, h/2, w/2)
        x = self.stages[0](x)
        # Paths need positions, outlines do not: smooth coordinates in the stem would hide the edges.
        x = x + self.position(_coordinates(x))
        x = F.silu(self.norm(self.stages[1:](x)))  # (b, c, t/8, h/8, w/8)
        # The maximum finds a shape anywhere, two learned queries the main one; the mean keeps global statistics.
        weights = self.attention(x).flatten(2).softmax(dim=-1)  # (b, 2, n)
        values = x.flatten(2)  # (b, c, n)
        picked = torch.einsum("bqn,bcn->bqc", weights, values).flatten(1)  # (b, 2c)
        return self.embedding(torch.cat([values.mean(dim=-1), values.amax(dim=-1), picked], dim=-1))

    def predict(self, embedding: Float[Tensor, "b d"]) -> dict[str, Tensor]:
        """Logits of every head from embeddings: choices (b, options), presences (b, entries)."""
        sizes = self.config.head_sizes()
        return dict(zip(sizes, project_exactly(self.heads, embedding).split(list(sizes.values()), dim=-1), strict=True))

    def loss(self, batch: LabelledClips, generator: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum of the heads' cross entropies on an augmented batch, and its named parts."""
        video = augment(to_float(batch["video"]), self.config, generator)
        logits, truth = self.predict(self(video)), batch["attributes"]
        device = video.device
        parts = {}
        for head in CHOICE_HEADS:
            parts[head] = F.cross_entropy(logits[head], choice_target(truth, head).to(device))
        for head in PRESENCE_HEADS:
            target = truth[head].to(device, logits[head].dtype)
            parts[head] = F.binary_cross_entropy_with_logits(logits[head], target)
        total = torch.stack(list(parts.values())).sum()
        correct = logits["class"].argmax(dim=-1) == truth["class"].to(device)
        return total, {name: part.detach() for name, part in parts.items()} | {"class_accuracy": correct.float().mean()}


def choice_target(attributes: Mapping[str, Tensor], head: str) -> Tensor:
    """Target index (b,) of a choice head; objects are counted from one, indices from zero."""
    return attributes[head] - 1 if head == "num_objects" else attributes[head]


def to_float(video: UInt8[Tensor, "b t h w 3"]) -> Float[Tensor, "b 3 t h w"]:
    """0...255 to [-1, 1], channels first."""
    return rearrange(video, "b t h w c -> b c t h w").float() / 127.5 - 1.0


def augment(
    video: Float[Tensor, "b 3 t h w"], config: ShapesFeaturesConfig, generator: Draws
) -> Float[Tensor, "b 3 t h w"]:
    """Brightness, contrast, softness and noise, one strength per clip.

    A reconstruction is softer and flatter than its clip. A network trained on clean clips alone would count that as a
    lost shape or colour, and noise as the opposite.
    """
    b = video.shape[0]

    def strength(low: float, high: float) -> Tensor:
        return low + (high - low) * rand(generator, b, 1, 1, 1, 1).to(video.device)

    softened = strength(0, 1) < config.soften_share
    blend = strength(0.2, 1.0)
    coarse = strength(0, 1) < 0.5
    soft = torch.where(coarse, _down_and_up(video, _resample_factor(of_batch(generator))), _box_blur(video))
    video = torch.where(softened, torch.lerp(video, soft, blend), video)
    video = video * (1 + strength(-config.contrast, config.contrast)) + strength(-config.brightness, config.brightness)
    noise = randn(generator, *video.shape).to(video.device)
    return (video + noise * strength(0, config.noise)).clamp(-1, 1)


def _resample_factor(generator: torch.Generator) -> float:
    return 0.5 + 0.4 * rand(generator).item()


def _down_and_up(video: Tensor, factor: float) -> Tensor:
    frames = rearrange(video, "b c t h w -> (b t) c h w")
    size = frames.shape[-2:]
    small = [max(1, round(side * factor)) for side in size]
    frames = F.interpolate(frames, size=small, mode="bilinear", align_corners=False)
    frames = F.interpolate(frames, size=size, mode="bilinear", align_corners=False)
    return rearrange(frames, "(b t) c h w -> b c t h w", b=video.shape[0])


def _box_blur(video: Tensor) -> Tensor:
    frames = F.pad(rearrange(video, "b c t h w -> (b t) c h w"), (1, 1, 1, 1), mode="replicate")
    return rearrange(F.avg_pool2d(frames, 3, stride=1), "(b t) c h w -> b c t h w", b=video.shape[0])


def _coordinates(x: Tensor) -> Tensor:
    """Time, height and width in [-1, 1] as channels (1, 3, t, h, w)."""
    axes = [torch.linspace(-1, 1, length, device=x.device, dtype=x.dtype) for length in x.shape[2:]]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]


def save_shapes_features(network: ShapesFeatures, folder: Path | str) -> str:
    """Write `config.json` and `model.safetensors` (half precision) into `folder`; returns the weights' SHA-256."""
    hub.save_component(Path(folder), network)
    return weights_sha256(folder)


def load_shapes_features(
    folder: Path | str | None = None, device: torch.device | str = "cpu"
) -> tuple[ShapesFeatures, str]:
    """The frozen network (float32, evaluation mode) and the SHA-256 of its weights file. Default: the bundled one."""
    folder = Path(folder) if folder is not None else BUNDLED_FOLDER
    if not folder.is_dir():
        raise UserError(f"There are no shapes features at {str(folder)!r}: train the recipe `shapes-features` first.")
    path = folder / hub.CONFIG
    values = hub.read_json(path)
    if values.pop("class", None) != "ShapesFeatures":
        raise UserError(f"{path} does not describe shapes features: its `class` is not ShapesFeatures.")
    network = ShapesFeatures(hub.dataclass_from_dict(ShapesFeaturesConfig, values, str(path)))
    try:
        network.load_state_dict(without_wrappers(hub.read_weights(folder / hub.WEIGHTS), network.state_dict()))
    except RuntimeError as error:
        raise UserError(f"{folder / hub.WEIGHTS} does not belong to {path}: {reason(error)}.") from None
    return network.to(device).eval().requires_grad_(False), weights_sha256(folder)


def weights_sha256(folder: Path | str) -> str:
    """SHA-256 of the weights file, which every report of its figures states."""
    return hashlib.sha256((Path(folder) / hub.WEIGHTS).read_bytes()).hexdigest()
