"""What a figure of the built-in world means: the protocol it was taken by, the judge that read it, and its spread.

A number without clips, stride, size, extractor and seed is not a result, so the protocol travels with every one.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from mutoscope.data.fit import fit_frames
from mutoscope.data.sources.shapes.world import HELD_BACK_SEED, ShapesConfig, ShapesWorld, shapes_batch
from mutoscope.errors import UserError
from mutoscope.evaluation.metrics.frechet import frechet_distance_between
from mutoscope.evaluation.networks.shapes_features import (
    CHOICE_HEADS,
    PRESENCE_HEADS,
    ShapesFeatures,
    choice_target,
    load_shapes_features,
    to_float,
)

MEAN_RESAMPLES = 2000
RESAMPLED_AT_ONCE = 2**20  # values
FRECHET_RESAMPLES = 100
HISTOGRAM_RESAMPLES = 500
CI95_METHOD = (
    "bootstrap over clips, 2.5 to 97.5 %; of distances moved to the value, since a resample repeats clips and "
    "so lies too high; codebook_use: jackknife over clips"
)


@dataclass(frozen=True)
class EvaluationProtocol:
    """Everything a figure depends on beside its source.

    `height`, `width`: size at which the judge reads both sides, in pixels. `real_seed`: seed of the world the real
    clips come from; its clips 0 ... num_clips - 1 are the real side, the next num_clips the other half of
    real-against-real. `options` are the sampler options that were not left at their defaults.
    """

    name: str
    num_clips: int
    num_frames: int
    height: int
    width: int
    extractor_sha256: str
    seed: int
    frame_stride: int = 1
    extractor: str = "shapes-features"
    real_seed: int = HELD_BACK_SEED
    covariance: str = "unbiased"
    resize: str = "bilinear, antialiased, after a central crop to the aspect ratio, rounded to uint8"
    ci95: str = CI95_METHOD
    options: Mapping[str, object] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True)
class Readings:
    """What the judge saw in n clips: embeddings (n, d) float64 and the logits of every head on the CPU."""

    features: Float[Tensor, "n d"]
    logits: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(self.features)

    def choice(self, head: str) -> Tensor:
        """Most likely index (n,) of a choice head."""
        return self.logits[head].argmax(dim=-1)

    def correct(self, head: str, attributes: Mapping[str, Tensor]) -> Bool[Tensor, "n"]:
        """Whether the head names what is true; a presence head must be right in every entry."""
        if head in PRESENCE_HEADS:
            return ((self.logits[head] > 0) == attributes[head].bool()).all(dim=-1)
        return self.choice(head) == choice_target(attributes, head)


@dataclass(frozen=True)
class Judge:
    """The frozen features network, the hash of its weights, and the size it reads at."""

    network: ShapesFeatures
    sha256: str
    height: int = 32
    width: int = 32

    @classmethod
    def bundled(cls, device: torch.device | str = "cpu") -> "Judge":
        """The judge shipped in the package. Raises UserError where its weights are missing."""
        network, sha256 = load_shapes_features(device=device)
        return cls(network.eval(), sha256)

    @torch.inference_mode()
    def read(self, clips: Sequence[Tensor] | Tensor) -> Readings:
        """Read uint8 clips (t, h, w, 3) of one length; their sizes may differ, how many there are plays no part."""
        device = next(self.network.parameters()).device
        features, logits = [], {head: [] for head in (*CHOICE_HEADS, *PRESENCE_HEADS)}
        for start in range(0, len(clips), 32):
            batch = [fit_frames(clip.numpy(), self.height, self.width) for clip in clips[start : start + 32]]
            embedding = self.network(to_float(torch.from_numpy(np.stack(batch)).to(device)))  # (b, d)
            features.append(embedding.double().cpu())
            for head, values in self.network.predict(embedding).items():
                logits[head].append(values.cpu())
        return Readings(torch.cat(features), {head: torch.cat(values) for head, values in logits.items()})


@dataclass(frozen=True)
class RealClips:
    """Held-back clips of the world with everything that is true of them."""

    video: UInt8[Tensor, "n t h w 3"]
    attributes: Mapping[str, Tensor]
    captions: tuple[str, ...] = ()


def real_clips(config: ShapesConfig, start: int, count: int, seed: int = HELD_BACK_SEED) -> RealClips:
    """Clips start ... start + count - 1 of the held-back world."""
    batch = shapes_batch(ShapesWorld(config, seed), range(start, start + count))
    return RealClips(batch["video"], batch["attributes"], tuple(batch["caption"]))


# ---------------------------------------------------------------------------------------------------------- figures

Figure = dict[str, Any]  # {"value": float | None, "ci95": [low, high] | None}


def figure(value: float, low: float, high: float) -> Figure:
    """A value and its interval as JSON can hold them: what is not finite becomes null."""
    ends = [float(low), float(high)]
    return {
        "value": float(value) if math.isfinite(value) else None,
        "ci95": ends if all(math.isfinite(end) for end in ends) else None,
    }


def mean_figure(per_clip: Tensor | np.ndarray, seed: int) -> Figure:
    """Mean over clips with its bootstrap interval."""
    values = np.asarray(per_clip, dtype=np.float64)
    return figure(values.mean(), *_interval(_resampled_means(values, np.random.default_rng(seed))))


def ratio_figure(above: Tensor | np.ndarray, below: Tensor | np.ndarray, seed: int, paired: bool = False) -> Figure:
    """Ratio of two means over clips. `paired`: both sides read the same clips, so they are resampled together."""
    above, below = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    if below.mean() == 0:
        return figure(math.nan, math.nan, math.nan)
    tops = _resampled_means(above, np.random.default_rng(seed))
    bottoms = _resampled_means(below, np.random.default_rng(seed if paired else seed + 1))
    # A resample without one right answer below says nothing about the ratio.
    draws = tops[bottoms > 0] / bottoms[bottoms > 0]
    return figure(above.mean() / below.mean(), *_interval(draws))


def frechet_figure(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], seed: int, paired: bool = False) -> Figure:
    """Fréchet distance and an interval from resampled clips.

    A resample repeats clips and so looks like a smaller set, whose distance is biased upwards: its spread is kept and
    its centre moved to the value.
    """
    value, rng = frechet_distance_between(x, y), np.random.default_rng(seed)
    draws = np.empty(FRECHET_RESAMPLES)
    for i in range(FRECHET_RESAMPLES):
        rows_x = rng.integers(len(x), size=len(x))
        rows_y = rows_x if paired else rng.integers(len(y), size=len(y))
        draws[i] = frechet_distance_between(x[rows_x], y[rows_y])
    low, high = _interval(draws - draws.mean() + value)
    return figure(value, max(low, 0.0), high)


def histogram_figure(x: Int[Tensor, "n"], y: Int[Tensor, "m"], bins: int, seed: int) -> Figure:
    """Total variation between the histograms of two sets of answers: 0 for equal, 1 for disjoint ones.

    Its interval is moved to the value, for the reason given for the Fréchet distance.
    """
    rng = np.random.default_rng(seed)
    sides = x.numpy(), y.numpy()

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        shares = [np.bincount(side, minlength=bins) / len(side) for side in (a, b)]
        return 0.5 * float(np.abs(shares[0] - shares[1]).sum())

    value = distance(*sides)
    draws = np.array([distance(*(rng.choice(side, len(side)) for side in sides)) for _ in range(HISTOGRAM_RESAMPLES)])
    low, high = _interval(draws - draws.mean() + value)
    return figure(value, max(low, 0.0), min(high, 1.0))


def codebook_figure(tokens: Tensor, vocab_size: int) -> Figure:
    """Share of the codes that n clips (n, ...) use, with a jackknife interval: a bootstrap could only lose codes."""
    counts = np.zeros(vocab_size, dtype=np.int64)  # clips that use a code
    last_clip = np.full(vocab_size, -1)
    for clip, codes in enumerate(tokens):
        used = codes.unique().cpu().numpy()
        counts[used] += 1
        last_clip[used] = clip
    n, share = len(tokens), (counts > 0).mean()
    only_here = np.bincount(last_clip[counts == 1], minlength=n) / vocab_size  # lost when a clip is left out
    error = math.sqrt((n - 1) / n * np.square(only_here - only_here.mean()).sum())
    return figure(share, max(share - 1.96 * error, 0.0), min(share + 1.96 * error, 1.0))


def _resampled_means(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Means of MEAN_RESAMPLES resamples, drawn a few at a time: together they would be that many times the values."""
    step = max(1, RESAMPLED_AT_ONCE // len(values))
    parts = [
        values[rng.integers(len(values), size=(min(step, MEAN_RESAMPLES - start), len(values)))].mean(axis=1)
        for start in range(0, MEAN_RESAMPLES, step)
    ]
    return np.concatenate(parts)


def _interval(draws: np.ndarray) -> tuple[float, float]:
    if len(draws) == 0 or not np.isfinite(draws).all():
        return math.nan, math.nan
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def checked_count(num_clips: int) -> int:
    """A Fréchet distance and a spread need at least two clips."""
    if num_clips < 2:
        raise UserError(f"An evaluation needs at least 2 clips, {num_clips} asked for: use --num-clips 2 or more.")
    return num_clips
