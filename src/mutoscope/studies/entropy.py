"""Which tokens depend on which: the conditional-entropy analysis behind PAR (arXiv 2412.15119, Fig. 11 and 12).

A token is represented by its code vector v, predicted from a set X of other tokens by ridge regression. The entropy of
a Gaussian with the covariance Σ of the held-out residuals,

    Ĥ(v | X) = ½ log((2πe)^d det Σ),

is an upper bound of H(v | X). Trends are meaningful, values are not. The paper does not state its regression; a linear
one needs second moments only, so that all token sets share one pass over the clips.
"""

import math
import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TypedDict

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from mutoscope.data.base import ClipBatch, ClipSource
from mutoscope.errors import UserError
from mutoscope.layers.token_order import region_order
from mutoscope.ownership import temporary_beside
from mutoscope.tokenizers.base import VideoTokenizer
from mutoscope.writing import writing

CLIPS_PER_COMPONENT = 4  # with fewer, a larger set of tokens may predict worse than a subset of it


@dataclass(frozen=True)
class EntropyConfig:
    """num_clips: encoded clips, many more than the largest set of tokens has components.

    frame: latent frame that is analysed. num_parallel: tokens per step of the compared orders. ridge: of the regression
    and of the residuals' covariance, relative to the mean variance of a component.
    """

    num_clips: int = 10_000
    frame: int = 0
    num_parallel: int = 4
    ridge: float = 1e-3
    batch_size: int = 32


@dataclass(frozen=True)
class Moments:
    """Second moments of all tokens of a frame in either half of the clips, centred over both.

    A regression fitted on one half is evaluated on the other. `width`: components of a token.
    """

    halves: tuple[Float[Tensor, "nd nd"], Float[Tensor, "nd nd"]]
    num_tokens: int
    width: int

    def columns(self, tokens: list[int]) -> Int[Tensor, " k"]:
        return (torch.tensor(tokens, dtype=torch.int64)[:, None] * self.width + torch.arange(self.width)).flatten()


Table = list[list[float | None]]
"""Rows of a frame's values; None where a value is not defined."""


class EntropyReport(TypedDict):
    """Entropies in nats; maps and increases by name, as tables of a frame's tokens."""

    grid: list[int]
    num_clips: int
    num_parallel: int
    mean_entropy: float
    maps: dict[str, Table]
    increase: dict[str, Table]
    mean_increase: dict[str, float]


@torch.no_grad()
def measure_moments(tokenizer: VideoTokenizer, source: ClipSource[ClipBatch], config: EntropyConfig) -> Moments:
    """One pass over the clips. Raises UserError for a tokenizer without codes or too few clips."""
    quantizer = getattr(tokenizer, "quantizer", None) or getattr(tokenizer, "bottleneck", None)
    if tokenizer.spec.vocab_size is None or quantizer is None:
        raise UserError("Only the tokens of a discrete tokenizer can be analysed.")
    rows = []
    starts = range(0, config.num_clips, config.batch_size)
    for start in tqdm(starts, "encode", unit="batch", disable=None, leave=False):
        indices = list(range(start, min(start + config.batch_size, config.num_clips)))
        codes = quantizer.lookup(tokenizer.encode(tokenizer.from_uint8(source[indices]["video"])))  # (b, d, t, h, w)
        if not 0 <= config.frame < codes.shape[2]:
            raise UserError(f"There are latent frames 0 to {codes.shape[2] - 1}, found frame {config.frame}.")
        rows.append(
            codes[:, :, config.frame].permute(0, 2, 3, 1).flatten(1)
        )  # (b, h·w·d), the components of a token together
        size = rows[0].shape[1]
        if config.num_clips < CLIPS_PER_COMPONENT * size:
            raise UserError(
                f"{config.num_clips} clips are too few for frames of {size} numbers; use at least "
                f"{CLIPS_PER_COMPONENT * size}."
            )
    width = codes.shape[1]
    numbers = torch.cat(rows).double()
    numbers = numbers - numbers.mean(0)
    first, second = numbers[0::2], numbers[1::2]
    halves = first.T @ first / len(first), second.T @ second / len(second)
    return Moments(halves, numbers.shape[1] // width, width)


def conditional_entropy(moments: Moments, token: int, known_tokens: list[int], ridge: float) -> float:
    """Ĥ(token | known tokens) in nats, the mean of both directions between the halves of the clips."""
    target, known = moments.columns([token]), moments.columns(known_tokens)
    total = 0.0
    for fit, held_out in (moments.halves, moments.halves[::-1]):
        scale = fit.diagonal().mean()
        residual = held_out[target][:, target]
        if known_tokens:
            gram = fit[known][:, known] + ridge * scale * torch.eye(len(known), dtype=fit.dtype)
            weights = torch.linalg.solve(gram, fit[known][:, target])  # (k, d)
            cross = held_out[target][:, known] @ weights  # (d, d)
            residual = residual - cross - cross.T + weights.T @ held_out[known][:, known] @ weights
        residual = residual + ridge * scale * torch.eye(moments.width, dtype=fit.dtype)
        total += 0.5 * (moments.width * math.log(2 * math.pi * math.e) + float(torch.logdet(residual)))
    return total / 2


def dependency_map(moments: Moments, reference: int, ridge: float) -> Float[Tensor, " n"]:
    """Ĥ(v_i | v_reference) for every i; NaN at the reference itself (Fig. 11)."""
    values = [
        math.nan if i == reference else conditional_entropy(moments, i, [reference], ridge)
        for i in range(moments.num_tokens)
    ]
    return torch.tensor(values)


def entropy_increase(
    moments: Moments, order: Int[Tensor, " n"], num_parallel: int, ridge: float
) -> Float[Tensor, " n"]:
    """Increase of each token's entropy if the other tokens of its step are not known yet (Fig. 12), by position.

    It is 0 for the first `num_parallel` tokens, which are decoded one by one.
    """
    positions, increase = order.tolist(), torch.zeros(moments.num_tokens)
    for i in tqdm(range(num_parallel, len(positions)), "entropy", unit="token", disable=None, leave=False):
        begin = i // num_parallel * num_parallel
        if i == begin:  # the first of a step has the same known tokens in both
            continue
        together = conditional_entropy(moments, positions[i], positions[:begin], ridge)
        in_turn = conditional_entropy(moments, positions[i], positions[:i], ridge)
        increase[positions[i]] = together - in_turn
    return increase


def analyse(
    tokenizer: VideoTokenizer, source: ClipSource[ClipBatch], config: EntropyConfig, side: tuple[int, int]
) -> EntropyReport:
    """Maps for the corner and the middle, and the increase for the orders by regions and by rows.

    `side`: rows and columns of tokens in a frame. Raises UserError if they do not split into `num_parallel` regions.
    """
    rows, columns = side
    orders = {
        "regions": region_order((1, rows, columns), config.num_parallel),
        "raster": torch.arange(rows * columns),
    }
    moments = measure_moments(tokenizer, source, config)
    if moments.num_tokens != rows * columns:
        raise UserError(f"A frame has {moments.num_tokens} tokens, not {rows}x{columns}.")
    references = {"corner": 0, "middle": rows // 2 * columns + columns // 2}
    maps = {name: dependency_map(moments, position, config.ridge) for name, position in references.items()}
    grown = {
        name: entropy_increase(moments, order, config.num_parallel, config.ridge) for name, order in orders.items()
    }
    alone = [conditional_entropy(moments, i, [], config.ridge) for i in range(moments.num_tokens)]
    return {
        "grid": [rows, columns],
        "num_clips": config.num_clips,
        "num_parallel": config.num_parallel,
        "mean_entropy": sum(alone) / len(alone),
        "maps": {name: _table(values, columns) for name, values in maps.items()},
        "increase": {name: _table(values, columns) for name, values in grown.items()},
        "mean_increase": {name: float(values.mean()) for name, values in grown.items()},
    }


def _table(values: Float[Tensor, " n"], columns: int) -> Table:
    """Rows of numbers as JSON can hold them: NaN becomes None."""
    return [[None if math.isnan(v) else v for v in row] for row in values.view(-1, columns).tolist()]


def check_drawing() -> None:
    """Raises UserError if matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        raise UserError("The image needs matplotlib: install mutoscope with the extra [metrics], or omit --out.")


def draw(report: EntropyReport, path: Path) -> None:
    """Draw the maps and the increases side by side. The file appears only when it is complete."""
    check_drawing()
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = [(f"entropy given the {name}", table) for name, table in report["maps"].items()]
    panels += [(f"increase, order by {name}", table) for name, table in report["increase"].items()]
    figure, axes = plt.subplots(1, len(panels), figsize=(3.2 * len(panels), 3.2), layout="constrained")
    highest = max(v for table in report["increase"].values() for row in table for v in row if v is not None)
    for axis, (title, table) in zip(axes, panels, strict=True):
        values = [[math.nan if value is None else value for value in row] for row in table]
        limits = {"vmin": 0.0, "vmax": highest} if title.startswith("increase") else {}
        image = axis.imshow(values, **limits)
        axis.set_title(title, fontsize=9)
        axis.set_xticks([])
        axis.set_yticks([])
        figure.colorbar(image, ax=axis, shrink=0.8, label="nats")
    temporary = temporary_beside(path)
    try:
        with writing(path, temporary=temporary):
            figure.savefig(temporary, dpi=110, format="png")
            os.replace(temporary, path)
    finally:
        plt.close(figure)
