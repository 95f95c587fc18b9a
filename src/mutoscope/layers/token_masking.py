"""Choice of masked tokens: arithmetic that masked training and masked decoding must share exactly."""

import math

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

MASK_TOKEN = -1
"""Id of [MASK] in every token grid. Negative ids count rows of the vocabulary from its end."""

SMALLEST_RATIO = 1e-6  # released code of MAGVIT
RATIO_MEAN, RATIO_STD = 1.0, 0.25  # of MAR's normal, before it is cut (arXiv 2406.11838 §3.4)


def cosine_mask_ratio(progress: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """Share of hidden tokens cos(pi r / 2) at progress r in [0, 1], clipped to [1e-6, 1] (arXiv 2212.05199 §3.2)."""
    return torch.cos(progress * (math.pi / 2)).clamp(SMALLEST_RATIO, 1.0)


def num_masked_tokens(ratio: Float[Tensor, "*s"], num_tokens: int | Int[Tensor, "*s"]) -> Int[Tensor, "*s"]:
    """floor(ratio * num_tokens), at least 1.

    The product is taken in float32 on purpose: with float64 some counts come out one larger (48 tokens at ratio
    1 - 4/12 give 31 here, not 32), and published results used float32. The paper writes a ceiling; its code, and this,
    take the floor.
    """
    product = ratio.float() * torch.as_tensor(num_tokens, dtype=torch.float32, device=ratio.device)
    return product.floor().long().clamp(min=1)


def select_lowest(scores: Float[Tensor, "b n"], count: Int[Tensor, " b"]) -> Bool[Tensor, "b n"]:
    """True at the `count[i]` smallest scores of row i, and at ties with the largest of them; count 0: none."""
    ordered = scores.sort(dim=-1).values  # (b, n)
    last = (count - 1).clamp(0, scores.shape[-1] - 1)  # (b,)
    threshold = ordered.gather(-1, last[:, None])  # (b, 1)
    return (scores <= threshold) & (count > 0)[:, None]


def truncated_normal(uniform: Float[Tensor, "*s"], smallest: float = 0.7) -> Float[Tensor, "*s"]:
    """Share of masked tokens in masked autoregressive training (arXiv 2406.11838 §3.4): mean 0.867.

    The quantile at `uniform` in [0, 1] of a normal with mean 1 and standard deviation 0.25, cut to [`smallest`, 1].
    """
    lowest = torch.special.ndtr(torch.tensor((smallest - RATIO_MEAN) / RATIO_STD, dtype=torch.float64))
    quantile = torch.special.ndtri(lowest + uniform.double() * (0.5 - lowest))  # 0.5: the mean is the upper end
    return RATIO_MEAN + RATIO_STD * quantile


def gather_rows(x: Num[Tensor, "b n d"], rows: Int[Tensor, "b r"]) -> Num[Tensor, "b r d"]:
    """Rows `rows` of every sample."""
    return x.gather(1, rows[..., None].expand(-1, -1, x.shape[2]))
