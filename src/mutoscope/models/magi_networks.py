"""The networks MAGI is made of: MAR's diffusion head (arXiv 2406.11838) and blocks factorised into space and time.

Shapes: b clips, f frame slots, s positions of a frame, d the width, c the length of a token vector.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor, nn

from mutoscope.layers.attention import attention
from mutoscope.layers.embeddings import timestep_features
from mutoscope.layers.kv_cache import KVCache

EPS = 1e-6


class Sizes(Protocol):
    """What a block needs of the configuration."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def dropout(self) -> float: ...
    @property
    def text_size(self) -> int | None: ...


# ---------------------------------------------------------------------------------------------------------------------
# Diffusion head


class HeadBlock(nn.Module):
    """u ← u + gate · MLP(norm(u) · (1 + scale) + shift), the three from the condition."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(size, eps=EPS)
        self.mlp = nn.Sequential(nn.Linear(size, size), nn.SiLU(), nn.Linear(size, size))
        self.modulation = nn.Linear(size, 3 * size)

    def forward(self, u: Float[Tensor, "*s w"], condition: Float[Tensor, "*s w"]) -> Float[Tensor, "*s w"]:
        shift, scale, gate = self.modulation(condition).chunk(3, dim=-1)
        return u + gate * self.mlp(self.norm(u) * (1 + scale) + shift)


class DiffusionHead(nn.Module):
    """MAR's network: predicts the noise of a token, and its variance, from the transformer's output for that token."""

    def __init__(self, token_size: int, condition_size: int, size: int, num_layers: int) -> None:
        super().__init__()
        self.time_embedding = nn.Sequential(nn.Linear(256, size), nn.SiLU(), nn.Linear(size, size))
        self.condition_embedding = nn.Linear(condition_size, size)
        self.token_embedding = nn.Linear(token_size, size)
        self.blocks = nn.ModuleList(HeadBlock(size) for _ in range(num_layers))
        self.norm = nn.LayerNorm(size, eps=EPS, elementwise_affine=False)
        self.modulation, self.output = nn.Linear(size, 2 * size), nn.Linear(size, 2 * token_size)
        initialise(self)
        for name, parameter in self.named_parameters():
            if name.startswith("time_embedding") and parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)
            if name.endswith(("modulation.weight", "output.weight")):
                nn.init.zeros_(parameter)

    def condition(self, z: Float[Tensor, "*s d"]) -> Float[Tensor, "*s w"]:
        """What depends on the transformer's output alone: the same at every step of diffusion."""
        return self.condition_embedding(z)

    def time(self, times: Num[Tensor, "*t"]) -> Float[Tensor, "*t w"]:
        """What depends on the diffusion time alone: the same for every token."""
        return self.time_embedding(timestep_features(times).to(self.output.weight.dtype))

    def forward(
        self, x: Float[Tensor, "*s c"], condition: Float[Tensor, "*s w"], time: Float[Tensor, "*t w"]
    ) -> Float[Tensor, "*s two_c"]:
        y = F.silu(condition + time)
        u = self.token_embedding(x)
        for block in self.blocks:
            u = block(u, y)
        shift, scale = self.modulation(y).chunk(2, dim=-1)
        return self.output(self.norm(u) * (1 + scale) + shift)


def projector(size_in: int, size_out: int) -> nn.Sequential:
    """Linear, SiLU, linear."""
    return nn.Sequential(nn.Linear(size_in, size_out), nn.SiLU(), nn.Linear(size_out, size_out))


def initialise(module: nn.Module) -> None:
    """Xavier-uniform matrices and zero biases, as in MAR."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)


# ---------------------------------------------------------------------------------------------------------------------
# Transformer


class Attention(nn.Module):
    def __init__(self, config: Sizes) -> None:
        super().__init__()
        d = config.hidden_size
        self.heads, self.dropout = config.num_heads, config.dropout
        self.qkv, self.output = nn.Linear(d, 3 * d), nn.Linear(d, d)

    def forward(
        self,
        x: Float[Tensor, "b l d"],
        mask: Bool[Tensor, "*#b l m"] | None = None,
        cache: KVCache | None = None,
        layer: int = 0,
    ) -> Float[Tensor, "b l d"]:
        """Over what is given and what is cached; a cache keeps the new keys and values behind its old ones."""
        q, k, v = rearrange(self.qkv(x), "b l (three h d) -> three b h l d", three=3, h=self.heads)
        if cache is not None:
            k, v = cache.append(layer, k, v)
        out = attention(q, k, v, mask, self.dropout if self.training else 0.0)
        return F.dropout(self.output(rearrange(out, "b h l d -> b l (h d)")), self.dropout, self.training)


class TextAttention(nn.Module):
    """Attention of all positions to the words of a caption; adds nothing at first."""

    def __init__(self, config: Sizes) -> None:
        super().__init__()
        d = config.hidden_size
        self.heads = config.num_heads
        self.q, self.kv, self.output = nn.Linear(d, d), nn.Linear(d, 2 * d), nn.Linear(d, d)

    def forward(
        self, x: Float[Tensor, "b l d"], words: Float[Tensor, "b w d"], present: Bool[Tensor, "b w"]
    ) -> Float[Tensor, "b l d"]:
        q = rearrange(self.q(x), "b l (h d) -> b h l d", h=self.heads)
        k, v = rearrange(self.kv(words), "b w (two h d) -> two b h w d", two=2, h=self.heads)
        mask = present[:, None, None].expand(-1, 1, x.shape[1], -1)
        return self.output(rearrange(attention(q, k, v, mask), "b h l d -> b l (h d)"))


@dataclass(frozen=True)
class Conditions:
    """What some frames of each clip are told. None, a label of −1, NaN in actions, no present word: nothing.

    `interval`: source frames from one frame to the next, 1…25. `actions` lead to each frame. `caption`: text features.
    """

    interval: Int[Tensor, " b"]
    label: Int[Tensor, " b"] | None = None
    actions: Float[Tensor, "b f a"] | None = None
    caption: Float[Tensor, "b w t"] | None = None
    caption_mask: Bool[Tensor, "b w"] | None = None

    @classmethod
    def grouped(cls, frames: Sequence["Conditions"]) -> list[tuple[int, "Conditions"]]:
        """Neighbouring frames that are told the same but for their actions, joined: (number of frames, conditions)."""
        groups: list[list[Conditions]] = []
        for frame in frames:
            if groups and groups[-1][-1].told_as(frame):
                groups[-1].append(frame)
            else:
                groups.append([frame])
        return [(len(group), group[0].followed_by(group[1:])) for group in groups]

    def first(self, count: int) -> "Conditions":
        """The same for the first clips alone."""
        told = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: value[:count] for name, value in told.items() if value is not None})

    def told_as(self, other: "Conditions") -> bool:
        """Whether both are told the very same, actions aside."""
        names = ("interval", "label", "caption", "caption_mask")
        same = all(getattr(self, name) is getattr(other, name) for name in names)
        return same and (self.actions is None) == (other.actions is None)

    def followed_by(self, others: Sequence["Conditions"]) -> "Conditions":
        if self.actions is None:
            return self
        return replace(
            self, actions=torch.cat([self.actions, *(o.actions for o in others if o.actions is not None)], 1)
        )


@dataclass(frozen=True)
class Words:
    """A caption as the blocks read it. At least one position is present: the null word."""

    vectors: Float[Tensor, "b w d"]
    present: Bool[Tensor, "b w"]


class Block(nn.Module):
    """Attention within each frame, attention along time at each place, attention to words, MLP; norms come first."""

    def __init__(self, config: Sizes) -> None:
        super().__init__()
        d = config.hidden_size
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(d, eps=EPS) for _ in range(3))
        self.space, self.time = Attention(config), Attention(config)
        self.text_norm = None if config.text_size is None else nn.LayerNorm(d, eps=EPS)
        self.text = None if config.text_size is None else TextAttention(config)
        self.mlp_in, self.mlp_out, self.dropout = nn.Linear(d, 4 * d), nn.Linear(4 * d, d), config.dropout

    def forward(
        self,
        h: Float[Tensor, "b f s d"],
        mask: Bool[Tensor, "*#b f g"],
        words: Words | None = None,
        cache: KVCache | None = None,
        layer: int = 0,
    ) -> Float[Tensor, "b f s d"]:
        b, f, s = h.shape[:3]
        h = h + self.space(self.norm1(h).flatten(0, 1)).unflatten(0, (b, f))
        along = rearrange(self.norm2(h), "b f s d -> (b s) f d")
        mask = mask if mask.ndim == 2 else mask.repeat_interleave(s, 0)[:, None]
        h = h + rearrange(self.time(along, mask, cache, layer), "(b s) f d -> b f s d", s=s)
        if self.text is not None and self.text_norm is not None:
            assert words is not None
            h = h + self.text(self.text_norm(h).flatten(1, 2), words.vectors, words.present).unflatten(1, (f, s))
        inner = self.mlp_out(F.gelu(self.mlp_in(self.norm3(h))))
        return h + F.dropout(inner, self.dropout, self.training)
