"""DDPM with learned variances (arXiv 2102.09672), as MAR's diffusion head trains and samples it (arXiv 2406.11838).

The network's output has twice the channels of a sample: the predicted noise, and where between its two bounds the
logarithm of the variance lies. Tables are float64 and become float32 where they meet a tensor.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mutoscope.errors import UserError
from mutoscope.layers.diffusion import NUM_TRAIN_STEPS, Plan, cosine_betas

Table = Float[np.ndarray, " n"]


@dataclass(frozen=True)
class DiffusionTables:
    """Everything that follows from the β of a chain; `timesteps` are the numbers of its steps in the training chain."""

    betas: Table
    timesteps: Int[np.ndarray, " n"]

    @cached_property
    def alphas_cumprod(self) -> Table:
        return np.cumprod(1 - self.betas)

    @cached_property
    def alphas_cumprod_prev(self) -> Table:
        return np.append(1.0, self.alphas_cumprod[:-1])

    @cached_property
    def alphas_cumprod_next(self) -> Table:
        return np.append(self.alphas_cumprod[1:], 0.0)

    @cached_property
    def posterior_variance(self) -> Table:
        """Of x_{t−1} given x_t and x_0."""
        return self.betas * (1 - self.alphas_cumprod_prev) / (1 - self.alphas_cumprod)

    @cached_property
    def posterior_log_variance(self) -> Table:
        """Its logarithm; the first variance is 0 and takes the value of the second."""
        return np.log(np.append(self.posterior_variance[1:2], self.posterior_variance[1:]))

    @cached_property
    def posterior_mean_coefficients(self) -> tuple[Table, Table]:
        """Factors of x_0 and of x_t in the mean of x_{t−1}."""
        before, now = self.alphas_cumprod_prev, self.alphas_cumprod
        of_sample = self.betas * np.sqrt(before) / (1 - now)
        return of_sample, (1 - before) * np.sqrt(1 - self.betas) / (1 - now)

    def at(self, table: Table, steps: Int[Tensor, "*s"]) -> Float[Tensor, "*s 1"]:
        """Entries of a table, as float32, to stand before the channels."""
        return torch.from_numpy(table).to(steps.device)[steps].float()[..., None]


@dataclass(frozen=True)
class LearnedVariance:
    """x_t = √ᾱ x + √(1 − ᾱ) ε with T = 1000; the network reads t."""

    schedule: Literal["cosine", "linear"] = "cosine"

    @cached_property
    def tables(self) -> DiffusionTables:
        """Of the training chain."""
        count = NUM_TRAIN_STEPS
        betas = cosine_betas(count).numpy() if self.schedule == "cosine" else np.linspace(1e-4, 0.02, count)
        return DiffusionTables(betas, np.arange(count))

    def respaced(self, spacing: int | str) -> DiffusionTables:
        """A shorter chain through some steps of the training chain (see `space_timesteps`) with the same ᾱ there."""
        steps = space_timesteps(NUM_TRAIN_STEPS, spacing)
        kept = self.tables.alphas_cumprod[steps]
        return DiffusionTables(1 - kept / np.append(1.0, kept[:-1]), steps)

    def draw_steps(self, shape: tuple[int, ...], generator: torch.Generator) -> Int[Tensor, "*s"]:
        """Training steps, all equally likely."""
        return torch.randint(NUM_TRAIN_STEPS, shape, generator=generator, device=generator.device)

    def add_noise(
        self, x: Float[Tensor, "*s c"], noise: Float[Tensor, "*s c"], steps: Int[Tensor, "*s"]
    ) -> Float[Tensor, "*s c"]:
        kept, added = np.sqrt(self.tables.alphas_cumprod), np.sqrt(1 - self.tables.alphas_cumprod)
        return self.tables.at(kept, steps) * x + self.tables.at(added, steps) * noise

    def losses(
        self,
        output: Float[Tensor, "*s two_c"],
        x: Float[Tensor, "*s c"],
        noise: Float[Tensor, "*s c"],
        steps: Int[Tensor, "*s"],
    ) -> tuple[Float[Tensor, "*s"], Float[Tensor, "*s"]]:
        """Squared error of the noise, and the variational bound in bits, which trains the variance alone."""
        predicted, fraction = output.float().chunk(2, dim=-1)
        error = (predicted - noise).square().mean(-1)
        x_t = self.add_noise(x, noise, steps)
        return error, self._bound(predicted.detach(), fraction, x, x_t, steps)

    def _bound(
        self,
        predicted: Float[Tensor, "*s c"],
        fraction: Float[Tensor, "*s c"],
        x: Float[Tensor, "*s c"],
        x_t: Float[Tensor, "*s c"],
        steps: Int[Tensor, "*s"],
    ) -> Float[Tensor, "*s"]:
        """KL between the true and the learned Gaussian of x_{t−1}; at step 0 the likelihood of x itself."""
        tables = self.tables
        of_sample, of_noisy = (tables.at(c, steps) for c in tables.posterior_mean_coefficients)
        true_mean = of_sample * x + of_noisy * x_t
        mean = of_sample * implied_sample(tables, x_t, predicted, steps) + of_noisy * x_t
        log_variance = learned_log_variance(tables, fraction, steps)
        true_log_variance = tables.at(tables.posterior_log_variance, steps)
        ratio = true_log_variance - log_variance
        kl = 0.5 * (-1 - ratio + ratio.exp() + (true_mean - mean).square() * (-log_variance).exp())
        likelihood = -discretized_log_likelihood(x, mean, 0.5 * log_variance)
        return torch.where(steps == 0, likelihood.mean(-1), kl.mean(-1)) / math.log(2)

    def plan(
        self, spacing: int | str, sample_range: float | None = None, eta: float | None = None
    ) -> "LearnedVariancePlan":
        """Steps from noise to a sample; `sample_range` bounds the implied x_0 to ± that, `eta` chooses DDIM."""
        tables = self.respaced(spacing)
        times = torch.from_numpy(tables.timesteps[::-1].copy()).float()
        return LearnedVariancePlan(times, tables, sample_range, eta)


@dataclass(frozen=True)
class LearnedVariancePlan(Plan):
    """Samples x_{t−1} from the learned Gaussian; with `eta` by DDIM (arXiv 2010.02502), which ignores the variance."""

    tables: DiffusionTables
    sample_range: float | None = None
    eta: float | None = None

    def needs_noise(self, k: int) -> bool:
        return k < len(self.times) - 1 and self.eta != 0

    def step(
        self, k: int, x: Float[Tensor, "*s c"], output: Float[Tensor, "*s two_c"], noise: Tensor | None = None
    ) -> Float[Tensor, "*s c"]:
        predicted, fraction = output.float().chunk(2, dim=-1)
        steps = torch.full(x.shape[:-1], len(self.times) - 1 - k, device=x.device)
        sample = implied_sample(self.tables, x, predicted, steps)
        if self.sample_range is not None:
            sample = sample.clamp(-self.sample_range, self.sample_range)
        if self.eta is not None:
            return self._ddim(x, sample, steps, noise)
        of_sample, of_noisy = (self.tables.at(c, steps) for c in self.tables.posterior_mean_coefficients)
        mean = of_sample * sample + of_noisy * x
        if noise is None or not self.needs_noise(k):
            return mean
        return mean + (0.5 * learned_log_variance(self.tables, fraction, steps)).exp() * noise

    def _ddim(
        self, x: Float[Tensor, "*s c"], sample: Float[Tensor, "*s c"], steps: Int[Tensor, "*s"], noise: Tensor | None
    ) -> Float[Tensor, "*s c"]:
        """The noise is the one that the (bounded) sample implies."""
        now = self.tables.at(self.tables.alphas_cumprod, steps)
        before = self.tables.at(self.tables.alphas_cumprod_prev, steps)
        implied = (x - now.sqrt() * sample) / (1 - now).sqrt()
        assert self.eta is not None
        sigma = self.eta * ((1 - before) / (1 - now)).sqrt() * (1 - now / before).sqrt()
        mean = before.sqrt() * sample + (1 - before - sigma**2).sqrt() * implied
        return mean if noise is None or bool(steps.flatten()[0] == 0) else mean + sigma * noise


def implied_sample(
    tables: DiffusionTables, x_t: Float[Tensor, "*s c"], noise: Float[Tensor, "*s c"], steps: Int[Tensor, "*s"]
) -> Float[Tensor, "*s c"]:
    """x_0 = x_t / √ᾱ − √(1/ᾱ − 1) ε."""
    inverse = 1 / tables.alphas_cumprod
    return tables.at(np.sqrt(inverse), steps) * x_t - tables.at(np.sqrt(inverse - 1), steps) * noise


def learned_log_variance(
    tables: DiffusionTables, fraction: Float[Tensor, "*s c"], steps: Int[Tensor, "*s"]
) -> Float[Tensor, "*s c"]:
    """Between log of the posterior variance (fraction −1) and log β (fraction 1)."""
    weight = (fraction + 1) / 2
    lowest = tables.at(tables.posterior_log_variance, steps)
    return weight * tables.at(np.log(tables.betas), steps) + (1 - weight) * lowest


def discretized_log_likelihood(
    x: Float[Tensor, "*s"], mean: Float[Tensor, "*s"], log_scale: Float[Tensor, "*s"]
) -> Float[Tensor, "*s"]:
    """Log probability of the bin of half-width 1/255 around x under a Gaussian; the outermost bins are open."""
    inverse = torch.exp(-log_scale)
    above, below = approximate_cdf((x - mean + 1 / 255) * inverse), approximate_cdf((x - mean - 1 / 255) * inverse)
    probability = torch.where(x < -0.999, above, torch.where(x > 0.999, 1 - below, above - below))
    return probability.clamp(min=1e-12).log()


def approximate_cdf(u: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """Of the standard normal, by tanh."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))


def space_timesteps(count: int, spacing: int | str) -> Int[np.ndarray, " kept"]:
    """Steps of a chain of `count` that a shorter one keeps.

    A number n: n steps, evenly spread from the first to the last one and rounded (half to even). "a,b,c": `count` is
    split into as many sections, the larger first, each with its own number. "ddimN": every stride-th step, with the
    stride that gives N.
    """
    text = str(spacing)
    if text.startswith("ddim") and text[4:].isdecimal() and int(text[4:]) > 0:
        return _strided(count, int(text[4:]))
    sections = text.split(",")
    if not all(part.strip().isdecimal() for part in sections):
        raise UserError(f'A spacing is a number of steps, numbers such as "10,15,20", or "ddim50", found {spacing!r}.')
    size, extra = divmod(count, len(sections))
    kept: list[int] = []
    first = 0
    for i, part in enumerate(sections):
        length = size + (i < extra)
        kept += [first + step for step in _spread(length, int(part))]
        first += length
    return np.unique(np.array(kept, dtype=np.int64))


def _spread(length: int, wanted: int) -> list[int]:
    if not 1 <= wanted <= length:
        raise UserError(f"{wanted} diffusion steps do not fit into {length}: ask for 1 to {length}.")
    stride = 1.0 if wanted == 1 else (length - 1) / (wanted - 1)
    position, steps = 0.0, []
    for _ in range(wanted):  # added up, not multiplied: the published code's rounding depends on it
        steps.append(round(position))
        position += stride
    return steps


def _strided(count: int, wanted: int) -> Int[np.ndarray, " kept"]:
    for stride in range(1, count):
        if len(range(0, count, stride)) == wanted:
            return np.arange(0, count, stride)
    raise UserError(f"No stride through {count} steps keeps exactly {wanted} of them.")
