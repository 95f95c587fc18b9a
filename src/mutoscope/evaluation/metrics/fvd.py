"""Fréchet distances of many clips, with an interval from one pass over their features.

The rows of a side are dealt into groups whose statistics are kept; a resample draws groups with replacement. If there
are no more clips than groups, this is the bootstrap over clips.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mutoscope.evaluation.metrics.frechet import FeatureStatistics, frechet_distance
from mutoscope.evaluation.metrics.intervals import FRECHET_RESAMPLES, Figure, figure

GROUPS = 64  # as in the delete-a-group jackknife: enough to estimate an interval, few enough to keep in memory
WIDEST_RESAMPLED = 512  # features; a hundred roots of wider matrices take minutes


@dataclass(frozen=True)
class GroupedStatistics:
    """Statistics of up to 64 groups of rows: row i is in group i mod 64."""

    counts: Float[Tensor, "g"]
    means: Float[Tensor, "g d"]
    scatters: Float[Tensor, "g d d"]

    @classmethod
    def of(cls, rows: Float[Tensor, "n d"]) -> "GroupedStatistics":
        """Raises UserError for rows that are not finite."""
        number = max(min(GROUPS, len(rows)), 1)
        parts = [FeatureStatistics.of(rows[group::number]) for group in range(number)]
        return cls(
            torch.tensor([part.count for part in parts], dtype=torch.float64),
            torch.stack([part.mean for part in parts]),
            torch.stack([part.scatter for part in parts]),
        )

    def pooled(self, times: Float[Tensor, "g"]) -> FeatureStatistics:
        """Statistics of a set that holds each group `times` times."""
        counts = self.counts * times
        pooled = FeatureStatistics(self.means.shape[1])
        pooled.count = int(counts.sum())
        pooled.mean = counts @ self.means / counts.sum()
        steps = self.means - pooled.mean  # (g, d)
        within = torch.tensordot(times, self.scatters, dims=1)  # (d, d)
        pooled.scatter = within + (steps * counts[:, None]).T @ steps
        return pooled


def statistics(rows: Float[Tensor, "n d"]) -> FeatureStatistics:
    """Statistics of rows that may be many and in single precision."""
    found = FeatureStatistics(rows.shape[1])
    for block in rows.split(4096):
        found.update(block)
    return found


def repeated_frechet_figure(
    repeats: Sequence[Float[Tensor, "_n d"]], real: Float[Tensor, "m d"], biased: bool, seed: int
) -> Figure:
    """Mean distance of several sets from one real set, with its interval.

    The interval is that of resampled groups, centred on the value: a resample repeats clips and is biased upwards.
    """
    seen = statistics(real)
    value = float(np.mean([frechet_distance(statistics(rows), seen, biased).value for rows in repeats]))
    if real.shape[1] > WIDEST_RESAMPLED:
        return figure(value, math.nan, math.nan)
    rng, sides = np.random.default_rng(seed), [GroupedStatistics.of(rows) for rows in (*repeats, real)]
    draws = np.empty(FRECHET_RESAMPLES)
    for i in range(FRECHET_RESAMPLES):
        *drawn, other = (side.pooled(_times(len(side.counts), rng)) for side in sides)
        draws[i] = np.mean([frechet_distance(part, other, biased).value for part in drawn])
    low, high = np.quantile(draws - draws.mean() + value, [0.025, 0.975])
    return figure(value, max(low, 0.0), high)


def _times(groups: int, rng: np.random.Generator) -> Float[Tensor, "g"]:
    """Number of times each group is drawn in one resample."""
    return torch.from_numpy(np.bincount(rng.integers(groups, size=groups), minlength=groups).astype(np.float64))
