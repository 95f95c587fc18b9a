"""NOVA's small networks (arXiv 2412.14169): transformer, scaling and shift, diffusion head, embeddings.

Every one is told its sizes in numbers; `models/nova.py` puts them together.

Shapes: b clips, n tokens (m coarse ones per frame), d the width, e that of the head, p the length of a token vector.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor, nn

from mutoscope.layers.attention import attention
from mutoscope.layers.embeddings import sin_cos, timestep_features
from mutoscope.layers.kv_cache import KVCache
from mutoscope.layers.positions import rotary_table, rotate
from mutoscope.layers.token_masking import gather_rows

NUM_TEXT_ROWS = 512  # rows of the table that stands where a caption has no words


def rope_pairs(head_size: int) -> tuple[int, int, int]:
    """Channel pairs of a head turned by time, row and column: an eighth of the channels by time.

    (0, 0, 0) where the channels cannot be shared out.
    """
    time = head_size // 8
    if time % 2 or (head_size - time) % 4:
        return 0, 0, 0
    return time // 2, (head_size - time) // 4, (head_size - time) // 4


# ---------------------------------------------------------------------------------------------------------------------
# Transformer


class Attention(nn.Module):
    def __init__(self, hidden_size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.output = nn.Linear(hidden_size, hidden_size)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        mask: Bool[Tensor, "n n"] | None,
        table: Float[Tensor, "*b n pairs 2"] | None,
        cache: KVCache | None,
        layer: int,
        rows: Int[Tensor, "b r"] | None,
    ) -> Float[Tensor, "b r d"]:
        """Attention of all positions, or of `rows` alone, over what is given and what is cached."""
        if rows is None:
            q, k, v = rearrange(self.qkv(x), "b n (three heads d) -> three b heads n d", three=3, heads=self.heads)
        else:
            query, key_value = self.qkv.weight.split([len(self.qkv.weight) // 3, 2 * len(self.qkv.weight) // 3])
            q_bias, kv_bias = self.qkv.bias.split([len(query), len(key_value)])
            q = rearrange(F.linear(gather_rows(x, rows), query, q_bias), "b n (h d) -> b h n d", h=self.heads)
            k, v = rearrange(F.linear(x, key_value, kv_bias), "b n (two h d) -> two b h n d", two=2, h=self.heads)
        if table is not None:
            q_table = table if rows is None else gather_table(table, rows)
            q, k = rotate(q, q_table), rotate(k, table)
        if cache is not None:
            k, v = cache.append(layer, k, v)
        return self.output(rearrange(attention(q, k, v, mask), "b heads n d -> b n (heads d)"))


class Block(nn.Module):
    """Attention and MLP; each has its layer norm behind it and before the sum, or before it (`norm_position`)."""

    def __init__(self, hidden_size: int, heads: int, norm_position: Literal["after", "before"]) -> None:
        super().__init__()
        d = hidden_size
        self.norm_after = norm_position == "after"
        self.attention = Attention(d, heads)
        self.mlp_in, self.mlp_out = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        mask: Bool[Tensor, "n n"] | None = None,
        table: Float[Tensor, "*b n pairs 2"] | None = None,
        cache: KVCache | None = None,
        layer: int = 0,
        rows: Int[Tensor, "b r"] | None = None,
    ) -> Float[Tensor, "b r d"]:
        kept = x if rows is None else gather_rows(x, rows)
        if self.norm_after:
            kept = kept + self.norm1(self.attention(x, mask, table, cache, layer, rows))
            return kept + self.norm2(self.mlp_out(F.gelu(self.mlp_in(kept))))
        kept = kept + self.attention(self.norm1(x), mask, table, cache, layer, rows)
        return kept + self.mlp_out(F.gelu(self.mlp_in(self.norm2(kept))))


class Encoder(nn.Module):
    """A stack of blocks closed by a layer norm, with its patch embedding: one linear map of a token vector."""

    def __init__(
        self,
        token_size: int,
        hidden_size: int,
        layers: int,
        heads: int,
        norm_position: Literal["after", "before"],
        rotary: bool,
    ) -> None:
        super().__init__()
        self.pairs = rope_pairs(hidden_size // heads) if rotary else None
        self.patch_embedding = nn.Linear(token_size, hidden_size)
        self.blocks = nn.ModuleList(Block(hidden_size, heads, norm_position) for _ in range(layers))
        self.norm = nn.LayerNorm(hidden_size)

    def table(self, places: Int[Tensor, "n 3"]) -> Float[Tensor, "n pairs 2"] | None:
        """Rotations of places (slot, row, column); None with absolute positions."""
        return None if self.pairs is None else rotary_table(places, self.pairs)


def gather_table(table: Float[Tensor, "*b1 n pairs 2"], rows: Int[Tensor, "b r"]) -> Float[Tensor, "b 1 r pairs 2"]:
    """The rotations of chosen rows of every sample, for all heads; those of `table` may be chosen ones already."""
    if table.ndim == 3:
        return table[rows][:, None]
    return table[:, 0][torch.arange(len(rows), device=rows.device)[:, None], rows][:, None]


# ---------------------------------------------------------------------------------------------------------------------
# What stands around it


def projector(size_in: int, size_out: int) -> nn.Sequential:
    """Linear, SiLU, linear."""
    return nn.Sequential(nn.Linear(size_in, size_out), nn.SiLU(), nn.Linear(size_out, size_out))


class ScalingAndShift(nn.Module):
    """F_0 · (1 + γ) + β with γ and β from F_t through a matrix of low rank, or a full one for −1 (§3.3, eq. 5)."""

    def __init__(self, hidden_size: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(hidden_size, rank, bias=False) if rank > 0 else nn.Identity()
        self.output = nn.Linear(rank if rank > 0 else hidden_size, 2 * hidden_size)

    def forward(
        self, reference: Float[Tensor, "*#b m d"], current: Float[Tensor, "*#b m d"]
    ) -> Float[Tensor, "*b m d"]:
        scale, shift = self.output(self.down(F.silu(current))).chunk(2, dim=-1)
        return reference * (1 + scale) + shift


class HeadBlock(nn.Module):
    """h ← h + gate · norm(MLP(norm(h) · (1 + scale) + shift)), the three from the condition."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(size, 3 * size)
        self.mlp = projector(size, size)
        self.norm = nn.LayerNorm(size)

    def forward(self, h: Float[Tensor, "b n e"], condition: Float[Tensor, "b n e"]) -> Float[Tensor, "b n e"]:
        scale, shift, gate = self.modulation(condition).chunk(3, dim=-1)
        return h + gate * self.norm(self.mlp(modulate(h, scale, shift)))


class DiffusionHead(nn.Module):
    """Predicts what diffusion asks for of every token by itself, from the noisy token, the time and the condition."""

    def __init__(self, token_size: int, hidden_size: int, head_size: int, layers: int) -> None:
        super().__init__()
        e, p = head_size, token_size
        self.time_projector, self.condition_projector = projector(256, e), projector(hidden_size, e)
        self.patch_embedding = nn.Linear(p, e)
        self.blocks = nn.ModuleList(HeadBlock(e) for _ in range(layers))
        self.modulation, self.output = nn.Linear(e, 2 * e), nn.Linear(e, p)

    def condition(self, z: Float[Tensor, "b n d"]) -> Float[Tensor, "b n e"]:
        """What depends on the spatial encoder's output alone: the same at every step of diffusion."""
        return self.condition_projector(z)

    def time(self, times: Num[Tensor, "*s"]) -> Float[Tensor, "*s e"]:
        """What depends on the diffusion time alone: the same for every token."""
        return self.time_projector(timestep_features(times).to(self.patch_embedding.weight.dtype))

    def forward(
        self, x: Float[Tensor, "b n p"], condition: Float[Tensor, "b2 n e"], time: Float[Tensor, "*s e"]
    ) -> Float[Tensor, "b2 n p"]:
        """Several copies of the batch in `condition` (guidance) read the same noisy tokens."""
        u = F.silu(condition + time)
        h = self.patch_embedding(x)
        h = h if len(h) == len(u) else h.repeat(len(u) // len(h), 1, 1)
        for block in self.blocks:
            h = block(h, u)
        scale, shift = self.modulation(u).chunk(2, dim=-1)
        return self.output(modulate(h, scale, shift))


def modulate(
    h: Float[Tensor, "b n e"], scale: Float[Tensor, "b n e"], shift: Float[Tensor, "b n e"]
) -> Float[Tensor, "b n e"]:
    return F.layer_norm(h, h.shape[-1:], eps=1e-6) * (1 + scale) + shift


class TextEmbedding(nn.Module):
    """Features of a caption's words to prefix tokens; rows of a table stand where there are no words."""

    table: Float[Tensor, "rows c"]

    def __init__(self, text_size: int, hidden_size: int, length: int) -> None:
        super().__init__()
        self.length = length
        self.projection = nn.Linear(text_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size)
        self.register_buffer("table", 0.02 * torch.randn(NUM_TEXT_ROWS, text_size))

    def forward(self, features: Float[Tensor, "b l c"], present: Bool[Tensor, "b l"]) -> Float[Tensor, "b length d"]:
        """`present` tells real words; a caption of none is the null text."""
        missing = self.length - features.shape[1]
        features, present = F.pad(features, (0, 0, 0, missing)), F.pad(present, (0, missing))
        rows = torch.where(present[..., None], features.to(self.table.dtype), self.table[: self.length])
        return self.norm(self.projection(rows))


class Embedded(nn.Module):
    """sin/cos features of a number through a projector: flow, frames per second, slots of time."""

    def __init__(self, size: int, norm: bool = False) -> None:
        super().__init__()
        self.projector = projector(256, size)
        self.norm = nn.LayerNorm(size) if norm else nn.Identity()

    def forward(self, values: Num[Tensor, "*s"]) -> Float[Tensor, "*s d"]:
        return self.norm(self.projector(sin_cos(values, 256).to(self.projector[0].weight.dtype)))
