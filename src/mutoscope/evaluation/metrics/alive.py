"""When a stream counts as alive: the rule "alive-16", fitted on windows of real videos.

A window of 16 frames is alive unless

1. it is frozen: its motion is at most a small part of that of real windows with similar actions, which do move;
2. its mean contrast, saturation or sharpness is outside the range of real windows, extended on both sides by a quarter
   of that range and two grey levels;
3. its features are farther from the nearest real windows than those of 99 % of real windows that were held back.

The part of (1) is at most a tenth, and smaller where 1 in 200 real windows would be called frozen. The report states
how many real, reconstructed, frozen and noise windows the rule accepts.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

WINDOW = 16  # frames
NAME = f"alive-{WINDOW}"
STATISTICS = ("contrast", "saturation", "sharpness")
MARGIN_SHARE, MARGIN_LEVELS = 0.25, 2.0
NEIGHBOURS = 5  # real windows whose mean distance counts
SIMILAR = 16  # real windows of similar actions, whose median motion is expected
LARGEST_PART, SMALLEST_PART = 0.1, 1e-3
STILL_SHARE = 0.005  # of the held-back windows may be called frozen
LEAST_MOTION = 0.05  # grey levels between frames; real windows with less do not move
ACCEPTED = 0.99  # of the held-back windows by (3)
COMPONENTS = 32  # principal directions of the features


@dataclass(frozen=True)
class Windows:
    """What the rule reads of n windows. statistics: contrast, saturation and sharpness. motion: between frames, in grey
    levels. actions: mean and mean size of each number, as the model reads it."""

    features: Float[Tensor, "n d"]
    statistics: Float[Tensor, "n 3"]
    motion: Float[Tensor, " n"]
    actions: Float[Tensor, "n b"]

    def __len__(self) -> int:
        return len(self.motion)

    def __getitem__(self, rows: Tensor) -> "Windows":
        return Windows(self.features[rows], self.statistics[rows], self.motion[rows], self.actions[rows])


@dataclass(frozen=True)
class Projection:
    """Features on their principal directions over real windows, each of variance 1."""

    mean: Float[Tensor, " d"]
    basis: Float[Tensor, "d k"]

    @classmethod
    def of(cls, features: Float[Tensor, "n d"]) -> "Projection":
        mean, deviation = features.mean(dim=0), features.std(dim=0, correction=0)
        # A feature that hardly varies among real windows must not count more than the others.
        whitened = (features - mean) / deviation.clamp(min=1e-3)
        _, values, directions = torch.linalg.svd(whitened, full_matrices=False)
        kept = int((values[:COMPONENTS] > 1e-6 * values[0].clamp(min=1e-12)).sum())
        scale = values[:kept].clamp(min=0.05 * float(values[0])) / len(features) ** 0.5
        return cls(mean, directions[:kept].T / deviation.clamp(min=1e-3)[:, None] / scale.clamp(min=1e-12))

    def __call__(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        return (features - self.mean) @ self.basis


@dataclass(frozen=True)
class AliveRule:
    """The fitted rule. low, high: of the statistics. part: of the expected motion. limit: of the distance."""

    real: Windows
    projection: Projection
    low: Float[Tensor, "3"]
    high: Float[Tensor, "3"]
    part: float
    limit: float

    @classmethod
    def fit(cls, training: Windows, held_back: Windows) -> "AliveRule":
        """From windows of two sets of episodes: neighbours are those of `training`, thresholds follow `held_back`."""
        projection = Projection.of(training.features)
        seen = torch.cat([training.statistics, held_back.statistics])
        low, high = seen.amin(dim=0), seen.amax(dim=0)
        margin = MARGIN_SHARE * (high - low) + MARGIN_LEVELS
        found = cls(training, projection, low - margin, high + margin, LARGEST_PART, 0.0)
        ratio, expected = found.relative_motion(held_back)
        moving = ratio[expected >= LEAST_MOTION]
        part = float(moving.quantile(STILL_SHARE, interpolation="lower")) if len(moving) else LARGEST_PART
        limit = float(found.distance(held_back.features).quantile(ACCEPTED, interpolation="higher"))
        return cls(
            training, projection, low - margin, high + margin, min(max(part, SMALLEST_PART), LARGEST_PART), limit
        )

    def frozen(self, windows: Windows) -> Bool[Tensor, " n"]:
        """(1): hardly any motion under actions by which real windows move."""
        ratio, expected = self.relative_motion(windows)
        return (expected >= LEAST_MOTION) & (ratio <= self.part)

    def out_of_range(self, windows: Windows) -> Bool[Tensor, " n"]:
        """(2): the statistics of no real window."""
        return ((windows.statistics < self.low) | (windows.statistics > self.high)).any(dim=1)

    def far(self, windows: Windows) -> Bool[Tensor, " n"]:
        """(3): unlike any real window."""
        return self.distance(windows.features) > self.limit * (1 + 1e-6)  # 1e-6: rounding of equal distances

    def alive(self, windows: Windows) -> Bool[Tensor, " n"]:
        """Windows to which none of the three applies; those with a number that is not finite are not alive."""
        finite = windows.features.isfinite().all(dim=1) & windows.motion.isfinite()
        return finite & ~self.frozen(windows) & ~self.out_of_range(windows) & ~self.far(windows)

    def relative_motion(self, windows: Windows) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """Motion as a part of the median of the real windows with the most similar actions, and that median."""
        apart = torch.cdist(windows.actions, self.real.actions)
        nearest = apart.topk(min(SIMILAR, len(self.real)), largest=False).indices  # (n, similar)
        expected = self.real.motion[nearest].median(dim=1).values
        return windows.motion / expected.clamp(min=1e-9), expected

    def distance(self, features: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Mean distance from the nearest real windows, in units of the principal directions."""
        apart = torch.cdist(self.projection(features), self.projection(self.real.features))
        return apart.topk(min(NEIGHBOURS, len(self.real)), largest=False).values.mean(dim=1)

    def as_dict(self) -> dict[str, object]:
        """For the report."""
        limits = {name: [float(self.low[i]), float(self.high[i])] for i, name in enumerate(STATISTICS)}
        return {
            "name": NAME,
            "frames": WINDOW,
            "statistics": limits,
            "frozen_below_part_of_expected_motion": self.part,
            "largest_distance": self.limit,
            "accepted_by_distance": ACCEPTED,
            "neighbours": NEIGHBOURS,
            "real_windows": len(self.real),
        }
