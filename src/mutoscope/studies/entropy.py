"""Which tokens depend on which: the conditional-entropy analysis behind PAR (arXiv 2412.15119, Fig. 11 and 12).

A token is the code vector v it stands for. v is predicted from a set X of other tokens by ridge regression; the entropy
of a Gaussian with the covariance Σ of the held-out residuals,

    Ĥ(v | X) = ½ log((2πe)^d det Σ),

bounds H(v | X) from above. Its trends are meant, not its values. The paper does not say which regression it used; a
linear one needs second moments only, so all token sets share one pass over the clips.
"""

import math
import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mutoscope.data.base import ClipBatch, ClipSource
from mutoscope.errors import UserError
from mutoscope.layers.token_order import region_order
from mutoscope.tokenizers.base import VideoTokenizer


@dataclass(frozen=True)
class EntropyConfig:
    """num_clips: clips encoded; they must well exceed the numbers in the largest set of tokens.

    frame: latent frame that is looked at. num_parallel: tokens per step of the orders compared. ridge: of the
    regression and of the residuals' covariance, relative to the mean variance of a token's numbers.
    """

    num_clips: int = 10_000
    frame: int = 0
    num_parallel: int = 4
    ridge: float = 1e-3
    batch_size: int = 32


@dataclass(frozen=True)
class Moments:
    """Second moments of all tokens of a frame in the two halves of the clips, numbers centred over both.

    A regression fitted on one half is judged on the other.
    """

    halves: tuple[Float[Tensor, "nd nd"], Float[Tensor, "nd nd"]]
    num_tokens: int
    width: int

    def columns(self, tokens: list[int]) -> Int[Tensor, " k"]:
        return (torch.tensor(tokens, dtype=torch.int64)[:, None] * self.width + torch.arange(self.width)).flatten()


@torch.no_grad()
def measure_moments(tokenizer: VideoTokenizer, source: ClipSource[ClipBatch], config: EntropyConfig) -> Moments:
    """One pass over the clips. Raises UserError for a tokenizer without codes or too few clips."""
    quantizer = getattr(tokenizer, "quantizer", None) or getattr(tokenizer, "bottleneck", None)
    if tokenizer.spec.vocab_size is None or quantizer is None:
        raise UserError("Only the tokens of a discrete tokenizer can be analysed.")
    rows = []
    for start in range(0, config.num_clips, config.batch_size):
        indices = list(range(start, min(start + config.batch_size, config.num_clips)))
        codes = quantizer.lookup(tokenizer.encode(tokenizer.from_uint8(source[indices]["video"])))  # (b, d, t, h, w)
        if not 0 <= config.frame < codes.shape[2]:
            raise UserError(f"There are latent frames 0 to {codes.shape[2] - 1}, found frame {config.frame}.")
        rows.append(codes[:, :, config.frame].permute(0, 2, 3, 1).flatten(1))  # (b, h·w·d), a token's numbers together
        size = rows[0].shape[1]
        if config.num_clips < 4 * size:  # else the larger of two sets of tokens may predict worse than the smaller
            raise UserError(
                f"{config.num_clips} clips are too few for frames of {size} numbers; use at least {4 * size}."
            )
    width = codes.shape[1]
    numbers = torch.cat(rows).double()
    numbers = numbers - numbers.mean(0)
    first, second = numbers[0::2], numbers[1::2]
    halves = first.T @ first / len(first), second.T @ second / len(second)
    return Moments(halves, numbers.shape[1] // width, width)


def conditional_entropy(moments: Moments, token: int, given: list[int], ridge: float) -> float:
    """Ĥ(token | given) in nats, the mean of both directions between the halves of the clips."""
    target, known = moments.columns([token]), moments.columns(given)
    total = 0.0
    for fit, judge in (moments.halves, moments.halves[::-1]):
        scale = fit.diagonal().mean()
        residual = judge[target][:, target]
        if given:
            gram = fit[known][:, known] + ridge * scale * torch.eye(len(known), dtype=fit.dtype)
            weights = torch.linalg.solve(gram, fit[known][:, target])  # (k, d)
            cross = judge[target][:, known] @ weights  # (d, d)
            residual = residual - cross - cross.T + weights.T @ judge[known][:, known] @ weights
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
    """By how much each token's entropy grows when its step's other tokens are not known yet (Fig. 12); by position.

    The first `num_parallel` tokens are decoded one by one, so theirs does not grow.
    """
    places, increase = order.tolist(), torch.zeros(moments.num_tokens)
    for i in range(num_parallel, len(places)):
        begin = i // num_parallel * num_parallel
        if i == begin:  # the first of its step knows the same in both
            continue
        together = conditional_entropy(moments, places[i], places[:begin], ridge)
        in_turn = conditional_entropy(moments, places[i], places[:i], ridge)
        increase[places[i]] = together - in_turn
    return increase


def analyse(
    tokenizer: VideoTokenizer, source: ClipSource[ClipBatch], config: EntropyConfig, side: tuple[int, int]
) -> dict[str, Any]:
    """Maps for the corner and the middle, and the increase for the orders by regions and by rows.

    `side`: rows and columns of a frame. Raises UserError if the grid does not split into `num_parallel` regions.
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
    maps = {name: dependency_map(moments, place, config.ridge) for name, place in references.items()}
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


def _table(values: Float[Tensor, " n"], columns: int) -> list[list[float | None]]:
    """Rows of numbers as JSON can hold them: None for "not a number"."""
    return [[None if math.isnan(v) else v for v in row] for row in values.view(-1, columns).tolist()]


def check_drawing() -> None:
    """Raises UserError where pictures cannot be drawn."""
    if find_spec("matplotlib") is None:
        raise UserError(
            "The picture needs matplotlib: install mutoscope with the extra [metrics], or leave --out away."
        )


def draw(report: dict[str, Any], path: Path) -> None:
    """The maps and the increases side by side. No reader sees half a picture."""
    check_drawing()
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = [(f"entropy given the {name}", table) for name, table in report["maps"].items()]
    panels += [(f"increase, order by {name}", table) for name, table in report["increase"].items()]
    figure, axes = plt.subplots(1, len(panels), figsize=(3.2 * len(panels), 3.2), layout="constrained")
    highest = max(value for _, table in panels[len(report["maps"]) :] for row in table for value in row)
    for axis, (title, table) in zip(axes, panels, strict=True):
        values = [[math.nan if value is None else value for value in row] for row in table]
        limits = {"vmin": 0.0, "vmax": highest} if title.startswith("increase") else {}
        image = axis.imshow(values, **limits)
        axis.set_title(title, fontsize=9)
        axis.set_xticks([]), axis.set_yticks([])
        figure.colorbar(image, ax=axis, shrink=0.8, label="nats")
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        figure.savefig(temporary, dpi=110, format="png")
        os.replace(temporary, path)
    finally:
        plt.close(figure)
        temporary.unlink(missing_ok=True)
