"""DDPM with learned variances (arXiv 2102.09672), as MAR's diffusion head trains and samples it (arXiv 2406.11838).

The network's output has twice the channels of a sample: the predicted noise (or the sample itself, arXiv 2511.13720),
and the position of the log-variance between its two bounds. Tables are float64 and become float32 where they meet a
tensor.

Shapes: *s any number of tokens, c channels of a token, n steps of a chain.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mutoscope.checks import Range
from mutoscope.errors import UserError
from mutoscope.layers.diffusion import NUM_TRAIN_STEPS, Plan, Predict, bounded, cosine_betas
from mutoscope.layers.draws import Draws, randint

Table = Float[np.ndarray, " n"]

LINEAR_BETAS = 1e-4, 0.02  # first and last β of the linear schedule for 1,000 steps (arXiv 2006.11239)
MAX_TRAIN_STEPS = 100_000  # the tables of a longer chain would take minutes to compute
HALF_BIN = 1 / 255  # half the distance of neighbouring 8-bit values in [-1, 1]
OPEN_BIN = 0.999  # beyond ±0.999 the outermost bins reach to infinity (arXiv 2006.11239, eq. 13; official code)
SMALLEST_PROBABILITY = 1e-12  # keeps the logarithm finite (official code)
LARGEST_WEIGHT = 5.0  # of a predicted sample's error: γ of Min-SNR (arXiv 2303.09556)

Prediction = Literal["epsilon", "sample"]


Number = Float[Tensor, "*s 1"] | float
"""A constant of some steps, or of one step."""


@dataclass(frozen=True)
class StepNumbers:
    """Constants of steps of a chain, in float32."""

    of_sample: Number
    of_noisy: Number
    """Factors of x_0 and of x_t in the mean of x_{t−1}."""
    inverse: Number
    inverse_noise: Number
    """Factors of x_t and of ε in x_0."""
    largest: Number
    smallest: Number
    """Bounds of the learned log-variance: log β, and that of the posterior."""


@dataclass(frozen=True)
class DiffusionTables:
    """Constants of a chain of noise, all derived from its β."""

    betas: Table
    timesteps: Int[np.ndarray, " n"]
    """Index of each step in the training chain; the network reads it."""

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
        """Variance of x_{t−1} given x_t and x_0."""
        return self.betas * (1 - self.alphas_cumprod_prev) / (1 - self.alphas_cumprod)

    @cached_property
    def posterior_log_variance(self) -> Table:
        """Logarithm of `posterior_variance`; the first variance, 0, is replaced by the second (official code).

        A chain of one step has no second variance; its first one is never used, and stands as β.
        """
        replaced = self.posterior_variance[1:2] if len(self.betas) > 1 else self.betas
        return np.log(np.append(replaced, self.posterior_variance[1:]))

    @cached_property
    def posterior_mean_coefficients(self) -> tuple[Table, Table]:
        """Factors of x_0 and of x_t in the mean of x_{t−1}."""
        before, now = self.alphas_cumprod_prev, self.alphas_cumprod
        of_sample = self.betas * np.sqrt(before) / (1 - now)
        return of_sample, (1 - before) * np.sqrt(1 - self.betas) / (1 - now)

    @cached_property
    def step_tables(self) -> tuple[Table, ...]:
        """The tables of `StepNumbers`, in the order of its fields."""
        inverse = 1 / self.alphas_cumprod
        noise_factors = np.sqrt(inverse), np.sqrt(inverse - 1)
        return (*self.posterior_mean_coefficients, *noise_factors, np.log(self.betas), self.posterior_log_variance)

    def numbers(self, steps: Int[Tensor, "*s"]) -> StepNumbers:
        """Constants of many steps."""
        return StepNumbers(*(self.at(table, steps) for table in self.step_tables))

    @cached_property
    def numbers_of(self) -> tuple[StepNumbers, ...]:
        """Constants of every step, as numbers: sampling needs them without any small tensor."""
        return tuple(
            StepNumbers(*(float(one) for one in step)) for step in np.array(self.step_tables, dtype=np.float32).T
        )

    def at(self, table: Table, steps: Int[Tensor, "*s"]) -> Float[Tensor, "*s 1"]:
        """Entries of a table, as float32, with a last axis that broadcasts over channels."""
        return torch.from_numpy(table).to(steps.device)[steps].float()[..., None]


@dataclass(frozen=True)
class LearnedVariance:
    """x_t = √ᾱ x + √(1 − ᾱ) ε for t in 0 … `num_train_steps` − 1; the network reads t.

    `prediction`: what the network predicts, the noise ε as MAR's does, or the sample x. A network narrower than a token
    cannot pass ε through but can predict x, which the condition almost determines (arXiv 2511.13720).

    Raises UserError for fewer than 2 steps, and for a linear schedule with fewer than 21, whose β would reach 1.
    """

    schedule: Literal["cosine", "linear"] = "cosine"
    num_train_steps: int = NUM_TRAIN_STEPS
    prediction: Prediction = "epsilon"

    def __post_init__(self) -> None:
        least = 2 if self.schedule == "cosine" else 21
        Range(least, MAX_TRAIN_STEPS).check("num_train_steps", self.num_train_steps)

    @cached_property
    def tables(self) -> DiffusionTables:
        """Constants of the training chain."""
        count = self.num_train_steps
        if self.schedule == "cosine":
            return DiffusionTables(cosine_betas(count).numpy(), np.arange(count))
        # Scaled so that the whole chain adds as much noise as 1,000 steps do (official code).
        first, last = (NUM_TRAIN_STEPS / count * beta for beta in LINEAR_BETAS)
        return DiffusionTables(np.linspace(first, last, count), np.arange(count))

    def respaced(self, spacing: int | str) -> DiffusionTables:
        """A shorter chain through some steps of the training chain (see `space_timesteps`) with the same ᾱ there."""
        steps = space_timesteps(self.num_train_steps, spacing)
        kept = self.tables.alphas_cumprod[steps]
        return DiffusionTables(1 - kept / np.append(1.0, kept[:-1]), steps)

    @property
    def reads_lengths(self) -> bool:
        """Whether the network reads the lengths of steps (see `layers.shortcut`)."""
        return False

    def output_size(self, token_size: int) -> int:
        """Numbers that the network predicts for a token: the noise or sample, and the place of its log-variance."""
        return 2 * token_size

    def draw_steps(self, shape: tuple[int, ...], generator: Draws) -> Int[Tensor, "*s"]:
        """Training steps, all equally likely."""
        return randint(generator, self.num_train_steps, *shape)

    def add_noise(
        self, x: Float[Tensor, "*s c"], noise: Float[Tensor, "*s c"], steps: Int[Tensor, "*s"]
    ) -> Float[Tensor, "*s c"]:
        """x_t at the training steps `steps`."""
        kept, added = np.sqrt(self.tables.alphas_cumprod), np.sqrt(1 - self.tables.alphas_cumprod)
        return self.tables.at(kept, steps) * x + self.tables.at(added, steps) * noise

    def terms(
        self, predict: Predict, x: Float[Tensor, "r c"], noise: Float[Tensor, "r c"], steps: Int[Tensor, " r"]
    ) -> dict[str, Float[Tensor, " r"]]:
        """The losses of every token by name; training minimises their sum."""
        output = predict(None, self.add_noise(x, noise, steps), steps)
        error, bound = self.losses(output, x, noise, steps)
        return {"diffusion_loss": error, "variational_bound": bound}

    def losses(
        self,
        output: Float[Tensor, "*s two_c"],
        x: Float[Tensor, "*s c"],
        noise: Float[Tensor, "*s c"],
        steps: Int[Tensor, "*s"],
    ) -> tuple[Float[Tensor, "*s"], Float[Tensor, "*s"]]:
        """Squared error of the noise, and the variational bound in bits, which trains the variance alone.

        For a predicted sample, the error of v = √ᾱ ε − √(1 − ᾱ) x that it implies (arXiv 2202.00512, §4), where the
        error of x weighs 1 / (1 − ᾱ), here at most `LARGEST_WEIGHT`. Its bound is reduced by the same factor, since an
        error of x at little noise is thousands of the posterior's variances.
        """
        predicted, fraction = output.float().chunk(2, dim=-1)  # (*s, c) each
        x_t = self.add_noise(x, noise, steps)
        sample = predicted_sample(self.tables.numbers(steps), self.prediction, x_t, predicted.detach())
        bound = self._bound(sample, fraction, x, x_t, steps)
        if self.prediction == "epsilon":
            return (predicted - noise).square().mean(-1), bound
        weight = self.tables.at(1 / (1 - self.tables.alphas_cumprod), steps)[..., 0]  # (*s)
        capped = weight.clamp(max=LARGEST_WEIGHT)
        return capped * (predicted - x).square().mean(-1), capped / weight * bound

    def _bound(
        self,
        sample: Float[Tensor, "*s c"],
        fraction: Float[Tensor, "*s c"],
        x: Float[Tensor, "*s c"],
        x_t: Float[Tensor, "*s c"],
        steps: Int[Tensor, "*s"],
    ) -> Float[Tensor, "*s"]:
        """KL between the true and the learned Gaussian of x_{t−1}; at step 0 the likelihood of x itself."""
        tables = self.tables
        numbers = tables.numbers(steps)
        true_mean = numbers.of_sample * x + numbers.of_noisy * x_t
        mean = numbers.of_sample * sample + numbers.of_noisy * x_t
        log_variance = learned_log_variance(numbers, fraction)
        true_log_variance = tables.at(tables.posterior_log_variance, steps)
        ratio = true_log_variance - log_variance
        kl = 0.5 * (-1 - ratio + ratio.exp() + (true_mean - mean).square() * (-log_variance).exp())
        likelihood = -discretized_log_likelihood(x, mean, 0.5 * log_variance)
        return torch.where(steps == 0, likelihood.mean(-1), kl.mean(-1)) / math.log(2)

    def plan(
        self, spacing: int | str, sample_range: float | None = None, eta: float | None = None
    ) -> "LearnedVariancePlan":
        """Steps from noise to a sample.

        `spacing`: see `space_timesteps`. `sample_range` clamps the implied x_0 to ±`sample_range`. `eta` selects DDIM:
        0 adds no noise, 1 as much as DDPM.
        """
        tables = self.respaced(spacing)
        times = torch.from_numpy(tables.timesteps[::-1].copy()).float()
        return LearnedVariancePlan(times, tables, sample_range, eta, self.prediction)


@dataclass(frozen=True)
class LearnedVariancePlan(Plan):
    """Samples x_{t−1} from the learned Gaussian; with `eta` by DDIM (arXiv 2010.02502), which ignores the variance."""

    tables: DiffusionTables
    sample_range: float | None = None
    eta: float | None = None
    prediction: Prediction = "epsilon"

    def needs_noise(self, k: int) -> bool:
        return k < len(self.times) - 1 and self.eta != 0

    def num_guided(self, output_size: int) -> int:
        return output_size // 2  # the rest says how large the variance is

    def step(
        self, k: int, x: Float[Tensor, "*s c"], output: Float[Tensor, "*s two_c"], noise: Tensor | None = None
    ) -> Float[Tensor, "*s c"]:
        predicted, fraction = output.float().chunk(2, dim=-1)
        step = len(self.times) - 1 - k
        numbers = self.tables.numbers_of[step]
        sample = predicted_sample(numbers, self.prediction, x, predicted)
        if self.sample_range is not None:
            sample = bounded(sample, self.sample_range)
        if self.eta is not None:
            return self._ddim(
                x, sample, torch.full(x.shape[:-1], step, device=x.device), noise if self.needs_noise(k) else None
            )
        mean = numbers.of_sample * sample + numbers.of_noisy * x
        if noise is None or not self.needs_noise(k):
            return mean
        return mean + (0.5 * learned_log_variance(numbers, fraction)).exp() * noise

    def _ddim(
        self, x: Float[Tensor, "*s c"], sample: Float[Tensor, "*s c"], steps: Int[Tensor, "*s"], noise: Tensor | None
    ) -> Float[Tensor, "*s c"]:
        """One DDIM step, with the noise that the (clamped) sample implies."""
        now = self.tables.at(self.tables.alphas_cumprod, steps)
        before = self.tables.at(self.tables.alphas_cumprod_prev, steps)
        implied = (x - now.sqrt() * sample) / (1 - now).sqrt()
        assert self.eta is not None
        sigma = self.eta * ((1 - before) / (1 - now)).sqrt() * (1 - now / before).sqrt()
        # Never negative but for rounding, which would turn steps with eta 1 into NaN.
        mean = before.sqrt() * sample + (1 - before - sigma**2).clamp(min=0).sqrt() * implied
        return mean if noise is None else mean + sigma * noise


def predicted_sample(
    numbers: StepNumbers, prediction: Prediction, x_t: Float[Tensor, "*s c"], predicted: Float[Tensor, "*s c"]
) -> Float[Tensor, "*s c"]:
    """x_0 according to the network."""
    return predicted if prediction == "sample" else implied_sample(numbers, x_t, predicted)


def implied_sample(
    numbers: StepNumbers, x_t: Float[Tensor, "*s c"], noise: Float[Tensor, "*s c"]
) -> Float[Tensor, "*s c"]:
    """x_0 = x_t / √ᾱ − √(1/ᾱ − 1) ε."""
    return numbers.inverse * x_t - numbers.inverse_noise * noise


def learned_log_variance(numbers: StepNumbers, fraction: Float[Tensor, "*s c"]) -> Float[Tensor, "*s c"]:
    """Log-variance between that of the posterior (`fraction` −1) and log β (`fraction` 1), arXiv 2102.09672 eq. 15."""
    weight = (fraction + 1) / 2
    return weight * numbers.largest + (1 - weight) * numbers.smallest


def discretized_log_likelihood(
    x: Float[Tensor, "*s"], mean: Float[Tensor, "*s"], log_scale: Float[Tensor, "*s"]
) -> Float[Tensor, "*s"]:
    """Log-probability of the 8-bit bin around x under a Gaussian; the outermost bins are open."""
    inverse = torch.exp(-log_scale)
    above, below = approximate_cdf((x - mean + HALF_BIN) * inverse), approximate_cdf((x - mean - HALF_BIN) * inverse)
    probability = torch.where(x < -OPEN_BIN, above, torch.where(x > OPEN_BIN, 1 - below, above - below))
    return probability.clamp(min=SMALLEST_PROBABILITY).log()


def approximate_cdf(u: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """Distribution function of the standard normal, in the tanh form of GELU (arXiv 1606.08415)."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))


def space_timesteps(count: int, spacing: int | str) -> Int[np.ndarray, " kept"]:
    """Indices of the steps of a chain of `count` that a shorter chain keeps, in rising order.

    A number n: n steps at even distances from the first to the last one, rounded half to even. "a,b,c": `count` is
    split into three sections, the larger first, with a, b and c steps; likewise for other numbers of sections.
    "ddimN": every stride-th step, with the stride that gives N. Raises UserError for any other spacing, and for more
    steps than `count`.
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
        kept += [first + step for step in _even_steps(length, int(part))]
        first += length
    return np.unique(np.array(kept, dtype=np.int64))


def _even_steps(length: int, wanted: int) -> list[int]:
    if not 1 <= wanted <= length:
        raise UserError(f"{wanted} diffusion steps do not fit into {length}: choose 1 to {length}.")
    stride = 1.0 if wanted == 1 else (length - 1) / (wanted - 1)
    position, steps = 0.0, []
    for _ in range(wanted):  # a running sum, not a product: the rounding of the official code depends on it
        steps.append(round(position))
        position += stride
    return steps


def _strided(count: int, wanted: int) -> Int[np.ndarray, " kept"]:
    for stride in range(1, count):
        if len(range(0, count, stride)) == wanted:
            return np.arange(0, count, stride)
    raise UserError(f"No stride through {count} steps keeps exactly {wanted} of them.")
