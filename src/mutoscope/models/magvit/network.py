"""MAGVIT's transformer: a BERT over all tokens of a clip (arXiv 2212.05199, appendix B).

Shapes: b clips, n positions, d the width.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from mutoscope.layers.attention import attention
from mutoscope.layers.draws import Draws, dropout
from mutoscope.layers.precision import full_precision
from mutoscope.models.magvit.config import MagvitConfig

exact_linear = full_precision(F.linear)


class SelfAttention(nn.Module):
    """Multi-head attention in both directions; every position attends to every position."""

    def __init__(self, config: MagvitConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.dropout = config.dropout
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.output = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Float[Tensor, "b n d"], draws: Draws | None = None) -> Float[Tensor, "b n d"]:
        q, k, v = rearrange(self.qkv(x), "b n (three heads d) -> three b heads n d", three=3, heads=self.num_heads)
        a = attention(q, k, v, mask=None, dropout=self.dropout, draws=draws)  # (b, heads, n, d/heads)
        return self.output(rearrange(a, "b heads n d -> b n (heads d)"))


class Block(nn.Module):
    """BERT block: the norm comes after the residual sum (post-norm)."""

    def __init__(self, config: MagvitConfig) -> None:
        super().__init__()
        d, eps = config.hidden_size, config.layer_norm_eps
        self.attention = SelfAttention(config)
        self.attention_norm = nn.LayerNorm(d, eps=eps)
        self.mlp_in = nn.Linear(d, config.mlp_size)
        self.mlp_out = nn.Linear(config.mlp_size, d)
        self.mlp_norm = nn.LayerNorm(d, eps=eps)
        self.dropout = config.dropout

    def forward(self, x: Float[Tensor, "b n d"], draws: Draws | None = None) -> Float[Tensor, "b n d"]:
        """`draws`: of dropout; None for none."""
        x = self.attention_norm(x + dropout(self.attention(x, draws), self.dropout, draws))
        # The tanh approximation, as in the released code; the exact GELU gives other logits.
        h = F.gelu(self.mlp_in(x), approximate="tanh")  # (b, n, mlp)
        return self.mlp_norm(x + dropout(self.mlp_out(h), self.dropout, draws))


class Head(nn.Module):
    """Dense, GELU, norm; then the product with the word embeddings (tied) plus a bias per vocabulary row."""

    def __init__(self, config: MagvitConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(
        self, x: Float[Tensor, "*b d"], embeddings: Float[Tensor, "vocab d"], rows: slice
    ) -> Float[Tensor, "*b rows"]:
        """Logits of the vocabulary rows in `rows`."""
        x = self.norm(F.gelu(self.dense(x), approximate="tanh"))
        return exact_linear(x, embeddings[rows], self.bias[rows])  # (*b, rows)
