"""Drawing from categorical distributions: temperature, top-k, top-p, Gumbel noise."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mutoscope.errors import UserError
from mutoscope.layers.draws import Draws, rand
from mutoscope.layers.finite import not_finite

LOGITS = "The model's logits"


def gumbel(shape: tuple[int, ...], generator: Draws, device: torch.device) -> Float[Tensor, "*s"]:
    """Standard Gumbel noise. Drawn on the generator's device, so that one seed gives one result on every device."""
    uniform = rand(generator, *shape)
    # rand may return 0, whose logarithm is infinite.
    return -torch.log(-torch.log(uniform.clamp(min=1e-20))).to(device)


def keep_top_k(logits: Float[Tensor, "*s k"], top_k: int) -> Float[Tensor, "*s k"]:
    """Keep the `top_k` largest logits, and those equal to the smallest of them; the others become -inf."""
    smallest = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[..., -1:]
    return logits.masked_fill(logits < smallest, -math.inf)


def nucleus(logits: Float[Tensor, "*s k"], top_p: float) -> Bool[Tensor, "*s k"]:
    """True for the most probable entries that together exceed `top_p`; the most probable one always belongs to them."""
    ordered, order = logits.sort(dim=-1, descending=True)
    reached = ordered.softmax(-1).cumsum(-1)
    before = F.pad(reached[..., :-1], (1, 0))  # mass of the entries ranked above
    return torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before <= top_p)


def sample_categorical(
    logits: Float[Tensor, "*s k"],
    noise: Float[Tensor, "*s k"],
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Int[Tensor, "*s"]:
    """argmax(logits / temperature + Gumbel noise), a draw from the softmax; temperature 0 takes the most probable."""
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits / temperature
    if top_k is not None:
        logits = keep_top_k(logits, top_k)
    if top_p is not None:
        logits = logits.masked_fill(~nucleus(logits, top_p), -math.inf)
    return (logits + noise).argmax(-1)


def drawable(logits: Float[Tensor, "*s k"], dtype: torch.dtype, stage: str = LOGITS) -> Float[Tensor, "*s k"]:
    """The logits, guided and in float32, if every row can be drawn from. `dtype`: that of the network's computation.

    −∞ excludes an entry. Raises UserError for NaN, for +∞, and for a row that excludes all entries: all of them would
    select one code again and again.
    """
    if logits.sum(dtype=torch.float32).isfinite():
        return logits
    if logits.isnan().any() or (logits == math.inf).any() or (logits == -math.inf).all(-1).any():
        raise UserError(not_finite(stage, dtype))
    return logits


def log_probability(logits: Float[Tensor, "*s k"], tokens: Int[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """log softmax(logits) of the chosen tokens."""
    return logits.log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)
