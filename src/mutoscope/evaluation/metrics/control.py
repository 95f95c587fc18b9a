"""How well actions are recognised in clips: balanced accuracy of buttons, R² of axes, from sums per clip.

Sums instead of predictions are kept, so that clips can be resampled and rows stay small.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mutoscope.evaluation.metrics.intervals import MEAN_RESAMPLES, Figure, Figures, figure

NUM_SUMS = 4
Sums = Float[Tensor, "n a 4"]


def action_sums(
    found: Float[Tensor, "n t a"], true: Float[Tensor, "n t a"], is_button: tuple[bool, ...]
) -> Float[Tensor, "n a 4"]:
    """Sums over the frames of each clip; frames whose action is unknown (NaN) are ignored.

    Of buttons: hits, pressed rows, correct releases, released rows. Of axes: squared error, rows, sum and sum of
    squares of the true numbers.
    """
    known = ~true.isnan()
    true, found = true.nan_to_num().double(), found.double()
    pressed, said = true > 0.5, found > 0.5
    buttons = torch.stack([pressed & said, pressed, ~pressed & ~said, ~pressed], dim=-1).double()
    axes = torch.stack([(found - true).square(), torch.ones_like(true), true, true.square()], dim=-1)
    chosen = torch.where(torch.tensor(is_button)[:, None], buttons, axes)  # (n, t, a, 4)
    return (chosen * known[..., None]).sum(dim=1)


def scores(sums: Float[np.ndarray, "*r a 4"], is_button: tuple[bool, ...]) -> Float[np.ndarray, "*r a"]:
    """Balanced accuracy of each button and R² of each axis; NaN where rows of one kind are missing."""
    a, b, c, d = np.moveaxis(sums, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        accuracy = (a / b + c / d) / 2
        total = d - c**2 / b  # squared differences from the mean
        explained = np.where(total > 1e-9 * np.abs(d), 1 - a / total, np.nan)
    return np.where(np.array(is_button), accuracy, explained)


@dataclass(frozen=True)
class Recognised:
    """Sums of generated clips and of the real clips whose actions they follow, resampled together."""

    generated: Sums
    real: Sums
    names: tuple[str, ...]
    is_button: tuple[bool, ...]
    seed: int

    def figures(self) -> Figures:
        """A figure per action, and means over buttons and over axes, each with the real one and their ratio."""
        mine, real = (self._draws(sums) for sums in (self.generated, self.real))  # (1 + resamples, a)
        found: Figures = {}
        for kind, buttons in (("action_accuracy", True), ("action_r2", False)):
            columns = [i for i, button in enumerate(self.is_button) if button is buttons and np.isfinite(real[0, i])]
            if columns:
                found |= beside(kind, mine[:, columns], real[:, columns])
            for i in columns:
                found |= beside(f"{kind}_{self.names[i]}", mine[:, [i]], real[:, [i]])
        return found

    @property
    def unmeasured(self) -> list[str]:
        """Names of the actions that never change in the real clips."""
        values = scores(self.real.sum(dim=0).numpy(), self.is_button)
        return [name for name, value in zip(self.names, values, strict=True) if not np.isfinite(value)]

    def _draws(self, sums: Sums) -> Float[np.ndarray, "r a"]:
        """Scores of all clips, then of resampled clips."""
        rng, n = np.random.default_rng(self.seed), len(sums)
        weights = np.concatenate([np.ones((1, n)), rng.multinomial(n, np.full(n, 1 / n), MEAN_RESAMPLES)])
        return scores(np.einsum("rn,nak->rak", weights, sums.numpy()), self.is_button)


def beside(name: str, mine: Float[np.ndarray, "r k"], real: Float[np.ndarray, "r k"]) -> Figures:
    """The mean over columns of generated and of real clips, and their ratio, with intervals of the resampled rows."""
    mine, real = mine.mean(axis=1), real.mean(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(real > 0, mine / real, np.nan)
    return {name: of_draws(mine), f"{name}_real": of_draws(real), f"{name}_ratio": of_draws(ratio)}


def of_draws(values: Float[np.ndarray, " r"]) -> Figure:
    """The first number with the interval of the others; resamples without a value are ignored."""
    draws = values[1:][np.isfinite(values[1:])]
    if len(draws) < 2 or not np.isfinite(values[0]):
        return figure(float(values[0]), np.nan, np.nan)
    return figure(float(values[0]), *np.quantile(draws, [0.025, 0.975]))
