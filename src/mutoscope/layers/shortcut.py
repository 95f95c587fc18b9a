"""Flow matching in few steps: shortcut models (arXiv 2410.12557).

The network reads, beside the noisy sample and σ, the length d of the step that it is to take, and predicts the mean
velocity over it. For d = 0 its target is that of flow matching; for longer steps it is the mean of its own velocities
over two steps of half the length (eq. 4), so that one step learns what two do.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mutoscope.checks import Range, check_fields
from mutoscope.errors import UserError
from mutoscope.layers.diffusion import NUM_TRAIN_STEPS, EulerPlan, Predict
from mutoscope.layers.draws import Draws, randint

FLOW_SHARE = 3  # targets of flow matching for each one of consistency (arXiv 2410.12557 §4)
MAX_FINEST = 1024


@dataclass(frozen=True)
class Shortcut:
    """x_σ = σ ε + (1 − σ) x, whose velocity is ε − x; the network reads 1000 σ and 1000 d.

    `finest`: steps of the longest chain that shorter ones are trained to agree with, a power of two.
    """

    finest: int = 64

    def __post_init__(self) -> None:
        check_fields(self, {"finest": Range(2, MAX_FINEST)})
        if self.finest & (self.finest - 1):
            raise UserError(f"finest must be a power of two, found {self.finest}.")

    @property
    def prediction(self) -> Literal["velocity"]:
        """What the network predicts."""
        return "velocity"

    @property
    def num_train_steps(self) -> int:
        """Most steps of a chain, as for diffusion by noise."""
        return NUM_TRAIN_STEPS

    @property
    def reads_lengths(self) -> bool:
        """Whether the network reads the lengths of steps."""
        return True

    def output_size(self, token_size: int) -> int:
        """Numbers that the network predicts for a token."""
        return token_size

    @cached_property
    def steps(self) -> Float[Tensor, "n 2"]:
        """(σ, d) of every training step: first those of flow matching, then for each d those from which chains start.

        All lengths d = 1, 1/2 … 2/`finest` are equally frequent.
        """
        lengths = [2.0**-level for level in range(int(math.log2(self.finest)))]
        starts = [(1 - d * (i % round(1 / d)), d) for d in lengths for i in range(self.finest)]
        count = FLOW_SHARE * len(starts)
        flow = [((i + 1) / count, 0.0) for i in range(count)]
        return torch.tensor(flow + starts)

    def draw_steps(self, shape: tuple[int, ...], generator: Draws) -> Int[Tensor, "*s"]:
        """Training steps, all equally likely."""
        return randint(generator, len(self.steps), *shape)

    def terms(
        self, predict: Predict, x: Float[Tensor, "r c"], noise: Float[Tensor, "r c"], steps: Int[Tensor, " r"]
    ) -> dict[str, Float[Tensor, " r"]]:
        """The losses of every token by name, squared errors of the velocity: 0 where the other one counts."""
        sigma, length = self.steps.to(x.device)[steps].unbind(-1)  # (r,) each
        noisy = sigma[:, None] * noise + (1 - sigma[:, None]) * x
        target = noise - x
        rows = length.nonzero().flatten()
        if len(rows):
            target = target.index_copy(0, rows, self.halves(predict, rows, noisy[rows], sigma[rows], length[rows]))
        velocity = predict(None, noisy, sigma * NUM_TRAIN_STEPS, length * NUM_TRAIN_STEPS).float()
        error, is_flow = (velocity - target).square().mean(-1), length == 0  # (r,)
        return {"diffusion_loss": error * is_flow, "consistency_loss": error * ~is_flow}

    @torch.no_grad()
    def halves(
        self,
        predict: Predict,
        rows: Int[Tensor, " m"],
        x: Float[Tensor, "m c"],
        sigma: Float[Tensor, " m"],
        length: Float[Tensor, " m"],
    ) -> Float[Tensor, "m c"]:
        """Mean velocity over two steps of half the length."""
        half = length / 2
        asked = torch.where(half * self.finest > 1, half, torch.zeros_like(half))  # the finest step is instantaneous
        asked = asked * NUM_TRAIN_STEPS
        first = predict(rows, x, sigma * NUM_TRAIN_STEPS, asked).float()
        second = predict(rows, x - half[:, None] * first, (sigma - half) * NUM_TRAIN_STEPS, asked).float()
        return (first + second) / 2

    def plan(self, num_steps: int, changed: float | None = None, eta: float | None = None) -> "ShortcutPlan":
        """Steps of equal length.

        Raises UserError for fewer steps than `finest` that are no power of two, and for what changes the steps of other
        diffusions: a range of samples or a shift of the flow (`changed`), and `eta`.
        """
        if changed is not None or eta is not None:
            raise UserError("A network that reads the lengths of its steps has no sample_range, flow_shift or eta.")
        if num_steps < self.finest and num_steps & (num_steps - 1):
            raise UserError(
                f"This network was trained for 1, 2, 4 … {self.finest} diffusion steps or more, found {num_steps}."
            )
        sigmas = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)
        length = 1 / num_steps if num_steps < self.finest else 0.0
        lengths = torch.full((num_steps,), length * NUM_TRAIN_STEPS)
        return ShortcutPlan((sigmas[:-1] * NUM_TRAIN_STEPS).float(), sigmas.float(), lengths)


@dataclass(frozen=True)
class ShortcutPlan(EulerPlan):
    """Euler steps whose length the network reads."""

    step_lengths: Float[Tensor, " steps"]

    @property
    def lengths(self) -> Float[Tensor, " steps"]:
        return self.step_lengths
