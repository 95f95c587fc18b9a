"""Inception score: how sure a classifier is of every clip, and how varied its answers are (arXiv 1606.03498)."""

import torch
from jaxtyping import Float
from torch import Tensor

from mutoscope.errors import UserError


def inception_score(
    logits: Float[Tensor, "n classes"], splits: int = 1, generator: torch.Generator | None = None
) -> Float[Tensor, "splits"]:
    """exp(mean KL(p(class | clip) ‖ p(class))) of each of `splits` consecutive parts, in float64.

    With a generator the clips are shuffled first. Papers report mean and deviation over parts (MAGVIT 4 of
    10,000 clips, TGAN2 10); the score grows with the size of a part. Raises UserError for logits that are not finite or
    parts without clips.
    """
    logits = logits.detach().to("cpu", torch.float64)
    if not logits.isfinite().all():
        bad = (~logits.isfinite()).any(dim=1).sum().item()
        raise UserError(f"Logits of {bad} of {len(logits)} clips are not finite (NaN or infinite): check their source.")
    if not 1 <= splits <= len(logits):
        raise UserError(f"An inception score of {splits} parts needs as many clips at least, found {len(logits)}.")
    if generator is not None:
        logits = logits[torch.randperm(len(logits), generator=generator)]
    return torch.stack([_score(part) for part in logits.tensor_split(splits)])


def _score(logits: Float[Tensor, "n classes"]) -> Float[Tensor, ""]:
    log_p = logits.log_softmax(dim=1)
    log_mean = log_p.logsumexp(dim=0) - torch.tensor(len(logits), dtype=torch.float64).log()
    return (log_p.exp() * (log_p - log_mean)).sum(dim=1).mean().exp()
