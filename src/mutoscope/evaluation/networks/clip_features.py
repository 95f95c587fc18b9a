"""Feature networks that need no download: the shapes features, and the encoder of any tokenizer.

A Fréchet distance means what its features mean, so each network names the distance it makes
(`frechet-shapes-features`, `frechet-my-vae-encoder`) and says how far the compared clips are from the data it was
trained on.
"""

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from mutoscope import hub
from mutoscope.data.fit import fit_frames
from mutoscope.errors import UserError
from mutoscope.evaluation.metrics.pixel import psnr_of_clip
from mutoscope.evaluation.networks.shapes_classifier import ShapesClassifier
from mutoscope.evaluation.networks.shapes_detector import share_in_palette
from mutoscope.evaluation.networks.shapes_features import MIN_FRAMES
from mutoscope.json_config import nearest
from mutoscope.tokenizers.base import VideoTokenizer

Clips = UInt8[Tensor, "n t h w 3"]

SHAPES_FEATURES = "shapes-features"
SHAPES_TOKENIZER = "vae-shapes"
SHAPES_SIDE = 32  # pixels at which clips are compared with the shapes dataset
# Lower quartile over clips of the share of pixels in the dataset's colours. Measured: 0.92 on clips of the dataset, at
# least 0.82 on those that the bundled models generate, at most 0.34 on recorded videos.
LEAST_IN_PALETTE = 0.75
# Median PSNR of clips reconstructed by the tokenizer whose encoder gives the features. Measured: bundled tokenizers
# reach 30 and 37 dB on their data, and 9 to 20 dB on recorded videos.
LEAST_PSNR_DB = 20.0
BESIDE_REAL = "Read it beside real against real only, not as quality"
PROBED_CLIPS = 16  # clips that are looked at for this, evenly chosen


@dataclass(frozen=True)
class Familiarity:
    """How near clips are to the data a network was trained on: the `value` of a `measure`, expected to be `least`."""

    measure: str
    value: float
    least: float

    @property
    def is_far(self) -> bool:
        return self.value < self.least

    def as_dict(self) -> dict[str, object]:
        """For the report."""
        value = self.value if math.isfinite(self.value) else None
        return {"measure": self.measure, "value": value, "least": self.least, "far": self.is_far}


class FeatureNetwork(ABC):
    """A network that gives one row of numbers per clip. `name`: what reports call it. `sha256`: of its weights."""

    name: str
    sha256: str

    @abstractmethod
    def read(self, clips: Clips) -> Float[Tensor, "n d"]:
        """Features of clips of any frame size. Raises UserError for clips that are too short."""

    @abstractmethod
    def familiarity(self, clips: Clips) -> Familiarity:
        """How near clips are to the data that the network was trained on."""

    @abstractmethod
    def far_note(self, where: str, found: Familiarity) -> str:
        """The caveat for clips that are far from that data. `where`: the folder of the clips."""

    @abstractmethod
    def as_dict(self) -> dict[str, object]:
        """What the features are, for the report."""


@dataclass(frozen=True)
class ShapesNetwork(FeatureNetwork):
    """The feature network of the shapes dataset."""

    classifier: ShapesClassifier
    name: str = SHAPES_FEATURES

    @property
    def sha256(self) -> str:
        return self.classifier.sha256

    def read(self, clips: Clips) -> Float[Tensor, "n d"]:
        return self.classifier.read(clips).features.float()

    def familiarity(self, clips: Clips) -> Familiarity:
        return shapes_familiarity(clips)

    def far_note(self, where: str, found: Familiarity) -> str:
        return (
            f'frechet-{self.name} comes from a network trained on the synthetic dataset "shapes", and {where} is far '
            f"from it: {in_palette(found)}. {BESIDE_REAL}; --features TOKENIZER takes the encoder of a tokenizer "
            "trained on your own videos."
        )

    def as_dict(self) -> dict[str, object]:
        size = f"{self.classifier.height}×{self.classifier.width}"
        return {
            "name": self.name,
            "weights_sha256": self.sha256,
            "features": f"embedding of the classifier of the shapes dataset, clips cropped and resized to {size}",
        }


@dataclass(frozen=True)
class EncoderNetwork(FeatureNetwork):
    """The encoder of a tokenizer: statistics of its latents over the positions of a clip.

    Of every latent channel the mean over all positions, the standard deviation over all positions, and the mean
    absolute difference between consecutive latent frames: 3 d numbers for d channels, 2 d where a clip has one latent
    frame. Latents of a discrete tokenizer are those before quantization. Clips are read at the frame size `height` x
    `width` that the tokenizer was trained on, cut to the longest length that its temporal stride allows.
    """

    tokenizer: VideoTokenizer
    name: str
    height: int
    width: int
    sha256: str
    on_shapes: bool

    @torch.inference_mode()
    def read(self, clips: Clips) -> Float[Tensor, "n d"]:
        latents = self.tokenizer.continuous_latents(self._input(clips)).float()  # (n, d, lt, lh, lw)
        parts = [latents.mean(dim=(2, 3, 4)), latents.flatten(2).std(dim=2, correction=0)]
        if latents.shape[2] > 1:
            parts.append(latents.diff(dim=2).abs().mean(dim=(2, 3, 4)))
        return torch.cat(parts, dim=1).cpu()  # (n, 2 d or 3 d)

    def familiarity(self, clips: Clips) -> Familiarity:
        if self.on_shapes:
            return shapes_familiarity(clips)
        length = self.usable_frames(clips.shape[1])
        fitted = fit_clips(clips[:, :length], self.height, self.width)
        return Familiarity("psnr_db of its reconstructions", median_psnr(self.tokenizer, fitted), LEAST_PSNR_DB)

    def far_note(self, where: str, found: Familiarity) -> str:
        reason = in_palette(found) if self.on_shapes else f"it reconstructs these clips at {found.value:.1f} dB"
        data = 'the synthetic dataset "shapes"' if self.on_shapes else "other videos"
        return (
            f"frechet-{self.name} comes from the encoder of a tokenizer trained on {data}, and {where} is far from "
            f"them: {reason}. {BESIDE_REAL}; train a tokenizer on such videos and name it with --features."
        )

    def as_dict(self) -> dict[str, object]:
        return {
            "name": self.name,
            "weights_sha256": self.sha256,
            "features": "mean and standard deviation over all positions of every latent channel, and mean absolute "
            f"difference of consecutive latent frames; clips cropped and resized to {self.height}×{self.width}",
        }

    def usable_frames(self, num_frames: int) -> int:
        """The longest length of at most `num_frames` that the tokenizer encodes. Raises UserError if there is none."""
        spec = self.tokenizer.spec
        length = spec.num_alone + (num_frames - spec.num_alone) // spec.temporal_stride * spec.temporal_stride
        if length < 1:
            raise UserError(
                f"The tokenizer {self.name.removesuffix('-encoder')!r} encodes clips of {spec.temporal_stride} frames "
                f"and more, these have {num_frames}: name another one with --features."
            )
        return length

    def _input(self, clips: Clips) -> Float[Tensor, "n 3 t2 height width"]:
        device = next(self.tokenizer.parameters()).device
        fitted = fit_clips(clips[:, : self.usable_frames(clips.shape[1])], self.height, self.width)
        return self.tokenizer.from_uint8(fitted.to(device))


def fit_clips(clips: Sequence[Tensor] | Tensor, height: int, width: int) -> UInt8[Tensor, "n t height width 3"]:
    """Clips of one length, cropped to the middle and resized."""
    return torch.from_numpy(np.stack([fit_frames(clip.numpy(), height, width) for clip in clips]))


@torch.inference_mode()
def median_psnr(tokenizer: VideoTokenizer, clips: Clips) -> float:
    """Median over at most 16 evenly chosen clips of the PSNR after encoding and decoding, in dB."""
    device, chosen = next(tokenizer.parameters()).device, evenly(len(clips), PROBED_CLIPS)
    values = []
    for clip in clips[chosen].split(1):
        decoded = tokenizer.decode(tokenizer.encode(tokenizer.from_uint8(clip.to(device))))
        values.append(psnr_of_clip(clip, tokenizer.to_uint8(decoded).cpu()))
    return torch.cat(values).median().item()


def shapes_familiarity(clips: Clips) -> Familiarity:
    """How near clips are to the shapes dataset, by its colours.

    The shapes features cannot answer this: those of recorded videos are among those of shapes clips.
    """
    chosen = evenly(len(clips), PROBED_CLIPS)
    fitted = fit_clips(clips[chosen], SHAPES_SIDE, SHAPES_SIDE)
    shares = share_in_palette(fitted).mean(dim=1)
    return Familiarity("share of pixels in the dataset's colours", shares.quantile(0.25).item(), LEAST_IN_PALETTE)


def in_palette(found: Familiarity) -> str:
    """The finding of `shapes_familiarity` in words."""
    return (
        f"{found.value:.0%} of its pixels have the colours of that dataset, where {found.least:.0%} and more are usual"
    )


def far_from_shapes(where: str, clips: Clips) -> list[str]:
    """The caveat of figures of the shapes classifier on clips that are far from its data; [] for others."""
    found = shapes_familiarity(clips)
    if not found.is_far:
        return []
    return [
        f'Figures of the feature network of the synthetic dataset "shapes" say little about {where}: '
        f"{in_palette(found)}. Compare with real videos instead: --reference FOLDER, without --protocol."
    ]


def evenly(count: int, wanted: int) -> list[int]:
    """At most `wanted` numbers below `count`, the first and the last among them."""
    if count <= wanted:
        return list(range(count))
    return [round(i * (count - 1) / max(wanted - 1, 1)) for i in range(wanted)]


def open_features(
    named: str | None,
    num_frames: int,
    classifier: ShapesClassifier | None = None,
    device: torch.device | str = "cpu",
) -> FeatureNetwork:
    """The network that `--features` names: "shapes-features", or a tokenizer or a model with one.

    By default the shapes features; for clips shorter than these can read, such as images, the encoder of `vae-shapes`.
    Raises UserError for an unknown name, and for clips that the network cannot read.
    """
    if named is None:
        named = SHAPES_FEATURES if num_frames >= MIN_FRAMES else SHAPES_TOKENIZER
    if named == SHAPES_FEATURES:
        if num_frames < MIN_FRAMES:
            raise UserError(
                f"{SHAPES_FEATURES} reads clips of {MIN_FRAMES} frames and more, these have {num_frames}: name a "
                "tokenizer with --features."
            )
        return ShapesNetwork(classifier or ShapesClassifier.bundled(device))
    encoder = open_encoder(named, device)
    encoder.usable_frames(num_frames)
    return encoder


def open_encoder(named: str, device: torch.device | str = "cpu") -> EncoderNetwork:
    """The encoder of the tokenizer of a bundled model or a model folder. Raises UserError for an unknown name."""
    known = (SHAPES_FEATURES, *hub.bundled())
    if not Path(named).expanduser().exists() and os.sep not in named and named not in known:
        raise UserError(f"Unknown features {named!r}: {nearest(named, known)} A model folder works too.")
    folder = hub.open_folder(named)
    tokenizer = folder.load_tokenizer().to(device)
    own = folder.tokenizer_path.parent
    index = hub.load_index(own) if (own / hub.INDEX).is_file() else folder.index
    name = own.resolve().name if (own / hub.INDEX).is_file() else folder.tokenizer_path.resolve().name
    return EncoderNetwork(
        tokenizer=tokenizer,
        name=f"{name}-encoder",
        height=index.height,
        width=index.width,
        sha256=hub.weights_hash(tokenizer),
        on_shapes=index.data.get("kind") == "shapes",
    )
