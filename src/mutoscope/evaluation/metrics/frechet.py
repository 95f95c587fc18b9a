"""Fréchet distance between two sets of features, from statistics gathered in one pass.

    d = |m_x - m_y|^2 + tr S_x + tr S_y - 2 tr (S_x S_y)^(1/2)

with sample means m and covariances S. Which features these are decides what the number means; nothing here does.
Everything is float64: in float32 the square root alone costs up to 2e-4 of the traces, and a mean kept in float32
spoils features with a large offset.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mutoscope.errors import UserError


@dataclass(frozen=True)
class FrechetDistance:
    """The distance and its terms. `raw` may fall below zero by rounding on (nearly) equal sets; `value` never does."""

    mean_term: float
    trace_x: float
    trace_y: float
    trace_root: float

    @property
    def raw(self) -> float:
        return self.mean_term + self.trace_x + self.trace_y - 2 * self.trace_root

    @property
    def value(self) -> float:
        return max(self.raw, 0.0)


class FeatureStatistics:
    """Count, mean and scatter matrix of a stream of feature rows; memory does not grow with the stream.

    Batches are joined by the pairwise update of Chan, Golub and LeVeque, which never subtracts two large raw moments;
    the statistics of two streams merge into those of one joined stream.
    """

    def __init__(self, width: int) -> None:
        self.count = 0
        self.mean = torch.zeros(width, dtype=torch.float64)  # (d,)
        self.scatter = torch.zeros(width, width, dtype=torch.float64)  # (d, d), sum of centred outer products

    @classmethod
    def of(cls, features: Float[Tensor, "n d"] | np.ndarray) -> "FeatureStatistics":
        """Statistics of one set of rows held in memory."""
        rows = _checked_rows(features)
        return cls(rows.shape[1]).update(rows)

    @property
    def width(self) -> int:
        return self.mean.shape[0]

    def update(self, features: Float[Tensor, "n d"] | np.ndarray) -> "FeatureStatistics":
        """Add rows; the input is not changed. Raises UserError for another width or for values that are not finite."""
        rows = _checked_rows(features)
        _check_widths(self.width, rows.shape[1])
        if len(rows):
            mean = rows.mean(dim=0)
            centred = rows - mean
            self._join(len(rows), mean, centred.T @ centred)
        return self

    def merge(self, other: "FeatureStatistics") -> "FeatureStatistics":
        """New statistics of both streams together."""
        _check_widths(self.width, other.width)
        merged = FeatureStatistics(self.width)
        for part in (self, other):
            merged._join(part.count, part.mean, part.scatter)
        return merged

    def covariance(self, biased: bool = False) -> Float[Tensor, "d d"]:
        """Scatter over n - 1, or over n when `biased`. Raises UserError with fewer than two rows."""
        if self.count < 2:
            raise UserError(
                f"A Fréchet distance needs at least 2 clips on each side, found {self.count}: evaluate more clips."
            )
        return self.scatter / (self.count if biased else self.count - 1)

    def _join(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        if count == 0:
            return
        total = self.count + count
        step = mean - self.mean
        self.scatter = self.scatter + scatter + torch.outer(step, step) * (self.count * count / total)
        self.mean = self.mean + step * (count / total)
        self.count = total


def frechet_distance(x: FeatureStatistics, y: FeatureStatistics, biased: bool = False) -> FrechetDistance:
    """Distance between two sets of features, from their statistics.

    `biased` divides the covariances by n instead of n - 1, as some published code does. With factors S = F F^T the
    trace of the root is the sum of the singular values of F_x^T F_y; no root of a singular matrix is taken, so that
    sets smaller than the feature width need no added constant.
    """
    _check_widths(x.width, y.width)
    covariance_x, covariance_y = x.covariance(biased), y.covariance(biased)
    cross = _factor(covariance_x, x.count).T @ _factor(covariance_y, y.count)  # (rank x, rank y)
    return FrechetDistance(
        mean_term=(x.mean - y.mean).square().sum().item(),
        trace_x=covariance_x.trace().item(),
        trace_y=covariance_y.trace().item(),
        trace_root=torch.linalg.svdvals(cross).sum().item() if cross.numel() else 0.0,
    )


def frechet_distance_between(
    x: Float[Tensor, "n d"] | np.ndarray, y: Float[Tensor, "m d"] | np.ndarray, biased: bool = False
) -> float:
    """Distance between two sets of feature rows held in memory, never below zero."""
    return frechet_distance(FeatureStatistics.of(x), FeatureStatistics.of(y), biased).value


def _factor(covariance: Tensor, count: int) -> Tensor:
    """F (d, r) with F F^T = covariance, r at most the rank that `count` rows can have."""
    values, vectors = torch.linalg.eigh(covariance)  # ascending
    rank = min(len(values), count - 1)
    values, vectors = values[len(values) - rank :], vectors[:, len(values) - rank :]
    # What rounding leaves in the null space is of the order of eps; its square root would be of the order of 1e-8.
    kept = values > values[-1].clamp(min=0) * len(covariance) * torch.finfo(torch.float64).eps
    return vectors[:, kept] * values[kept].sqrt()


def _checked_rows(features: Tensor | np.ndarray) -> Tensor:
    rows = torch.as_tensor(features).detach().to("cpu", torch.float64)
    if rows.ndim != 2:
        raise UserError(f"Features must be rows (n, d), found an array of shape {tuple(rows.shape)}.")
    if not math.isfinite(rows.sum().item()) and not rows.isfinite().all():
        bad = (~rows.isfinite()).any(dim=1).sum().item()
        raise UserError(f"Features of {bad} of {len(rows)} clips are not finite (NaN or infinite): check their source.")
    return rows


def _check_widths(x: int, y: int) -> None:
    if x != y:
        raise UserError(f"Features of width {x} and {y} cannot be compared: use one extractor for both sides.")
