"""Figures: a value over clips and its 95 % interval, the entries of every report."""

import math
from typing import TypedDict

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from mutoscope.errors import UserError
from mutoscope.evaluation.metrics.frechet import frechet_distance_between

# Resamples of a bootstrap: enough for two digits of an interval's ends; a distance costs a matrix root per resample.
MEAN_RESAMPLES = 2000
FRECHET_RESAMPLES = 100
HISTOGRAM_RESAMPLES = 500
RESAMPLED_AT_ONCE = 2**20  # values, 8 MB
NORMAL_95 = 1.96  # standard errors between the mean and either end of a normal 95 % interval
CI95_METHOD = (
    "bootstrap over clips, 2.5 to 97.5 %; intervals of distances are moved to the value, since a resample repeats "
    "clips and is biased upwards; codebook_use: jackknife over clips"
)


class Figure(TypedDict):
    """A value and its 95 % interval [low, high]; None for what is not finite or has no interval."""

    value: float | None
    ci95: list[float] | None


Figures = dict[str, Figure]


def figure(value: float, low: float, high: float) -> Figure:
    """A value and its interval as JSON can hold them: numbers that are not finite become null."""
    ends = [float(low), float(high)]
    return {
        "value": float(value) if math.isfinite(value) else None,
        "ci95": ends if all(math.isfinite(end) for end in ends) else None,
    }


def mean_figure(per_clip: Tensor | np.ndarray, seed: int) -> Figure:
    """Mean over clips with its bootstrap interval."""
    values = np.asarray(per_clip, dtype=np.float64)
    return figure(values.mean(), *_interval(_resampled_means(values, np.random.default_rng(seed))))


def psnr_figure(squared_error: Tensor | np.ndarray, seed: int) -> Figure:
    """PSNR in dB of the mean squared error over clips, for data in [0, 1]; infinite, so without a value, where it is 0.

    Unlike the mean of the clips' PSNR it is not ruled by clips that happen to be equal.
    """
    errors = np.asarray(squared_error, dtype=np.float64)
    with np.errstate(divide="ignore"):
        draws = -10 * np.log10(_resampled_means(errors, np.random.default_rng(seed)))
        return figure(-10 * np.log10(errors.mean()), *_interval(draws))


def ratio_figure(above: Tensor | np.ndarray, below: Tensor | np.ndarray, seed: int, paired: bool = False) -> Figure:
    """Ratio of two means over clips. `paired`: both sides measure the same clips and are resampled together."""
    above, below = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    if below.mean() == 0:
        return figure(math.nan, math.nan, math.nan)
    tops = _resampled_means(above, np.random.default_rng(seed))
    bottoms = _resampled_means(below, np.random.default_rng(seed if paired else seed + 1))
    # A resample whose denominator is zero has no ratio.
    draws = tops[bottoms > 0] / bottoms[bottoms > 0]
    return figure(above.mean() / below.mean(), *_interval(draws))


def frechet_figure(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], seed: int, paired: bool = False) -> Figure:
    """Fréchet distance and an interval from resampled clips.

    A resample repeats clips and so resembles a smaller set, whose distance is biased upwards: the interval keeps the
    width of the resamples and is centred on the value.
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
    """Total variation between the histograms of two sets of predictions: 0 for equal, 1 for disjoint ones.

    Its interval is centred on the value, for the same reason as that of the Fréchet distance.
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
    """Share of the codes that n clips (n, ...) use, with a jackknife interval: a bootstrap can only lose codes."""
    counts = np.zeros(vocab_size, dtype=np.int64)  # clips that use a code
    last_clip = np.full(vocab_size, -1)
    for clip, codes in enumerate(tokens):
        used = codes.unique().cpu().numpy()
        counts[used] += 1
        last_clip[used] = clip
    n, share = len(tokens), (counts > 0).mean()
    only_here = np.bincount(last_clip[counts == 1], minlength=n) / vocab_size  # lost without that clip
    error = math.sqrt((n - 1) / n * np.square(only_here - only_here.mean()).sum())
    return figure(share, max(share - NORMAL_95 * error, 0.0), min(share + NORMAL_95 * error, 1.0))


def _resampled_means(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Means of MEAN_RESAMPLES resamples, drawn a few at a time to bound memory."""
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
    """The count; raises UserError below 2, since a Fréchet distance and an interval need two clips."""
    if num_clips < 2:
        raise UserError(f"An evaluation needs at least 2 clips, {num_clips} requested: use --num-clips 2 or more.")
    return num_clips
