"""The attention call of every model."""

import math
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mutoscope.layers.draws import Draws, for_each_clip


def attention(
    q: Float[Tensor, "b heads n d"],
    k: Float[Tensor, "b heads m d"],
    v: Float[Tensor, "b heads m d"],
    mask: Bool[Tensor, "*#b n m"] | Float[Tensor, "*#b n m"] | None,
    dropout: float = 0.0,
    draws: Draws | None = None,
) -> Float[Tensor, "b heads n d"]:
    """softmax(q k^T / sqrt(d)) v.

    `mask` is True where a query may attend to a key, or numbers that are added to the logits. It has no default, since
    a forgotten mask would silently mean attention in both directions; a model that wants this passes None. `dropout`:
    share of attention weights dropped in training, in [0, 1), by `draws`; without these, none is dropped.
    """
    if draws is None or dropout == 0:
        return _attend(q, k, v, mask)
    return for_each_clip(partial(_attend, dropout=dropout), (q, k, v), (mask,), draws)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float = 0.0) -> Tensor:
    if q.dtype == torch.bfloat16 and q.requires_grad and q.device.type == "cpu":
        # The CPU's backward pass of short sequences takes about six times as long in bfloat16 as in float32.
        with torch.autocast("cpu", enabled=False):
            if mask is not None and mask.is_floating_point():
                mask = mask.float()
            wide = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask, dropout_p=dropout)
        return wide.to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)


def distance_logits(
    q: Float[Tensor, "b heads n d"], table: Float[Tensor, "heads distances d"], distance: Int[Tensor, "n m"]
) -> Float[Tensor, "b heads n m"]:
    """q · r / √d with the vector r of each key's distance: relative positions on keys (arXiv 1803.02155, eq. 4).

    To be added to the logits of attention. `distance`: rows of `table`, from every query to every key.
    """
    products = q @ table.mT.to(q.dtype) / math.sqrt(q.shape[-1])  # (b, heads, n, distances)
    return products.gather(-1, distance.expand(*q.shape[:3], -1))
