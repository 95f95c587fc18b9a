"""Plain networks: what a sampler needs of a network, computed as the published scripts compute it.

The sampler, its draws and the weights are the same, so the clips are those of the library but for rounding. Undone are
the exact speed-ups of the network's side, by family:

  all     weights are not packed
  PAR     attention over the whole reserved cache under a gathered mask, as an explicit product with a softmax; both
          halves of guidance are projected from the start, rotations in float32 pairs
  NOVA    the last spatial block computes all tokens of a frame; the diffusion head embeds its condition and its time
          anew in every step, and doubles the noisy input for guidance
  MAGI    the diffusion head as in NOVA (that is MAR's code)
  FAR     modulations are computed anew in every step
  MAGVIT  nothing: the published loop is what the sampler runs
"""

from functools import singledispatch

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor, nn

from mutoscope.layers.masks import hide_padding
from mutoscope.layers.packed import PackedLinear
from mutoscope.layers.precision import project_exactly
from mutoscope.layers.token_masking import gather_rows
from mutoscope.models.base import AnyModel
from mutoscope.models.far import FAR
from mutoscope.models.far import FrameConditions as FARConditions
from mutoscope.models.far.model import Modulations
from mutoscope.models.magi import MAGI
from mutoscope.models.magi.network import DiffusionHead as MAGIHead
from mutoscope.models.nova import NOVA
from mutoscope.models.nova.model import Canvas
from mutoscope.models.nova.network import DiffusionHead as NOVAHead
from mutoscope.models.par import PAR, Block
from mutoscope.models.par.model import PARState


def make_plain(model: AnyModel) -> None:
    """Undoes the speed-ups of a network in place; its weights stay as they are."""
    unpack_linears(model)
    _make_plain(model)


def unpack_linears(network: nn.Module) -> None:
    """Inverse of `pack_linears`."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, PackedLinear):
                with torch.device("meta"):
                    linear = nn.Linear(child.in_features, child.out_features, child.bias is not None)
                linear.weight, linear.bias = child.weight, child.bias
                setattr(module, name, linear)


@singledispatch
def _make_plain(model: nn.Module) -> None:
    """Networks of other families are plain."""


# ------------------------------------------------------------------------------------------------------------------ PAR


def rotated(x: Float[Tensor, "b h n d"], table: Float[Tensor, "n pairs 2"]) -> Float[Tensor, "b h n d"]:
    """Rotary positions as LlamaGen's code applies them."""
    pairs, (cos, sin) = x.float().reshape(*x.shape[:-1], -1, 2), table.unbind(-1)
    even, odd = pairs[..., 0], pairs[..., 1]
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(3).type_as(x)


def plain_block(
    block: Block,
    x: Float[Tensor, "b n d"],
    table: Float[Tensor, "n pairs 2"],
    rows: Int[Tensor, " n"],
    mask: Bool[Tensor, "*#b n length"],
    cache: tuple[Float[Tensor, "b h length c"], Float[Tensor, "b h length c"]],
) -> Float[Tensor, "b n d"]:
    """A transformer block that writes into `rows` of its cache and attends over all of it."""
    config, (b, n, _) = block.attention.config, x.shape
    heads, kv_heads, size = config.num_heads, config.kv_heads, config.head_size
    qkv = block.attention.qkv(block.attention_norm(x)).view(b, n, heads + 2 * kv_heads, size).transpose(1, 2)
    q, k, v = qkv.split([heads, kv_heads, kv_heads], dim=1)
    q, k = rotated(q, table), rotated(k, table)
    cache[0][:, :, rows], cache[1][:, :, rows] = k, v
    keys, values = (y.repeat_interleave(heads // kv_heads, dim=1) for y in cache)  # (b, heads, length, d)
    scores = q @ keys.transpose(-2, -1) / size**0.5
    weights = scores.masked_fill(~mask, float("-inf")).softmax(-1)
    x = x + block.attention.output((weights @ values).transpose(1, 2).reshape(b, n, -1))
    y = block.mlp_norm(x)
    return x + block.mlp_out(F.silu(block.mlp_gate(y)) * block.mlp_in(y))


class PlainPAR(PAR):
    """PAR and LlamaGen as their official scripts decode."""

    def new_state(
        self,
        batch_size: int,
        latent_shape: tuple[int, int, int],
        prefix_mask: Bool[Tensor, "b p"] | None = None,
        static: bool = False,
    ) -> PARState:
        state = super().new_state(batch_size, latent_shape, prefix_mask, static=False)
        cache = state.cache
        cache.keys.zero_()  # hidden positions are multiplied by zero, which numbers that are none survive
        cache.values.zero_()
        return PARState(cache, state.table, state.prefix_mask, self.group_mask(cache.keys.shape[3]))

    def _next_logits(
        self, x: Float[Tensor, "b n d"], state: PARState, num_wanted: int | None = None, first_wanted: int = 0
    ) -> Float[Tensor, "b2 m k"]:
        cache, n = state.cache, x.shape[1]
        assert state.visible is not None
        rows = torch.arange(cache.length, cache.length + n, device=x.device)
        mask = state.visible[rows]  # (n, length), gathered for every call
        mask = mask if state.prefix_mask is None else hide_padding(mask, state.prefix_mask, rows)
        x = x.repeat(cache.keys.shape[1] // len(x), 1, 1)  # (b2, n, d)
        for block, keys, values in zip(self.blocks, cache.keys, cache.values, strict=True):
            assert isinstance(block, Block)
            x = plain_block(block, x, state.table[rows], rows, mask, (keys, values))
        cache.advance(n)
        return project_exactly(self.output, self.norm(x[:, first_wanted:]))


@_make_plain.register
def _(model: PAR) -> None:
    model.__class__ = PlainPAR


# ------------------------------------------------------------------------------------------------------- NOVA and MAGI


def kept(times: Num[Tensor, "*s"], lengths: Num[Tensor, "*s"] | None) -> Float[Tensor, "*s 2"]:
    """Times and lengths of steps as they are, for a head that embeds them in every step."""
    times = times.float()
    return torch.stack([times, torch.full_like(times, torch.nan) if lengths is None else lengths.float()], dim=-1)


def unkept(time: Float[Tensor, "*s 2"]) -> tuple[Float[Tensor, "*s"], Float[Tensor, "*s"] | None]:
    """Inverse of `kept`."""
    times, lengths = time.unbind(-1)
    return times, None if lengths.isnan().any() else lengths


class PlainNOVAHead(NOVAHead):
    """A diffusion head that keeps nothing from one step to the next."""

    def condition(self, z: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        return z

    def time(self, times: Num[Tensor, "*s"], lengths: Num[Tensor, "*s"] | None = None) -> Float[Tensor, "*s 2"]:
        return kept(times, lengths)

    def forward(
        self, x: Float[Tensor, "b n p"], condition: Float[Tensor, "b2 n d"], time: Float[Tensor, "*s 2"]
    ) -> Float[Tensor, "b2 n p"]:
        x = x.repeat(len(condition) // len(x), 1, 1)  # (b2, n, p)
        return super().forward(x, super().condition(condition), super().time(*unkept(time)))


class PlainNOVA(NOVA):
    """NOVA as the official pipeline fills a frame."""

    def fill(
        self, canvas: Canvas, ids: Int[Tensor, "b r"] | None = None, remember: bool = False
    ) -> Float[Tensor, "b r d"]:
        everything = super().fill(canvas, None, remember)  # (b, n, d)
        return everything if ids is None else gather_rows(everything, ids)


@_make_plain.register
def _(model: NOVA) -> None:
    model.__class__, model.head.__class__ = PlainNOVA, PlainNOVAHead


class PlainMAGIHead(MAGIHead):
    """MAR's head as its code runs it: condition and time are embedded in every step."""

    def condition(self, z: Float[Tensor, "*s d"]) -> Float[Tensor, "*s d"]:
        return z

    def time(self, times: Num[Tensor, "*t"], lengths: Num[Tensor, "*t"] | None = None) -> Float[Tensor, "*t 2"]:
        return kept(times, lengths)

    def forward(
        self, x: Float[Tensor, "*s c"], condition: Float[Tensor, "*s d"], time: Float[Tensor, "*t 2"]
    ) -> Float[Tensor, "*s o"]:
        return super().forward(x, super().condition(condition), super().time(*unkept(time)))


@_make_plain.register
def _(model: MAGI) -> None:
    if not model.config.is_discrete:
        model.denoiser.__class__ = PlainMAGIHead


# ------------------------------------------------------------------------------------------------------------------ FAR


class StepByStep:
    """Modulations that are computed anew in every step."""

    def __init__(self, model: FAR, times: Float[Tensor, " steps"], conditions: FARConditions, rows: int) -> None:
        self.model, self.times, self.conditions, self.rows = model, times, conditions, rows

    def at(self, step: int) -> list[Tensor]:
        return Modulations(self.model, self.times[step : step + 1], self.conditions, self.rows).at(0)


class PlainFAR(FAR):
    """FAR without modulations that are known before."""

    def modulations(  # type: ignore[override]
        self, times: Float[Tensor, " steps"], conditions: FARConditions, rows: int
    ) -> StepByStep:
        return StepByStep(self, times.to(self.device), conditions, rows)


@_make_plain.register
def _(model: FAR) -> None:
    model.__class__ = PlainFAR
