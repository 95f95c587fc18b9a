"""MAGI's networks: MAR's diffusion head (arXiv 2406.11838), and transformer blocks factorised into space and time.

Shapes: b clips, f frame slots, s positions of a frame, d the width, c the length of a token vector.
"""

import math
from dataclasses import dataclass

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor, nn

from mutoscope.layers.attention import attention, distance_logits
from mutoscope.layers.draws import Draws, dropout
from mutoscope.layers.embeddings import INITIAL_STD, init_normal, timestep_features
from mutoscope.layers.kv_cache import KVCache
from mutoscope.layers.precision import project_exactly
from mutoscope.models.magi.conditions import Words
from mutoscope.models.magi.config import MAGIConfig

EPS = 1e-6  # of all layer norms, as in MAR
FEATURES = 256  # cosine and sine features of a diffusion time, as in MAR


# ---------------------------------------------------------------------------------------------------------------------
# Diffusion head


class HeadBlock(nn.Module):
    """u ← u + gate · MLP(norm(u) · (1 + scale) + shift); scale, shift and gate depend on the condition."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(size, eps=EPS)
        self.mlp = nn.Sequential(nn.Linear(size, size), nn.SiLU(), nn.Linear(size, size))
        self.modulation = nn.Linear(size, 3 * size)

    def forward(self, u: Float[Tensor, "*s w"], condition: Float[Tensor, "*s w"]) -> Float[Tensor, "*s w"]:
        shift, scale, gate = self.modulation(condition).chunk(3, dim=-1)
        return u + gate * self.mlp(self.norm(u) * (1 + scale) + shift)


class DiffusionHead(nn.Module):
    """MAR's network: predicts the noise of a token and its variance, conditioned on the transformer's output for it."""

    def __init__(
        self,
        token_size: int,
        condition_size: int,
        size: int,
        num_layers: int,
        output_size: int | None = None,
        reads_lengths: bool = False,
    ) -> None:
        """`output_size`: numbers to predict, by default two for each of a token's. `reads_lengths`: of steps."""
        super().__init__()
        self.time_embedding = projector(FEATURES, size)
        self.length_embedding = projector(FEATURES, size) if reads_lengths else None
        self.condition_embedding = nn.Linear(condition_size, size)
        self.token_embedding = nn.Linear(token_size, size)
        self.blocks = nn.ModuleList(HeadBlock(size) for _ in range(num_layers))
        self.norm = nn.LayerNorm(size, eps=EPS, elementwise_affine=False)
        self.modulation, self.output = nn.Linear(size, 2 * size), nn.Linear(size, output_size or 2 * token_size)
        self.initialize_weights()

    def initialize_weights(self) -> None:
        """MAR's rules, so that the head starts by predicting zero noise."""
        # All matrices: Xavier uniform; biases: 0.
        init_xavier(self)
        # Embeddings of time and length: N(0, 0.02²).
        for name, parameter in self.named_parameters():
            if name.startswith(("time_embedding", "length_embedding")) and name.endswith("weight"):
                nn.init.normal_(parameter, std=INITIAL_STD)
        # Modulations and output: 0, so that every block starts as the identity.
        for name, parameter in self.named_parameters():
            if name.endswith(("modulation.weight", "output.weight")):
                nn.init.zeros_(parameter)

    def condition(self, z: Float[Tensor, "*s d"]) -> Float[Tensor, "*s w"]:
        """Part that depends on the transformer's output alone: computed once for all diffusion steps."""
        return self.condition_embedding(z)

    def time(self, times: Num[Tensor, "*t"], lengths: Num[Tensor, "*t"] | None = None) -> Float[Tensor, "*t w"]:
        """Part that depends on the diffusion time (and the step's length) alone: computed once for all tokens."""
        embedded = self.time_embedding(timestep_features(times).to(self.output.weight.dtype))
        if self.length_embedding is None or lengths is None:
            return embedded
        return embedded + self.length_embedding(timestep_features(lengths).to(self.output.weight.dtype))

    def forward(
        self, x: Float[Tensor, "*s c"], condition: Float[Tensor, "*s w"], time: Float[Tensor, "*t w"]
    ) -> Float[Tensor, "*s o"]:
        """Predicted noise (or sample), then the log-variance between its bounds; or a velocity (see `Shortcut`)."""
        y = F.silu(condition + time)  # (*s, w)
        u = self.token_embedding(x)  # (*s, w)
        for block in self.blocks:
            u = block(u, y)
        shift, scale = self.modulation(y).chunk(2, dim=-1)
        return project_exactly(self.output, self.norm(u) * (1 + scale) + shift)


def projector(size_in: int, size_out: int) -> nn.Sequential:
    """Linear, SiLU, linear."""
    return nn.Sequential(nn.Linear(size_in, size_out), nn.SiLU(), nn.Linear(size_out, size_out))


def init_xavier(network: nn.Module) -> None:
    """Xavier-uniform matrices and zero biases in all linear layers, as in MAR."""
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)


# ---------------------------------------------------------------------------------------------------------------------
# Transformer


class Attention(nn.Module):
    """Multi-head attention along one axis, space or time."""

    def __init__(self, config: MAGIConfig) -> None:
        super().__init__()
        d = config.hidden_size
        self.heads, self.dropout = config.num_heads, config.dropout
        self.qkv, self.output = nn.Linear(d, 3 * d), nn.Linear(d, d)

    def forward(self, x: Float[Tensor, "b l d"], draws: Draws | None = None) -> Float[Tensor, "b l d"]:
        """Attention among all positions of `x`. `draws`: of dropout; None for none."""
        return self.attended(*self.projected(x), None, draws)

    def projected(self, x: Float[Tensor, "b l d"]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (b, heads, l, size of a head) each."""
        q, k, v = rearrange(self.qkv(x), "b l (three h d) -> three b h l d", three=3, h=self.heads)
        return q, k, v

    def attended(
        self,
        q: Float[Tensor, "b h l c"],
        k: Float[Tensor, "b h m c"],
        v: Float[Tensor, "b h m c"],
        mask: Bool[Tensor, "*#b l m"] | Float[Tensor, "*#b l m"] | None,
        draws: Draws | None,
    ) -> Float[Tensor, "b l d"]:
        """The layer's output, from queries, keys and values."""
        out = attention(q, k, v, mask, self.dropout, draws)
        return dropout(self.output(rearrange(out, "b h l c -> b l (h c)")), self.dropout, draws)


@dataclass(frozen=True)
class Reach:
    """What attention over time sees of other frames. Shapes: f queries, g keys."""

    mask: Bool[Tensor, "*#b f g"]
    """True where a query may attend to a key."""
    distance: Int[Tensor, "f g"] | None = None
    """Frames from key to query, at most the window's length; for relative positions alone."""


class TimeAttention(Attention):
    """Attention along time at each position, with a cache and, if the model has them, relative positions."""

    def __init__(self, config: MAGIConfig) -> None:
        super().__init__(config)
        size, count = config.hidden_size // config.num_heads, config.reach + config.keeps_first
        self.distances = nn.Parameter(init_normal(config.num_heads, count, size)) if config.is_relative else None

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        x: Float[Tensor, "bs f d"],
        reach: Reach,
        cache: KVCache | None = None,
        layer: int = 0,
        draws: Draws | None = None,
    ) -> Float[Tensor, "bs f d"]:
        """Attention over the frames of `x` and those in the cache, which takes over the new keys and values.

        `draws`: of dropout; None for none.
        """
        q, k, v = self.projected(x)
        if cache is not None:
            k, v = cache.append(layer, k, v)
        mask = reach.mask
        if mask.ndim == 3:  # of every clip, (b, f, g): the positions of its frames share it
            mask = mask.repeat_interleave(len(x) // len(mask), 0)[:, None]  # (b*s, 1, f, g)
        if self.distances is not None and reach.distance is not None:
            logits = distance_logits(q, self.distances, reach.distance)  # (b*s, h, f, g)
            mask = logits.masked_fill(~mask, -math.inf)
        return self.attended(q, k, v, mask, draws)


class TextAttention(nn.Module):
    """Attention of all positions to the words of a caption; its output starts at zero."""

    def __init__(self, config: MAGIConfig) -> None:
        super().__init__()
        d = config.hidden_size
        self.heads = config.num_heads
        self.q, self.kv, self.output = nn.Linear(d, d), nn.Linear(d, 2 * d), nn.Linear(d, d)

    def forward(
        self, x: Float[Tensor, "b l d"], words: Float[Tensor, "b w d"], present: Bool[Tensor, "b w"]
    ) -> Float[Tensor, "b l d"]:
        q = rearrange(self.q(x), "b l (h d) -> b h l d", h=self.heads)
        k, v = rearrange(self.kv(words), "b w (two h d) -> two b h w d", two=2, h=self.heads)
        mask = present[:, None, None].expand(-1, 1, x.shape[1], -1)  # (b, 1, l, w)
        return self.output(rearrange(attention(q, k, v, mask), "b h l d -> b l (h d)"))


class Block(nn.Module):
    """Attention within each frame, along time at each position, and to words, then the MLP; norms come first (§3.1)."""

    def __init__(self, config: MAGIConfig) -> None:
        super().__init__()
        d = config.hidden_size
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(d, eps=EPS) for _ in range(3))
        self.space, self.time = Attention(config), TimeAttention(config)
        self.text_norm = None if config.text_size is None else nn.LayerNorm(d, eps=EPS)
        self.text = None if config.text_size is None else TextAttention(config)
        self.mlp_in, self.mlp_out, self.dropout = nn.Linear(d, 4 * d), nn.Linear(4 * d, d), config.dropout

    def forward(
        self,
        h: Float[Tensor, "b f s d"],
        reach: Reach,
        words: Words | None = None,
        cache: KVCache | None = None,
        layer: int = 0,
        draws: Draws | None = None,
    ) -> Float[Tensor, "b f s d"]:
        """`draws`: of dropout; None for none."""
        b, f, s = h.shape[:3]
        within = self.space(self.norm1(h).flatten(0, 1), draws)  # attention over s in (b*f, s, d)
        h = h + within.unflatten(0, (b, f))
        along = rearrange(self.norm2(h), "b f s d -> (b s) f d")
        h = h + rearrange(self.time(along, reach, cache, layer, draws), "(b s) f d -> b f s d", s=s)
        if self.text is not None and self.text_norm is not None:
            assert words is not None
            h = h + self.text(self.text_norm(h).flatten(1, 2), words.vectors, words.present).unflatten(1, (f, s))
        # The exact GELU, as in MAR.
        inner = self.mlp_out(F.gelu(self.mlp_in(self.norm3(h))))
        return h + dropout(inner, self.dropout, draws)
