"""Diffusion on tensors of any shape: flow matching and DDPM, for training and sampling.

Both are frozen dataclasses with the same methods: draw training steps, add noise, the time that the network reads, its
target; and, for sampling, a `Plan` of steps.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from mutoscope.checks import POSITIVE, check_fields
from mutoscope.errors import UserError
from mutoscope.layers.draws import Draws, randint, randn

NUM_TRAIN_STEPS = 1000  # of DDPM (arXiv 2006.11239) and of all published models here
SMALLEST_VARIANCE = 1e-20  # diffusers' floor, which keeps the square root and the logarithm finite
SIGMOID_SCHEDULE_RANGE = -6, 6  # of the arguments of diffusers' "sigmoid" schedule
COSINE_OFFSET = 0.008  # keeps the first β of the cosine schedule from vanishing (arXiv 2102.09672, §3.2)


class Predict(Protocol):
    """A network's output for chosen rows of a batch in training."""

    def __call__(
        self,
        rows: Int[Tensor, " m"] | None,
        x: Float[Tensor, "m c"],
        times: Num[Tensor, " m"],
        lengths: Float[Tensor, " m"] | None = None,
    ) -> Float[Tensor, "m o"]:
        """`rows`: None for all. `times` and `lengths`: diffusion times that the network reads, and lengths of
        steps, where it reads them.
        """
        ...


@dataclass(frozen=True)
class Plan(ABC):
    """The steps from noise to a sample."""

    times: Float[Tensor, " steps"]
    """Diffusion time that the network reads in each step."""

    @property
    def lengths(self) -> Float[Tensor, " steps"] | None:
        """Lengths of the steps, for a network that reads them (see `layers.shortcut`)."""
        return None

    def num_guided(self, output_size: int) -> int:
        """How many leading numbers of a prediction guidance changes; the others are the conditional pass's."""
        return output_size

    def __len__(self) -> int:
        return len(self.times)

    @cached_property
    def numbers(self) -> list[float]:
        """The times as numbers, by which steps differ from each other."""
        return self.times.tolist()

    @abstractmethod
    def needs_noise(self, k: int) -> bool:
        """Whether step k adds fresh noise."""

    @abstractmethod
    def step(
        self, k: int, x: Float[Tensor, "*s"], output: Float[Tensor, "*s"], noise: Float[Tensor, "*s"] | None = None
    ) -> Float[Tensor, "*s"]:
        """The sample after step k. `output`: the network's output for `x`; `noise`: fresh noise, if step k adds any."""


class Regression(ABC):
    """A diffusion whose network learns one target by its squared error, without reading the lengths of steps."""

    @property
    def reads_lengths(self) -> bool:
        """Whether the network reads the lengths of steps (see `layers.shortcut`)."""
        return False

    @abstractmethod
    def add_noise(
        self, x: Float[Tensor, "*s d"], noise: Float[Tensor, "*s d"], steps: Int[Tensor, "*s"]
    ) -> Float[Tensor, "*s d"]:
        """What the network reads at training steps."""

    @abstractmethod
    def times(self, steps: Int[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """Diffusion times that the network reads at training steps."""

    @abstractmethod
    def target(
        self, x: Float[Tensor, "*s d"], noise: Float[Tensor, "*s d"], steps: Int[Tensor, "*s"]
    ) -> Float[Tensor, "*s d"]:
        """What the network predicts."""

    def terms(
        self, predict: Predict, x: Float[Tensor, "r c"], noise: Float[Tensor, "r c"], steps: Int[Tensor, " r"]
    ) -> dict[str, Float[Tensor, " r"]]:
        """The loss of every token by name: the squared error of what the network predicts."""
        output = predict(None, self.add_noise(x, noise, steps), self.times(steps))
        return {"diffusion_loss": (output.float() - self.target(x, noise, steps)).square().mean(-1)}


# ---------------------------------------------------------------------------------------------------------------------
# Flow matching


@dataclass(frozen=True)
class EulerPlan(Plan):
    """x ← x + (σ_{k+1} − σ_k) · v."""

    sigmas: Float[Tensor, " steps_1"]

    def needs_noise(self, k: int) -> bool:
        return False

    def step(
        self, k: int, x: Float[Tensor, "*s"], output: Float[Tensor, "*s"], noise: Float[Tensor, "*s"] | None = None
    ) -> Float[Tensor, "*s"]:
        return x + self.differences[k] * output

    @cached_property
    def differences(self) -> list[float]:
        return self.sigmas.diff().tolist()


@dataclass(frozen=True)
class FlowMatching(Regression):
    """x_σ = σ ε + (1 − σ) x; the network reads 1000 σ and predicts ε − x.

    σ at training step i is s·q / (1 + (s − 1)·q) with q = (1000 − i) / 1000 and s the `shift`: step 0 is pure noise.
    """

    shift: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self, {"shift": POSITIVE})

    @cached_property
    def sigmas(self) -> Float[Tensor, " n"]:
        """σ of every training step."""
        q = torch.from_numpy(np.linspace(1, NUM_TRAIN_STEPS, NUM_TRAIN_STEPS, dtype=np.float32)[::-1].copy())
        return shifted(q / NUM_TRAIN_STEPS, self.shift)

    def draw_steps(self, shape: tuple[int, ...], generator: Draws) -> Int[Tensor, "*s"]:
        """Training steps int(1000 sigmoid(n)) of a standard normal n: most in the middle (arXiv 2403.03206 §3.1)."""
        return (randn(generator, *shape).sigmoid() * NUM_TRAIN_STEPS).long()

    def add_noise(
        self, x: Float[Tensor, "*s d"], noise: Float[Tensor, "*s d"], steps: Int[Tensor, "*s"]
    ) -> Float[Tensor, "*s d"]:
        sigma = self.sigmas.to(x.device)[steps][..., None]
        return sigma * noise + (1 - sigma) * x

    def times(self, steps: Int[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """Diffusion times that the network reads at training steps."""
        return self.sigmas.to(steps.device)[steps] * NUM_TRAIN_STEPS

    def target(
        self, x: Float[Tensor, "*s d"], noise: Float[Tensor, "*s d"], steps: Int[Tensor, "*s"]
    ) -> Float[Tensor, "*s d"]:
        return noise - x

    def plan(self, num_steps: int, shift: float | None = None) -> EulerPlan:
        """σ falls from 1 in even steps, is shifted, and ends at 0.

        `shift`: another one than in training, None for the same. As in the published pipelines, the smallest σ of the
        even steps is one that `self.shift` has already moved.
        """
        last = float(self.sigmas[-1]) * NUM_TRAIN_STEPS
        even = np.linspace(NUM_TRAIN_STEPS, last, num_steps) / NUM_TRAIN_STEPS
        sigmas = shifted(torch.from_numpy(even), self.shift if shift is None else shift).float()
        return EulerPlan(sigmas * NUM_TRAIN_STEPS, torch.cat([sigmas, sigmas.new_zeros(1)]))


def shifted(sigma: Float[Tensor, "*s"], shift: float) -> Float[Tensor, "*s"]:
    """s·σ / (1 + (s − 1)·σ): more of the steps at high noise for s > 1."""
    return shift * sigma / (1 + (shift - 1) * sigma)


# ---------------------------------------------------------------------------------------------------------------------
# DDPM

BetaSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"]
Prediction = Literal["epsilon", "sample", "v_prediction"]


@dataclass(frozen=True)
class AncestralPlan(Plan):
    """Samples x_{t−1} from its Gaussian given x_t and the predicted x_0."""

    scheme: "DDPM"
    stride: int

    def needs_noise(self, k: int) -> bool:
        return int(self.numbers[k]) > 0

    def step(
        self, k: int, x: Float[Tensor, "*s"], output: Float[Tensor, "*s"], noise: Float[Tensor, "*s"] | None = None
    ) -> Float[Tensor, "*s"]:
        t = int(self.numbers[k])
        now, before = self.scheme.alpha_bar(t), self.scheme.alpha_bar(t - self.stride)
        alpha = now / before
        sample = self.scheme.predicted_sample(x, output, now)
        mean = math.sqrt(before) * (1 - alpha) / (1 - now) * sample + math.sqrt(alpha) * (1 - before) / (1 - now) * x
        if noise is None or t == 0:
            return mean
        return mean + math.sqrt(self.scheme.variance(now, before)) * noise


@dataclass(frozen=True)
class DDPM(Regression):
    """x_t = √ᾱ x + √(1 − ᾱ) ε; the network reads t and predicts ε (or x, or v). Field names are diffusers'.

    `clip_sample` bounds the predicted x_0 to ±`clip_sample_range`; NOVA's own sampler never does.
    """

    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: BetaSchedule = "linear"
    prediction_type: Prediction = "epsilon"
    variance_type: Literal["fixed_small", "fixed_small_log", "fixed_large"] = "fixed_small"
    timestep_spacing: Literal["linspace", "leading", "trailing"] = "leading"
    steps_offset: int = 0
    rescale_betas_zero_snr: bool = False
    clip_sample: bool = False
    clip_sample_range: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self, {"beta_start": POSITIVE, "beta_end": POSITIVE, "clip_sample_range": POSITIVE})

    @cached_property
    def alphas_cumprod(self) -> Float[Tensor, " n"]:
        """ᾱ of every training step, float32."""
        betas = self._betas()
        if self.rescale_betas_zero_snr:
            betas = zero_snr(betas)
        return torch.cumprod(1 - betas, dim=0)

    def _betas(self) -> Float[Tensor, " n"]:
        n, start, end = NUM_TRAIN_STEPS, self.beta_start, self.beta_end
        if self.beta_schedule == "linear":
            return torch.linspace(start, end, n)
        if self.beta_schedule == "scaled_linear":
            return torch.linspace(start**0.5, end**0.5, n) ** 2
        if self.beta_schedule == "sigmoid":
            return torch.linspace(*SIGMOID_SCHEDULE_RANGE, n).sigmoid() * (end - start) + start
        return cosine_betas(n).float()

    def draw_steps(self, shape: tuple[int, ...], generator: Draws) -> Int[Tensor, "*s"]:
        """Training steps, all equally likely."""
        return randint(generator, NUM_TRAIN_STEPS, *shape)

    def add_noise(
        self, x: Float[Tensor, "*s d"], noise: Float[Tensor, "*s d"], steps: Int[Tensor, "*s"]
    ) -> Float[Tensor, "*s d"]:
        alpha_bar = self.alphas_cumprod.to(x.device)[steps][..., None]
        return alpha_bar.sqrt() * x + (1 - alpha_bar).sqrt() * noise

    def times(self, steps: Int[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """Diffusion times that the network reads at training steps: their indices."""
        return steps.float()

    def target(
        self, x: Float[Tensor, "*s d"], noise: Float[Tensor, "*s d"], steps: Int[Tensor, "*s"]
    ) -> Float[Tensor, "*s d"]:
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return x
        alpha_bar = self.alphas_cumprod.to(x.device)[steps][..., None]
        return alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * x

    def plan(self, num_steps: int, shift: float | None = None) -> AncestralPlan:
        """`num_steps` of the training steps, from high to low noise."""
        if shift is not None:
            raise UserError("flow_shift belongs to flow matching; this model was trained with DDPM. Omit flow_shift.")
        stride = NUM_TRAIN_STEPS // num_steps
        if self.timestep_spacing == "linspace":
            times = np.linspace(0, NUM_TRAIN_STEPS - 1, num_steps).round()[::-1]
        elif self.timestep_spacing == "leading":
            times = (np.arange(num_steps) * stride).round()[::-1] + self.steps_offset
        else:
            times = np.arange(NUM_TRAIN_STEPS, 0, -NUM_TRAIN_STEPS / num_steps).round() - 1
        return AncestralPlan(torch.from_numpy(times.astype(np.float32)), self, stride)

    def alpha_bar(self, t: int) -> float:
        """ᾱ of training step t; 1 before the first one."""
        return float(self.alphas_cumprod[t]) if t >= 0 else 1.0

    def predicted_sample(
        self, x: Float[Tensor, "*s"], output: Float[Tensor, "*s"], alpha_bar: float
    ) -> Float[Tensor, "*s"]:
        """x_0 that the network's output implies."""
        if self.prediction_type == "epsilon":
            sample = (x - math.sqrt(1 - alpha_bar) * output) / math.sqrt(alpha_bar)
        elif self.prediction_type == "sample":
            sample = output
        else:
            sample = math.sqrt(alpha_bar) * x - math.sqrt(1 - alpha_bar) * output
        return bounded(sample, self.clip_sample_range) if self.clip_sample else sample

    def variance(self, now: float, before: float) -> float:
        """Variance of the noise added between ᾱ = `now` and `before`."""
        beta = 1 - now / before
        if self.variance_type == "fixed_large":
            return beta
        return max(SMALLEST_VARIANCE, (1 - before) / (1 - now) * beta)


Diffusion = FlowMatching | DDPM


def bounded(sample: Float[Tensor, "*s"], bound: float) -> Float[Tensor, "*s"]:
    """The sample clamped to ±`bound`; an infinite number becomes NaN, since the bound would hide it."""
    return torch.add(sample.clamp(-bound, bound), sample, alpha=0)  # 0 · ∞ is NaN


def cosine_betas(count: int, max_beta: float = 0.999) -> Float[Tensor, " count"]:
    """β, at most `max_beta`, of ᾱ(u) = cos²((u + 0.008) / 1.008 · π/2) (arXiv 2102.09672), in float64."""
    u = torch.arange(count + 1, dtype=torch.float64) / count
    alpha_bar = torch.cos((u + COSINE_OFFSET) / (1 + COSINE_OFFSET) * math.pi / 2) ** 2
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=max_beta)


def zero_snr(betas: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Rescales a schedule so that its last step is pure noise (arXiv 2305.08891, algorithm 1)."""
    root = torch.cumprod(1 - betas, dim=0).sqrt()
    first, last = root[0].clone(), root[-1].clone()
    alpha_bar = ((root - last) * (first / (first - last))) ** 2
    alphas = torch.cat([alpha_bar[:1], alpha_bar[1:] / alpha_bar[:-1]])
    return 1 - alphas
