"""Vector quantization: continuous latents to the nearest row of a learned codebook."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

EntropyKind = Literal["softmax", "argmax"]


@dataclass(frozen=True)
class VectorQuantizerConfig:
    """Codebook size and the weights of its three losses (arXiv 2212.05199, appendix B.1).

    normalized: latents and codes are scaled to unit length wherever they are used (arXiv 2110.04627 §3.2).
    """

    codebook_size: int = 1024
    embedding_dim: int = 256
    commitment_cost: float = 0.25
    codebook_cost: float = 1.0
    entropy_cost: float = 0.1
    entropy_temperature: float = 0.01
    entropy_kind: EntropyKind = "softmax"
    normalized: bool = False


def squared_distances(x: Float[Tensor, "n d"], codes: Float[Tensor, "k d"]) -> Float[Tensor, "n k"]:
    """|x|² − 2 x·e + |e|² in float32: a lower precision flips indices."""
    x, codes = x.float(), codes.float()
    return x.square().sum(1, keepdim=True) - 2.0 * x @ codes.T + codes.square().sum(1)


def entropy_loss(
    affinities: Float[Tensor, "n k"], temperature: float, kind: EntropyKind = "softmax"
) -> Float[Tensor, ""]:
    """Mean entropy of each position's code distribution minus the entropy of their average.

    Low when every position is sure of its code and all codes are used. "argmax" takes hard assignments
    with straight-through gradients. The average runs over the positions given, that is one micro-batch.
    """
    scaled = affinities / temperature
    probabilities = scaled.softmax(-1)
    if kind == "argmax":
        hard = F.one_hot(scaled.argmax(-1), scaled.shape[-1]).to(probabilities.dtype)
        probabilities = probabilities + (hard - probabilities).detach()
    average = probabilities.mean(0)
    entropy_of_average = -(average * (average + 1e-5).log()).sum()
    average_of_entropy = -(probabilities * scaled.log_softmax(-1)).sum(-1).mean()
    return average_of_entropy - entropy_of_average


class VectorQuantizer(nn.Module):
    """Nearest-neighbour codebook learned by gradient (no moving average, no code reset)."""

    def __init__(self, config: VectorQuantizerConfig) -> None:
        super().__init__()
        self.config = config
        # Uniform in ±sqrt(3 / K): variance scaling that reads the number of rows as fan-in. Of a normalized codebook
        # only the directions count.
        bound = (3.0 / config.codebook_size) ** 0.5
        codes = torch.empty(config.codebook_size, config.embedding_dim).uniform_(-bound, bound)
        self.codebook = nn.Parameter(F.normalize(codes, dim=-1) if config.normalized else codes)

    @property
    def codes(self) -> Float[Tensor, "k d"]:
        """The codebook as it is used."""
        return self._scaled(self.codebook)

    def _scaled(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        return F.normalize(x, dim=-1) if self.config.normalized else x

    def tokens(self, latents: Float[Tensor, "b d t h w"]) -> Int[Tensor, "b t h w"]:
        """Index of the nearest code at every position; the first one on ties."""
        b, _, t, h, w = latents.shape
        flat = self._scaled(rearrange(latents, "b d t h w -> (b t h w) d").float())
        return squared_distances(flat, self.codes).argmin(1).view(b, t, h, w)

    def lookup(self, tokens: Int[Tensor, "b t h w"]) -> Float[Tensor, "b d t h w"]:
        """The codebook rows of the tokens."""
        return rearrange(F.embedding(tokens, self.codes), "b t h w d -> b d t h w")

    def forward(
        self, latents: Float[Tensor, "b d t h w"]
    ) -> tuple[Float[Tensor, "b d t h w"], Int[Tensor, "b t h w"], dict[str, Tensor]]:
        """Straight-through codes, tokens, and the weighted losses "commitment", "codebook" and "entropy"."""
        config = self.config
        b, _, t, h, w = latents.shape
        flat = self._scaled(rearrange(latents, "b d t h w -> (b t h w) d").float())  # (n, d)
        distances = squared_distances(flat, self.codes)  # (n, k)
        tokens = distances.argmin(1)
        codes = F.embedding(tokens, self.codes)  # (n, d)
        losses = {
            "commitment": config.commitment_cost * (codes.detach() - flat).square().mean(),
            "codebook": config.codebook_cost * (codes - flat.detach()).square().mean(),
            "entropy": config.entropy_cost * entropy_loss(-distances, config.entropy_temperature, config.entropy_kind),
        }
        quantized = rearrange(flat + (codes - flat).detach(), "(b t h w) d -> b d t h w", b=b, t=t, h=h, w=w)
        return quantized, tokens.view(b, t, h, w), losses
