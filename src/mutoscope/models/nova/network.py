"""NOVA's networks (arXiv 2412.14169): transformer, scaling and shift, diffusion head, embeddings.

`NOVA` in `model.py` combines them.

Shapes: b clips, n tokens (m coarse ones per frame), d the width, e that of the head, p the length of a token vector.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor, nn

from mutoscope.layers.attention import attention
from mutoscope.layers.embeddings import init_normal, sin_cos, timestep_features
from mutoscope.layers.kv_cache import KVCache
from mutoscope.layers.positions import rotary_table, rotate
from mutoscope.layers.precision import project_exactly
from mutoscope.layers.token_masking import gather_rows
from mutoscope.models.nova.config import NUM_TEXT_ROWS, rope_pairs

FEATURES = 256  # sine and cosine features of a number before its projector (official code)
MODULATION_EPS = 1e-6  # of the layer norms without weights (official code); all others have PyTorch's 1e-5

# ---------------------------------------------------------------------------------------------------------------------
# Transformer


class Attention(nn.Module):
    """Multi-head attention, with rotary positions where a table is passed."""

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
        """Attention of all positions, or of `rows` alone, over the positions of `x` and those in the cache."""
        if rows is None:
            q, k, v = rearrange(self.qkv(x), "b n (three heads d) -> three b heads n d", three=3, heads=self.heads)
        else:  # the last block needs queries for few rows: project those alone
            query, key_value = self.qkv.weight.split([len(self.qkv.weight) // 3, 2 * len(self.qkv.weight) // 3])
            q_bias, kv_bias = self.qkv.bias.split([len(query), len(key_value)])
            q = rearrange(F.linear(gather_rows(x, rows), query, q_bias), "b n (h d) -> b h n d", h=self.heads)
            k, v = rearrange(F.linear(x, key_value, kv_bias), "b n (two h d) -> two b h n d", two=2, h=self.heads)
        if table is not None:
            q_table = table if rows is None else gather_table(table, rows)
            q, k = rotate(q, q_table), rotate(k, table)
        if cache is not None:
            k, v = cache.append(layer, k, v)  # (b, heads, m, d)
        return self.output(rearrange(attention(q, k, v, mask), "b heads n d -> b n (heads d)"))


class Block(nn.Module):
    """Attention and MLP, each with its layer norm after it and before the sum, or before it (`norm_position`)."""

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
        h = x if rows is None else gather_rows(x, rows)  # (b, r, d)
        if self.norm_after:
            h = h + self.norm1(self.attention(x, mask, table, cache, layer, rows))
            return h + self.norm2(self.mlp_out(F.gelu(self.mlp_in(h))))
        h = h + self.attention(self.norm1(x), mask, table, cache, layer, rows)
        return h + self.mlp_out(F.gelu(self.mlp_in(self.norm2(h))))


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

    def table(self, coordinates: Int[Tensor, "n 3"]) -> Float[Tensor, "n pairs 2"] | None:
        """Rotations for coordinates (slot, row, column); None with absolute positions."""
        return None if self.pairs is None else rotary_table(coordinates, self.pairs)


def gather_table(table: Float[Tensor, "*b1 n pairs 2"], rows: Int[Tensor, "b r"]) -> Float[Tensor, "b 1 r pairs 2"]:
    """Rotations of the rows `rows` of every sample, for all heads. `table` may be the result of an earlier call."""
    if table.ndim == 3:
        return table[rows][:, None]
    return table[:, 0][torch.arange(len(rows), device=rows.device)[:, None], rows][:, None]


# ---------------------------------------------------------------------------------------------------------------------
# Mixer, diffusion head and embeddings


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
    """h ← h + gate · norm(MLP(norm(h) · (1 + scale) + shift)); scale, shift and gate depend on the condition."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(size, 3 * size)
        self.mlp = projector(size, size)
        self.norm = nn.LayerNorm(size)

    def forward(self, h: Float[Tensor, "b n e"], condition: Float[Tensor, "b n e"]) -> Float[Tensor, "b n e"]:
        scale, shift, gate = self.modulation(condition).chunk(3, dim=-1)
        return h + gate * self.norm(self.mlp(modulate(h, scale, shift)))


class DiffusionHead(nn.Module):
    """Predicts the diffusion target of each token separately, from the noisy token, the time and the condition."""

    def __init__(
        self, token_size: int, hidden_size: int, head_size: int, layers: int, reads_lengths: bool = False
    ) -> None:
        """`reads_lengths`: the head reads the length of the step that its prediction is for (`layers.shortcut`)."""
        super().__init__()
        e, p = head_size, token_size
        self.time_projector, self.condition_projector = projector(FEATURES, e), projector(hidden_size, e)
        self.length_projector = projector(FEATURES, e) if reads_lengths else None
        self.patch_embedding = nn.Linear(p, e)
        self.blocks = nn.ModuleList(HeadBlock(e) for _ in range(layers))
        self.modulation, self.output = nn.Linear(e, 2 * e), nn.Linear(e, p)

    def condition(self, z: Float[Tensor, "b n d"]) -> Float[Tensor, "b n e"]:
        """Part that depends on the spatial encoder's output alone: computed once for all diffusion steps."""
        return self.condition_projector(z)

    def time(self, times: Num[Tensor, "*s"], lengths: Num[Tensor, "*s"] | None = None) -> Float[Tensor, "*s e"]:
        """Part that depends on the diffusion time (and the step's length) alone: computed once for all tokens."""
        projected = self.time_projector(timestep_features(times).to(self.patch_embedding.weight.dtype))
        if self.length_projector is None or lengths is None:
            return projected
        return projected + self.length_projector(timestep_features(lengths).to(self.patch_embedding.weight.dtype))

    def forward(
        self, x: Float[Tensor, "b n p"], condition: Float[Tensor, "b2 n e"], time: Float[Tensor, "*s e"]
    ) -> Float[Tensor, "b2 n p"]:
        """Prediction for every token. `condition` may hold b2 = several copies of the batch, for guidance."""
        u = F.silu(condition + time)  # (b2, n, e)
        h = self.patch_embedding(x)  # (b, n, e)
        h = h if len(h) == len(u) else h.repeat(len(u) // len(h), 1, 1)  # (b2, n, e)
        for block in self.blocks:
            h = block(h, u)
        scale, shift = self.modulation(u).chunk(2, dim=-1)
        return project_exactly(self.output, modulate(h, scale, shift))


def modulate(
    h: Float[Tensor, "b n e"], scale: Float[Tensor, "b n e"], shift: Float[Tensor, "b n e"]
) -> Float[Tensor, "b n e"]:
    """Layer norm without weights of its own, scaled and shifted by the condition."""
    return F.layer_norm(h, h.shape[-1:], eps=MODULATION_EPS) * (1 + scale) + shift


class TextEmbedding(nn.Module):
    """Projects the features of a caption's words to prefix tokens; rows of a table replace missing words."""

    table: Float[Tensor, "rows c"]

    def __init__(self, text_size: int, hidden_size: int, length: int) -> None:
        super().__init__()
        self.length = length
        self.projection = nn.Linear(text_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size)
        # A buffer: the published table is never trained.
        self.register_buffer("table", init_normal(NUM_TEXT_ROWS, text_size))

    def forward(self, features: Float[Tensor, "b l c"], present: Bool[Tensor, "b l"]) -> Float[Tensor, "b length d"]:
        """`present` is True on rows of real words; a caption without any is the null text."""
        missing = self.length - features.shape[1]
        features, present = F.pad(features, (0, 0, 0, missing)), F.pad(present, (0, missing))
        rows = torch.where(present[..., None], features.to(self.table.dtype), self.table[: self.length])
        return self.norm(self.projection(rows))


class Embedded(nn.Module):
    """Embedding of a number (optical flow, frames per second, time slot): sine features, then a projector."""

    def __init__(self, size: int, norm: bool = False) -> None:
        super().__init__()
        self.projector = projector(FEATURES, size)
        self.norm = nn.LayerNorm(size) if norm else nn.Identity()

    def forward(self, values: Num[Tensor, "*s"]) -> Float[Tensor, "*s d"]:
        features = sin_cos(values, FEATURES).to(next(self.projector.parameters()).dtype)  # (*s, FEATURES)
        return self.norm(self.projector(features))
