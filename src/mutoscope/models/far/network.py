"""FAR's blocks: attention over the tokens of all frames, with one modulation vector per frame.

A frame is fine (patches of `patch_size`) or, in long models, coarse (patches of `coarse_patch_size`). Coarse tokens
have attention projections of their own; norms, MLP and modulation are shared.

Shapes: b clips, f frames, n tokens of a frame, d the width, c the size of a head, m keys.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mutoscope.layers.attention import attention
from mutoscope.layers.kv_cache import KVCache, StaticKVCache
from mutoscope.layers.positions import rotate
from mutoscope.models.far.config import FARConfig

EPS = 1e-6  # of all norms
ROTARY_BASE = 10_000.0


@dataclass(frozen=True)
class InProgress:
    """What is the same in all steps of the frame in progress."""

    number: int
    rotation: Float[Tensor, "tokens pairs 2"]
    mask: Bool[Tensor, "n m"] | Float[Tensor, "n m"] | None


@dataclass
class FARCache(KVCache):
    """Keys (already rotated) and values: coarse frames first, then fine ones.

    Keys and values of coarse frames depend on older coarse frames only and stay; those of fine frames are read anew
    whenever a frame has become coarse, by setting `length` back.
    """

    frames: list[int] = field(default_factory=list)
    """Frame number of every filled position."""
    in_progress: InProgress | None = None

    def truncate(self, length: int) -> None:
        """Forgets all positions from `length` on."""
        self.length, self.frames, self.in_progress = length, self.frames[:length], None

    def first(self, batch_size: int) -> "FARCache":
        return FARCache(self.keys[:, :batch_size], self.values[:, :batch_size], self.length, self.frames)


@dataclass
class StaticFARCache(StaticKVCache, FARCache):
    """A cache whose shapes never change; see `StaticKVCache`."""

    def first(self, batch_size: int) -> "StaticFARCache":
        part = self.keys[:, :batch_size], self.values[:, :batch_size], self.length
        return StaticFARCache(*part, frames=self.frames, positions=self.positions)


@dataclass(frozen=True)
class Frames:
    """Tokens of some frames of one patch size, on their way through the blocks."""

    x: Float[Tensor, "b f n d"]
    rotation: Float[Tensor, "tokens pairs 2"]
    """Of all tokens, frame by frame."""
    is_coarse: bool = False

    def at(self, x: Float[Tensor, "b f n d"]) -> "Frames":
        """The same frames further on."""
        return Frames(x, self.rotation, self.is_coarse)

    @property
    def num_tokens(self) -> int:
        """Of all frames together."""
        return len(self.rotation)


def rotation_table(
    coordinates: Float[Tensor, "tokens 3"], channels: tuple[int, int, int]
) -> Float[Tensor, "tokens pairs 2"]:
    """(cos, sin) by (frame, row, column): channel pair j of an axis of `a` channels turns by position·10000^(−2j/a).

    Angles are computed in float64: at frame 299, those of float32 are off by 1e-5.
    """
    angles = []
    for axis, size in enumerate(channels):
        exponents = torch.arange(0, size, 2, dtype=torch.float64) / size
        angles.append(coordinates[:, axis, None].double().cpu() * ROTARY_BASE**-exponents)  # (tokens, size/2)
    angle = torch.cat(angles, dim=1)  # (tokens, pairs)
    return torch.stack([angle.cos(), angle.sin()], dim=-1).float().to(coordinates.device)


def modulated(
    x: Float[Tensor, "b f n d"], shift: Float[Tensor, "b f d"], scale: Float[Tensor, "b f d"]
) -> Float[Tensor, "b f n d"]:
    """LN(x)·(1 + scale) + shift, where the layer norm has no weights of its own."""
    normed = F.layer_norm(x, x.shape[-1:], eps=EPS)
    return torch.addcmul(shift[:, :, None], normed, 1 + scale[:, :, None])


class Heads(nn.Module):
    """Projections of attention for tokens of one patch size: queries, keys and values, and the output.

    `has_output`: False for coarse tokens in the last block, whose queries nobody reads. As in the published networks
    the weights of these queries exist all the same and have no effect.
    """

    def __init__(self, config: FARConfig, has_output: bool = True) -> None:
        super().__init__()
        d = config.hidden_size
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(d, 3 * d)
        self.query_norm = nn.RMSNorm(config.head_size, eps=EPS)
        self.key_norm = nn.RMSNorm(config.head_size, eps=EPS)
        self.output = nn.Linear(d, d) if has_output else None
        if not has_output:
            self.query_norm.requires_grad_(False)  # without effect, so that no gradient ever reaches it

    def forward(
        self, x: Float[Tensor, "b l d"], rotation: Float[Tensor, "l pairs 2"]
    ) -> tuple[Float[Tensor, "b h l c"], Float[Tensor, "b h l c"], Float[Tensor, "b h l c"]]:
        """Rotated queries and keys, and values."""
        q, k, v = rearrange(self.qkv(x), "b l (three h c) -> three b h l c", three=3, h=self.num_heads)
        return rotate(self.query_norm(q), rotation).to(v), rotate(self.key_norm(k), rotation).to(v), v


class Block(nn.Module):
    """Attention over tokens of all frames, then the MLP; both modulated by shift, scale and gate of each frame."""

    def __init__(self, config: FARConfig, is_last: bool) -> None:
        super().__init__()
        d = config.hidden_size
        self.modulation = nn.Linear(d, 6 * d)
        self.heads = Heads(config)
        self.coarse_heads = Heads(config, has_output=not is_last) if config.is_long else None
        self.mlp_in, self.mlp_out = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    def forward(
        self,
        parts: Sequence[Frames],
        modulations: Sequence[Float[Tensor, "b _f six_d"]],
        mask: Bool[Tensor, "n m"] | Float[Tensor, "n m"] | None,
        cache: KVCache | None = None,
        layer: int = 0,
        num_outputs: int | None = None,
    ) -> list[Frames]:
        """The last `num_outputs` parts (None: all) after this block.

        Keys and values of all parts follow those in the cache, which appends them. `modulations`: results of the layer
        `modulation` for each part. `mask`: of the tokens of the parts that are returned.
        """
        chunks = [modulation.chunk(6, dim=-1) for modulation in modulations]
        projected = [
            self._projection(part)(modulated(part.x, *chunk[:2]).flatten(1, 2), part.rotation)
            for part, chunk in zip(parts, chunks, strict=True)
        ]
        q, k, v = (torch.cat(tensors, 2) if len(parts) > 1 else tensors[0] for tensors in zip(*projected, strict=True))
        if cache is not None:
            k, v = cache.append(layer, k, v)
        mask = mask.to(q) if mask is not None and mask.is_floating_point() else mask
        skipped = 0 if num_outputs is None else len(parts) - num_outputs
        if skipped == len(parts):
            return []
        first = sum(part.num_tokens for part in parts[:skipped])  # tokens whose outputs nobody reads
        out = rearrange(attention(q[:, :, first:], k, v, mask), "b h l c -> b l (h c)")
        sizes = [part.num_tokens for part in parts[skipped:]]
        wanted = zip(parts[skipped:], chunks[skipped:], out.split(sizes, dim=1), strict=True)
        return [part.at(self._update(part, chunk, o)) for part, chunk, o in wanted]

    def _projection(self, part: Frames) -> Heads:
        if not part.is_coarse:
            return self.heads
        assert self.coarse_heads is not None
        return self.coarse_heads

    def _update(
        self, part: Frames, chunk: Sequence[Float[Tensor, "b f d"]], attended: Float[Tensor, "b l d"]
    ) -> Float[Tensor, "b f n d"]:
        """The residual stream after attention and MLP."""
        _, _, gate, shift, scale, mlp_gate = chunk
        output = self._projection(part).output
        assert output is not None, "nobody reads the coarse frames after the last block"
        x = torch.addcmul(part.x, gate[:, :, None], output(attended).view_as(part.x))
        inner = self.mlp_out(F.gelu(self.mlp_in(modulated(x, shift, scale)), approximate="tanh"))
        return torch.addcmul(x, mlp_gate[:, :, None], inner)


def causal_frames(
    queries: Int[Tensor, " n"], keys: Int[Tensor, " m"], slope: float = 0.0
) -> Bool[Tensor, "n m"] | Float[Tensor, "n m"]:
    """Mask by frame numbers: a query sees its own and earlier frames. With a slope, the bias of attention logits."""
    distance = queries[:, None] - keys  # (n, m), in frames
    if slope == 0:
        return distance >= 0
    return (-slope * distance.float()).masked_fill(distance < 0, -torch.inf)
