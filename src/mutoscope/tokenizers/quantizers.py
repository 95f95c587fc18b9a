"""Bottlenecks of tokenizers: vector, lookup-free and finite scalar quantization, and Gaussian latents.

Shapes: b clips, d channels of a latent, n = b*t*h*w positions, k codes.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from mutoscope.layers.batch_means import WholeMean, all_at_hand
from mutoscope.layers.draws import Draws, randn
from mutoscope.layers.finite import require_finite
from mutoscope.layers.precision import full_precision
from mutoscope.tokenizers.base import LATENTS

EntropyKind = Literal["softmax", "argmax"]
Scaling = Literal["channel", "posterior"]
LOG_EPS = 1e-5  # released code of MAGVIT: keeps the logarithm of an unused code finite
MIN_LOG_VARIANCE, MAX_LOG_VARIANCE = -30, 20  # diffusers' bounds of latent diffusion's posterior
SMALLEST_STD = 1e-3  # of latents, so that a constant channel is not blown up
LEVEL_MARGIN = 1e-3  # released code of FSQ: lets tanh reach the outermost levels


@dataclass(frozen=True)
class VectorQuantizerConfig:
    """Codebook size and the weights of its three losses (arXiv 2212.05199, appendix B.1).

    `normalized`: latents and codes are scaled to unit length wherever they are used (arXiv 2110.04627).
    """

    codebook_size: int = 1024
    embedding_dim: int = 256
    commitment_cost: float = 0.25
    codebook_cost: float = 1.0
    entropy_cost: float = 0.1
    entropy_temperature: float = 0.01
    entropy_kind: EntropyKind = "softmax"
    normalized: bool = False


@full_precision
def squared_distances(x: Float[Tensor, "n d"], codes: Float[Tensor, "k d"]) -> Float[Tensor, "n k"]:
    """|x|² − 2 x·e + |e|² in float32, under autocast too; a lower precision changes the nearest code."""
    x, codes = x.float(), codes.float()
    return x.square().sum(1, keepdim=True) - 2.0 * x @ codes.T + codes.square().sum(1)


@full_precision
def entropy_loss(
    affinities: Float[Tensor, "n k"],
    temperature: float,
    kind: EntropyKind = "softmax",
    whole: WholeMean = all_at_hand,
) -> Float[Tensor, ""]:
    """Mean entropy of each position's code distribution minus the entropy of their average.

    Low if every position has a clear nearest code and all codes are used. "argmax" takes hard assignments with
    straight-through gradients. `whole` extends the average over the n positions to the whole batch.
    """
    scaled = affinities / temperature
    probabilities = scaled.softmax(-1)  # (n, k)
    if kind == "argmax":
        hard = F.one_hot(scaled.argmax(-1), scaled.shape[-1]).to(probabilities.dtype)
        probabilities = probabilities + (hard - probabilities).detach()
    average = whole(probabilities.mean(0))  # (k,)
    entropy_of_average = -(average * (average + LOG_EPS).log()).sum()
    average_of_entropy = -(probabilities * scaled.log_softmax(-1)).sum(-1).mean()
    return average_of_entropy - entropy_of_average


class VectorQuantizer(nn.Module):
    """Nearest-neighbour codebook learned by gradient (no moving average, no code reset)."""

    def __init__(self, config: VectorQuantizerConfig) -> None:
        super().__init__()
        self.config = config
        # Uniform in ±sqrt(3 / K): variance scaling that takes the number of rows as fan-in (released code). A
        # normalized codebook keeps the directions only.
        bound = (3.0 / config.codebook_size) ** 0.5
        codes = torch.empty(config.codebook_size, config.embedding_dim).uniform_(-bound, bound)
        self.codebook = nn.Parameter(F.normalize(codes, dim=-1) if config.normalized else codes)

    @property
    def codes(self) -> Float[Tensor, "k d"]:
        """The codebook, scaled to unit length if `normalized`."""
        return self._scaled(self.codebook)

    def _scaled(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        return F.normalize(x, dim=-1) if self.config.normalized else x

    @full_precision
    def tokens(self, latents: Float[Tensor, "b d t h w"]) -> Int[Tensor, "b t h w"]:
        """Index of the nearest code at every position; the first one on ties.

        Raises UserError for latents that are NaN or infinite, all of which would have one code.
        """
        require_finite(latents, LATENTS)
        b, _, t, h, w = latents.shape
        flat = self._scaled(rearrange(latents, "b d t h w -> (b t h w) d").float())  # (n, d)
        return squared_distances(flat, self.codes).argmin(1).view(b, t, h, w)

    @full_precision
    def lookup(self, tokens: Int[Tensor, "b t h w"]) -> Float[Tensor, "b d t h w"]:
        """The codebook rows of the tokens."""
        return rearrange(F.embedding(tokens, self.codes), "b t h w d -> b d t h w")

    @full_precision
    def forward(
        self, latents: Float[Tensor, "b d t h w"], draws: Draws | None = None, whole: WholeMean = all_at_hand
    ) -> tuple[Float[Tensor, "b d t h w"], Int[Tensor, "b t h w"], dict[str, Tensor]]:
        """Straight-through codes, tokens, and the weighted losses "commitment", "codebook" and "entropy"."""
        config = self.config
        b, _, t, h, w = latents.shape
        flat = self._scaled(rearrange(latents, "b d t h w -> (b t h w) d").float())  # (n, d)
        distances = squared_distances(flat, self.codes)  # (n, k)
        tokens = distances.argmin(1)
        codes = F.embedding(tokens, self.codes)  # (n, d)
        entropy = entropy_loss(-distances, config.entropy_temperature, config.entropy_kind, whole)
        losses = {
            "commitment": config.commitment_cost * (codes.detach() - flat).square().mean(),
            "codebook": config.codebook_cost * (codes - flat.detach()).square().mean(),
            "entropy": config.entropy_cost * entropy,
        }
        quantized = rearrange(flat + (codes - flat).detach(), "(b t h w) d -> b d t h w", b=b, t=t, h=h, w=w)
        return quantized, tokens.view(b, t, h, w), losses


class LookupFreeQuantizer(nn.Module):
    """Every channel becomes its sign: 2^bits codes without a table (arXiv 2310.05737 §3.1).

    The id of a code is Σ 2^i over its positive channels. The entropy term treats bits as independent given the latent,
    which makes its first part exact. The entropy of the average code is a sum over groups of at most `group_bits` bits,
    since a table of all 2^16 codes per position does not fit into memory.
    """

    def __init__(
        self,
        num_bits: int,
        commitment_cost: float = 0.25,
        entropy_cost: float = 0.1,
        entropy_temperature: float = 0.01,
        group_bits: int = 8,
    ) -> None:
        super().__init__()
        self.num_bits, self.group_bits = num_bits, group_bits
        self.commitment_cost, self.entropy_cost, self.temperature = commitment_cost, entropy_cost, entropy_temperature

    @full_precision
    def encode(self, latents: Float[Tensor, "b d t h w"]) -> Int[Tensor, "b t h w"]:
        """Id of the code at every position. Raises UserError for latents that are NaN or infinite."""
        require_finite(latents, LATENTS)
        return self._ids(latents)

    def _ids(self, latents: Float[Tensor, "b d t h w"]) -> Int[Tensor, "b t h w"]:
        powers = 2 ** torch.arange(self.num_bits, device=latents.device)
        return ((latents > 0) * powers.view(-1, 1, 1, 1)).sum(1)

    @full_precision
    def lookup(self, tokens: Int[Tensor, "b t h w"]) -> Float[Tensor, "b d t h w"]:
        """±1 per channel."""
        bits = torch.arange(self.num_bits, device=tokens.device).view(-1, 1, 1, 1)
        return ((tokens[:, None] >> bits) & 1).float() * 2 - 1

    @full_precision
    def forward(
        self, latents: Float[Tensor, "b d t h w"], draws: Draws | None = None, whole: WholeMean = all_at_hand
    ) -> tuple[Float[Tensor, "b d t h w"], Int[Tensor, "b t h w"], dict[str, Tensor]]:
        """Straight-through codes, tokens, and the weighted losses "commitment" and "entropy"."""
        latents = latents.float()
        codes = torch.where(latents > 0, 1.0, -1.0)
        losses = {
            "commitment": self.commitment_cost * (latents - codes).square().mean(),
            "entropy": self.entropy_cost * self.entropy(latents, whole),
        }
        return latents + (codes - latents).detach(), self._ids(latents), losses

    @full_precision
    def entropy(self, latents: Float[Tensor, "b d t h w"], whole: WholeMean = all_at_hand) -> Float[Tensor, ""]:
        """Mean entropy of a position's code minus the entropy of the average code, as `entropy_loss` of all codes."""
        # A softmax over -|z - c|²/τ of the corners c of a cube: bit i is positive with probability sigmoid(4 z_i / τ).
        logits = rearrange(latents, "b d t h w -> (b t h w) d") * (4 / self.temperature)
        positive, negative = F.logsigmoid(logits), F.logsigmoid(-logits)  # (n, d)
        of_position = -(positive.exp() * positive + negative.exp() * negative).sum(-1).mean()
        of_average = logits.new_zeros(())
        for p, q in zip(positive.split(self.group_bits, 1), negative.split(self.group_bits, 1), strict=True):
            joint = torch.zeros_like(p[:, :1])  # (n, 1)
            for i in range(p.shape[1]):
                joint = torch.cat([joint + q[:, i : i + 1], joint + p[:, i : i + 1]], dim=1)  # (n, 2^(i+1))
            average = whole(joint.exp().mean(0))  # (2^group,)
            of_average = of_average - (average * (average + LOG_EPS).log()).sum()
        return of_position - of_average


class FiniteScalarQuantizer(nn.Module):
    """Channel i is squashed into its range and rounded to one of `levels[i]` values (arXiv 2309.15505)."""

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        self.levels = levels

    def _level(self, like: Tensor) -> Float[Tensor, "d 1 1 1"]:
        return torch.tensor(self.levels, dtype=torch.float32, device=like.device).view(-1, 1, 1, 1)

    def _bounded(self, latents: Float[Tensor, "b d t h w"]) -> Float[Tensor, "b d t h w"]:
        """Squashed so that rounding reaches every level; an even number of levels is shifted by half a step."""
        level = self._level(latents)
        half = (level - 1) * (1 + LEVEL_MARGIN) / 2
        offset = (level % 2 == 0) * 0.5
        return (latents.float() + (offset / half).atanh()).tanh() * half - offset

    @full_precision
    def encode(self, latents: Float[Tensor, "b d t h w"]) -> Int[Tensor, "b t h w"]:
        """Id of the code at every position: its levels are the digits, the first channel's the lowest.

        Raises UserError for latents that are NaN or infinite.
        """
        require_finite(latents, LATENTS)
        return self._ids(self._bounded(latents).round())

    def _ids(self, rounded: Float[Tensor, "b d t h w"]) -> Int[Tensor, "b t h w"]:
        level = self._level(rounded)
        weight = F.pad(level.cumprod(0)[:-1], (0, 0, 0, 0, 0, 0, 1, 0), value=1.0)  # of every digit
        return ((rounded + level.div(2, rounding_mode="floor")) * weight).sum(1).round().long()

    @full_precision
    def lookup(self, tokens: Int[Tensor, "b t h w"]) -> Float[Tensor, "b d t h w"]:
        """Levels scaled to [-1, 1]."""
        digits = []
        for level in self.levels:
            digits.append((tokens % level - level // 2) / (level // 2))
            tokens = tokens // level
        return torch.stack(digits, dim=1).float()

    @full_precision
    def forward(
        self, latents: Float[Tensor, "b d t h w"], draws: Draws | None = None, whole: WholeMean = all_at_hand
    ) -> tuple[Float[Tensor, "b d t h w"], Int[Tensor, "b t h w"], dict[str, Tensor]]:
        """Straight-through codes, tokens, and no losses."""
        bounded = self._bounded(latents)
        rounded = bounded + (bounded.round() - bounded).detach()
        codes = rounded / self._level(latents).div(2, rounding_mode="floor")
        return codes, self._ids(rounded.detach()), {}


@full_precision
def diagonal_gaussian(moments: Float[Tensor, "b d2 *grid"]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, (b, d, *grid) each; the log-variance is clamped to [-30, 20]."""
    mean, log_variance = moments.chunk(2, dim=1)
    return mean, (0.5 * log_variance.clamp(MIN_LOG_VARIANCE, MAX_LOG_VARIANCE)).exp()


@full_precision
def draw_gaussian(moments: Float[Tensor, "b d2 *grid"], draws: Draws | None = None) -> Float[Tensor, "b d *grid"]:
    """A draw from the distribution of latents, or its mean without `draws`."""
    mean, std = diagonal_gaussian(moments)
    return mean if draws is None else mean + std * randn(draws, *mean.shape).to(mean)


class GaussianBottleneck(nn.Module):
    """Continuous latents drawn from N(mean, exp(log-variance)), pulled towards N(0, 1) (arXiv 1312.6114).

    After training, `normalize` sets shift and scale; `encode` then returns (mean − shift)·scale for each channel.

    `scaling`: "channel" gives every channel the variance 1. "posterior" gives every channel the same noise instead, and
    all together the variance 1: training has made the noise of a channel inversely proportional to what an error in it
    costs in pixels, so that equal errors of latents then cost about equally much, and a model spends its effort on what
    is seen.
    """

    latent_shift: Tensor
    latent_scale: Tensor

    def __init__(self, kl_cost: float, channels: int, scaling: Scaling = "channel") -> None:
        super().__init__()
        self.kl_cost, self.scaling = kl_cost, scaling
        self.register_buffer("latent_shift", torch.zeros(channels))
        self.register_buffer("latent_scale", torch.ones(channels))

    @full_precision
    def encode(self, latents: Float[Tensor, "b d2 t h w"]) -> Float[Tensor, "b d t h w"]:
        """Normalised mean."""
        mean, _ = diagonal_gaussian(latents)
        return (mean - self.latent_shift.view(-1, 1, 1, 1)) * self.latent_scale.view(-1, 1, 1, 1)

    @full_precision
    def lookup(self, tokens: Float[Tensor, "b d t h w"]) -> Float[Tensor, "b d t h w"]:
        """Input of the decoder: latents with the normalisation inverted."""
        return tokens / self.latent_scale.view(-1, 1, 1, 1) + self.latent_shift.view(-1, 1, 1, 1)

    def normalize(self, moments: Iterable[Float[Tensor, "b d2 t h w"]]) -> None:
        """Sets shift to the mean of the latents' means, and scale by their standard deviation (at least 0.001)."""
        gaussians = [diagonal_gaussian(part) for part in moments]
        means, noise = (
            torch.cat([rearrange(part[i], "b d t h w -> d (b t h w)") for part in gaussians], dim=1).double()
            for i in (0, 1)
        )
        deviation = means.std(dim=1).clamp(min=SMALLEST_STD)  # (d)
        self.latent_shift.copy_(means.mean(dim=1))
        if self.scaling == "channel":
            self.latent_scale.copy_(1 / deviation)
        else:
            precision = 1 / noise.square().mean(dim=1).sqrt().clamp(min=SMALLEST_STD)
            self.latent_scale.copy_(precision / (deviation * precision).square().mean().sqrt())

    @full_precision
    def forward(
        self, latents: Float[Tensor, "b d2 t h w"], draws: Draws | None = None, whole: WholeMean = all_at_hand
    ) -> tuple[Float[Tensor, "b d t h w"], Float[Tensor, "b d t h w"], dict[str, Tensor]]:
        """A draw (the mean without `draws`), the mean, and the weighted loss "kl", a mean over all numbers."""
        mean, std = diagonal_gaussian(latents.float())
        kl = 0.5 * (mean.square() + std.square() - 1 - 2 * std.log()).mean()
        return draw_gaussian(latents.float(), draws), mean, {"kl": self.kl_cost * kl}
