"""PAR's networks, from LlamaGen (arXiv 2406.06525): block, norm, attention, and the projection of captions.

Shapes: b clips (b2: several copies of them, for guidance), n positions, m positions attended to, d the width.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mutoscope.layers.attention import attention
from mutoscope.layers.draws import Draws, dropout
from mutoscope.layers.kv_cache import KVCache
from mutoscope.layers.positions import rotate
from mutoscope.models.par.config import PARConfig


class RMSNorm(nn.Module):
    """x / rms(x) in float32, cast back, then scaled: in half precision the order of these two matters."""

    def __init__(self, config: PARConfig) -> None:
        super().__init__()
        self.eps = config.norm_eps
        self.weight = nn.Parameter(torch.ones(config.hidden_size))

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        y = x.float()
        return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype) * self.weight


class Attention(nn.Module):
    """Attention with rotary positions and, with fewer key-value heads than heads, grouped queries; no biases."""

    def __init__(self, config: PARConfig) -> None:
        super().__init__()
        self.config = config
        width = (config.num_heads + 2 * config.kv_heads) * config.head_size
        self.qkv = nn.Linear(config.hidden_size, width, bias=False)
        self.output = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        table: Float[Tensor, "n pairs 2"],
        mask: Bool[Tensor, "*b n m"] | None,
        layer: int,
        cache: KVCache | None,
        draws: Draws | None = None,
    ) -> Float[Tensor, "b2 n d"]:
        """With a cache for several copies of the batch (guidance), equal inputs are projected once and repeated."""
        heads, kv_heads = self.config.num_heads, self.config.kv_heads
        qkv = self.qkv(x).unflatten(-1, (-1, self.config.head_size)).transpose(1, 2)  # (b, heads + 2 kv_heads, n, d)
        qk, v = qkv.split([heads + kv_heads, kv_heads], dim=1)
        q, k = rotate(qk, table).split([heads, kv_heads], dim=1)  # one call rotates queries and keys
        if cache is not None:
            copies = cache.keys.shape[1] // len(x)
            q, k, v = (y if copies == 1 else y.repeat(copies, 1, 1, 1) for y in (q, k, v))
            k, v = cache.append(layer, k, v)  # (b2, kv_heads, m, d)
        if kv_heads < heads:
            k, v = (y.repeat_interleave(heads // kv_heads, dim=1) for y in (k, v))  # (b2, heads, m, d)
        a = attention(q, k, v, mask, self.config.attention_dropout, draws)  # (b2, heads, n, d)
        return self.output(a.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Norm before each sub-layer; SwiGLU feed-forward; no biases."""

    def __init__(self, config: PARConfig, drop_path: float) -> None:
        super().__init__()
        d, hidden = config.hidden_size, config.mlp_size
        self.attention_norm, self.mlp_norm = RMSNorm(config), RMSNorm(config)
        self.attention = Attention(config)
        self.mlp_gate, self.mlp_in = nn.Linear(d, hidden, bias=False), nn.Linear(d, hidden, bias=False)
        self.mlp_out = nn.Linear(hidden, d, bias=False)
        self.residual_dropout, self.mlp_dropout, self.drop_path = config.residual_dropout, config.mlp_dropout, drop_path

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        table: Float[Tensor, "n pairs 2"],
        mask: Bool[Tensor, "*b n m"] | None,
        layer: int,
        cache: KVCache | None = None,
        draws: Draws | None = None,
    ) -> Float[Tensor, "b2 n d"]:
        """`draws`: of dropout and stochastic depth; None for neither."""
        a = self.attention(self.attention_norm(x), table, mask, layer, cache, draws)
        a = self._drop(a, self.residual_dropout, draws)
        x = (x if len(x) == len(a) else x.repeat(len(a) // len(x), 1, 1)) + a  # (b2, n, d)
        y = self.mlp_norm(x)
        return x + self._drop(self.mlp_out(F.silu(self.mlp_gate(y)) * self.mlp_in(y)), self.mlp_dropout, draws)

    def _drop(self, y: Float[Tensor, "b n d"], share: float, draws: Draws | None) -> Float[Tensor, "b n d"]:
        """Dropout, then stochastic depth, which drops the whole branch of some samples and scales up the others."""
        y = dropout(y, share, draws)
        if draws is None or self.drop_path == 0:
            return y
        return y * dropout(y.new_ones(len(y), 1, 1), self.drop_path, draws)


class CaptionEmbedding(nn.Module):
    """Projects text features to prefix rows, and stores the features of "no caption"."""

    unconditional: Float[Tensor, "caption c"]

    def __init__(self, config: PARConfig) -> None:
        super().__init__()
        assert config.caption_size is not None
        self.fc1 = nn.Linear(config.caption_size, config.hidden_size, bias=False)
        self.fc2 = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        # A buffer: in the released models it kept its random initial values.
        shape = config.caption_length, config.caption_size
        self.register_buffer("unconditional", torch.randn(shape) / config.caption_size**0.5)

    def forward(self, features: Float[Tensor, "b p c"]) -> Float[Tensor, "b p d"]:
        return self.fc2(F.gelu(self.fc1(features), approximate="tanh"))
