"""PAR and LlamaGen: a decoder-only transformer over discrete tokens that predicts n distant tokens per step.

PAR: arXiv 2412.15119; LlamaGen, arXiv 2406.06525, is the case n = 1. Images are clips of one frame.

Read from top to bottom: configuration, the sequence and its loss, decoding with a cache. The networks stand in
`par_networks.py`.
"""

from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mutoscope.errors import UserError
from mutoscope.layers.kv_cache import KVCache, StaticKVCache
from mutoscope.layers.masks import first_positions_mask, hide_padding, num_visible
from mutoscope.layers.positions import rotary_table
from mutoscope.layers.token_order import region_order, regions_per_side
from mutoscope.models.base import ModelConfig, TextShape, VideoModel
from mutoscope.models.par_networks import Block, CaptionEmbedding, RMSNorm

# layers, hidden, heads
PAPER_SIZES = {
    "B": (12, 768, 12),
    "L": (24, 1024, 16),
    "XL": (36, 1280, 20),
    "XXL": (48, 1536, 24),
    "XXXL": (48, 2560, 40),
    "1B": (22, 2048, 32),
    "3B": (24, 3200, 32),
    "7B": (32, 4096, 32),
}
CAPTION_LENGTH = 120


def swiglu_size(hidden_size: int, multiple: int = 256, multiplier: float | None = None) -> int:
    """Hidden size of the feed-forward layers: two thirds of four times the width, scaled, then rounded up."""
    size = int(2 * (4 * hidden_size) / 3)
    size = size if multiplier is None else int(multiplier * size)
    return -(-size // multiple) * multiple


@dataclass(frozen=True)
class PARConfig(ModelConfig):
    """Size, vocabulary and the number of tokens per step.

    Exactly one of `num_classes` and `caption_size` is set: class labels (prefix of one position), or text features of
    `caption_size` channels (prefix of `caption_length` positions). `num_parallel` is n of the paper, a square; 1 is
    LlamaGen. `latent_shape` is the grid the model is trained on; it may be sampled on others, since positions are
    rotations. `mlp_size` 0 means the published rule, `swiglu_size`. `num_regions` are those of the order; None: as many
    as tokens per step.
    The last three switches are for the paper's ablations: raster order, groups whose members see only those before
    them, and no sequential start (the first group is predicted from the condition alone).
    """

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int | None = None
    codebook_size: int = 16_384
    latent_shape: tuple[int, int, int] = (1, 24, 24)  # frames, rows, columns
    num_parallel: int = 1
    num_classes: int | None = 1000
    caption_size: int | None = None
    caption_length: int = CAPTION_LENGTH
    mlp_size: int = 0
    rope_base: float = 10_000.0
    norm_eps: float = 1e-5
    condition_dropout: float = 0.1
    token_dropout: float = 0.1
    residual_dropout: float = 0.1
    mlp_dropout: float = 0.1
    attention_dropout: float = 0.0
    drop_path: float = 0.0
    order: Literal["regions", "raster"] = "regions"
    num_regions: int | None = None
    group_attention: Literal["full", "causal"] = "full"
    sequential_start: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "latent_shape", tuple(self.latent_shape))  # JSON has no tuples
        if self.mlp_size == 0:
            object.__setattr__(self, "mlp_size", swiglu_size(self.hidden_size))
        if self.hidden_size % self.num_heads or (self.hidden_size // self.num_heads) % 4:
            raise UserError(
                f"hidden_size must give every head a multiple of 4 channels, found {self.hidden_size} for "
                f"{self.num_heads} heads."
            )
        if self.num_heads % self.kv_heads:
            raise UserError(f"num_heads {self.num_heads} is no multiple of num_kv_heads {self.kv_heads}.")
        if (self.num_classes is None) == (self.caption_size is None):
            raise UserError("Set one of num_classes and caption_size: the model reads class labels or captions.")
        for count in (self.num_parallel, self.num_regions or self.num_parallel):
            regions_per_side(self.latent_shape, count)

    @classmethod
    def paper(cls, size: str, **overrides: Any) -> "PARConfig":
        """A published size on the 24×24 grid of 384-pixel images."""
        if size not in PAPER_SIZES:
            raise UserError(f"There is no LlamaGen size {size!r}; sizes: {', '.join(PAPER_SIZES)}.")
        layers, hidden, heads = PAPER_SIZES[size]
        return cls(num_layers=layers, hidden_size=hidden, num_heads=heads, **overrides)

    @property
    def kv_heads(self) -> int:
        return self.num_kv_heads or self.num_heads

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def prefix_length(self) -> int:
        return self.caption_length if self.caption_size else 1

    @property
    def num_start(self) -> int:
        """Tokens that are decided one by one, before the learned queries are read."""
        return self.num_parallel if self.sequential_start else 0

    @property
    def text(self) -> TextShape | None:
        return None if self.caption_size is None else TextShape(self.caption_length, self.caption_size)

    @property
    def rope_pairs(self) -> tuple[int, int, int]:
        """Channel pairs turned by time, row and column: images half and half; clips (our choice) a quarter by time."""
        pairs = self.head_size // 2
        time = 0 if self.latent_shape[0] == 1 else pairs // 4 // 2 * 2
        return time, (pairs - time) // 2, (pairs - time) // 2


@dataclass
class PARState:
    """What decoding knows: cached keys and values, the rotations of the whole sequence, padded prefix columns, and,
    for a static cache, who sees whom."""

    cache: KVCache
    table: Float[Tensor, "length pairs 2"]
    prefix_mask: Bool[Tensor, "b p"] | None = None
    visible: Bool[Tensor, "n n"] | None = None

    def keep_first(self, batch_size: int) -> None:
        """Forgets all but the first samples: the unconditional half, once guidance is over."""
        if self.cache.keys.shape[1] == batch_size:
            return
        self.cache = self.cache.first(batch_size)
        self.prefix_mask = None if self.prefix_mask is None else self.prefix_mask[:batch_size]


class PAR(VideoModel):
    """Sequence [prefix, z_0 … z_{n-1}, n-1 learned queries, z_n …] in, the next token, or the next n, out.

    z is the clip in decoding order. With a prefix of one position, the output at position p predicts z_p. Without a
    sequential start the learned queries follow the prefix.
    """

    def __init__(self, config: PARConfig) -> None:
        super().__init__()
        self.config = config
        d = config.hidden_size
        self.token_embedding = nn.Embedding(config.codebook_size, d)
        self.query_embedding = nn.Embedding(config.num_parallel - 1, d) if config.num_parallel > 1 else None
        if config.caption_size:
            self.condition: nn.Module = CaptionEmbedding(config)
        else:
            # The last row stands for no class.
            self.condition = nn.Embedding((config.num_classes or 0) + int(config.condition_dropout > 0), d)
        step = config.drop_path / max(config.num_layers - 1, 1)
        self.blocks = nn.ModuleList(Block(config, layer * step) for layer in range(config.num_layers))
        self.norm = RMSNorm(config)
        self.output = nn.Linear(d, config.codebook_size, bias=False)
        self.token_dropout = nn.Dropout(config.token_dropout)
        self.initialize_weights()

    def initialize_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(self.output.weight)  # the first loss is exactly the logarithm of the vocabulary

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.config.latent_shape

    @property
    def num_parallel(self) -> int:
        return self.config.num_parallel

    @property
    def num_start(self) -> int:
        """Tokens that are decided one by one, before the learned queries are read."""
        return self.config.num_start

    def token_order(self, latent_shape: tuple[int, int, int] | None = None) -> Int[Tensor, " n"]:
        """Raster index of every token in decoding order."""
        shape = latent_shape or self.config.latent_shape
        regions = self.config.num_regions or self.num_parallel
        return region_order(shape, regions if self.config.order == "regions" else 1).to(self.device)

    def rotations(self, latent_shape: tuple[int, int, int]) -> Float[Tensor, "length pairs 2"]:
        """Rows of the rotary table for the whole sequence.

        A token turns by its own place in the grid, wherever it stands in the sequence. The rows of the prefix and of
        the learned queries are zero, so their queries and keys vanish: released weights were trained that way.
        """
        order, start, config = self.token_order(latent_shape), self.num_start, self.config
        grid = torch.cartesian_prod(*(torch.arange(size, device=self.device) for size in latent_shape))
        table = rotary_table(grid[order], config.rope_pairs, config.rope_base)
        prefix, queries = (
            table.new_zeros(n, *table.shape[1:]) for n in (config.prefix_length, config.num_parallel - 1)
        )
        return torch.cat([prefix, table[:start], queries, table[start:]])

    def group_mask(self, length: int) -> Bool[Tensor, "n n"]:
        """Who sees whom in the first `length` positions of the sequence."""
        config = self.config
        parallel = self.num_parallel if config.group_attention == "full" else 1
        visible = num_visible(length, config.prefix_length, parallel, self.device, config.sequential_start)
        return first_positions_mask(visible, length)

    # ------------------------------------------------------------------------------------------------ the condition

    def class_prefix(self, label: Int[Tensor, " b"] | None, batch_size: int) -> Float[Tensor, "b 1 d"]:
        """Embedding of the labels; without labels, of "no class"."""
        classes = self.config.num_classes or 0
        if label is None:
            if self.config.condition_dropout == 0:
                raise UserError("This model was trained without dropping its labels, so it needs one and no guidance.")
            label = torch.full((batch_size,), classes, device=self.device)
        elif label.device.type == "cpu" and not 0 <= int(label.min()) <= int(label.max()) <= classes:
            raise UserError(f"Class labels must lie in 0 … {classes - 1}; found {label.tolist()}.")
        return self.condition(label.to(self.device))[:, None]

    def caption_prefix(self, features: Float[Tensor, "b p c"] | None, batch_size: int) -> Float[Tensor, "b p d"]:
        """Rows of the captions' features; without features, of the stored "no caption"."""
        assert isinstance(self.condition, CaptionEmbedding)
        if features is None:
            return self.condition(self.condition.unconditional.expand(batch_size, -1, -1))
        expected = (self.config.caption_length, self.config.caption_size)
        if tuple(features.shape[1:]) != expected:
            raise UserError(f"Caption features must have the shape {expected}, found {tuple(features.shape[1:])}.")
        return self.condition(features.to(self.device, self.token_embedding.weight.dtype))

    def _dropped_condition(self, batch: dict[str, Any], generator: torch.Generator) -> Float[Tensor, "b p d"]:
        """Prefix of a training batch; each sample loses its condition with probability `condition_dropout`."""
        size = len(batch["tokens"])
        drop = torch.rand(size, generator=generator, device=generator.device) < self.config.condition_dropout
        if self.config.caption_size:
            assert isinstance(self.condition, CaptionEmbedding)
            features, nothing = batch["caption"].to(self.device), self.condition.unconditional
            return self.caption_prefix(torch.where(drop.to(self.device)[:, None, None], nothing, features), size)
        label = torch.where(drop.to(self.device), self.config.num_classes or 0, batch["label"].to(self.device))
        return self.class_prefix(label, size)

    # ---------------------------------------------------------------------------------------------------- training

    def advance(
        self,
        x: Float[Tensor, "b n d"],
        table: Float[Tensor, "n pairs 2"],
        mask: Bool[Tensor, "*b n m"] | None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "b2 n d"]:
        """All layers: what is worth compiling for decoding with a static cache."""
        for layer, block in enumerate(self.blocks):
            x = block(x, table, mask, layer, cache)
        return x

    def logits(
        self,
        sequence: Int[Tensor, "b n"],
        prefix: Float[Tensor, "b p d"],
        latent_shape: tuple[int, int, int] | None = None,
        prefix_mask: Bool[Tensor, "b p"] | None = None,
    ) -> Float[Tensor, "b n k"]:
        """Logits of every token given the tokens its step may see. `sequence` is a clip in decoding order.

        `prefix_mask` is False on padded prefix rows. The last n tokens are never read and may hold anything.
        """
        start, length = self.num_start, prefix.shape[1] - 1 + sequence.shape[1]
        tokens = self.token_embedding(sequence[:, : sequence.shape[1] - self.num_parallel])
        parts = [prefix, tokens[:, :start], *self._queries(len(sequence)), tokens[:, start:]]
        x = self.token_dropout(torch.cat(parts, dim=1))  # (b, length, d)
        mask = self.group_mask(length)
        if prefix_mask is not None:
            mask = hide_padding(mask, prefix_mask.to(self.device), torch.arange(length, device=self.device))
        table = self.rotations(latent_shape or self.config.latent_shape)[:length]
        x = self.advance(x, table, mask)[:, prefix.shape[1] - 1 :]
        return self.output(self.norm(x)).float()

    def loss(self, batch: dict[str, Any], generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean cross entropy of all tokens.

        Batch: `tokens` (b, t, h, w); `label` (b,), or `caption` (b, p, c) left-padded features with `caption_mask`
        (b, p) and, optionally, `valid` (b,), which says whose tokens count.
        """
        tokens = batch["tokens"].to(self.device)
        order = self.token_order(tuple(tokens.shape[1:]))
        sequence = tokens.flatten(1)[:, order]  # (b, n)
        prefix = self._dropped_condition(batch, generator)
        mask = batch["caption_mask"].bool() if "caption_mask" in batch else None
        logits = self.logits(sequence, prefix, tuple(tokens.shape[1:]), mask)
        terms = F.cross_entropy(logits.flatten(0, 1), sequence.flatten(), reduction="none").view_as(sequence)
        accuracy = (logits.detach().argmax(-1) == sequence).float().mean()
        if (valid := batch.get("valid")) is None:
            return terms.mean(), {"accuracy": accuracy}
        weights = valid.to(self.device, terms.dtype)[:, None].expand_as(terms)
        return (terms * weights).sum() / weights.sum().clamp(min=1), {"accuracy": accuracy}

    # ---------------------------------------------------------------------------------------------------- decoding

    def new_state(
        self,
        batch_size: int,
        latent_shape: tuple[int, int, int],
        prefix_mask: Bool[Tensor, "b p"] | None = None,
        static: bool = False,
    ) -> PARState:
        """Memory for decoding clips of `latent_shape`, which need not be the shape trained on.

        `static`: every step of one token, and every step of n, has the shapes of the others (see `StaticKVCache`).
        """
        config = self.config
        length = config.prefix_length - 1 + prod(latent_shape)  # the last group is predicted, never read
        shape = (config.num_layers, batch_size, config.kv_heads, length, config.head_size)
        kind = StaticKVCache if static else KVCache
        cache = kind.reserve(shape, self.device, self.token_embedding.weight.dtype)
        mask = None if prefix_mask is None else prefix_mask.to(self.device)
        return PARState(cache, self.rotations(latent_shape), mask, self.group_mask(length) if static else None)

    def _queries(self, batch_size: int) -> list[Float[Tensor, "b m d"]]:
        if self.query_embedding is None:
            return []
        return [repeat(self.query_embedding.weight, "m d -> b m d", b=batch_size)]

    def read_prefix(self, prefix: Float[Tensor, "b p d"], state: PARState) -> Float[Tensor, "b m k"]:
        """Logits of the first token, or of the first n without a sequential start."""
        x = prefix if self.num_start else torch.cat([prefix, *self._queries(len(prefix))], dim=1)
        return self._continued(x, state, first_wanted=prefix.shape[1] - 1)

    def decode(
        self, tokens: Int[Tensor, "b n"], state: PARState, num_wanted: int | None = None
    ) -> Float[Tensor, "b2 m k"]:
        """Reads the tokens just decided; returns the logits of those that follow: 1, or n after the first n.

        With a state for several copies of the batch, the copies read the same tokens. `num_wanted`: how many rows of
        the batch need logits; None for all.
        """
        return self._continued(self.step_input(tokens, self.opens_groups(state)), state, num_wanted)

    def opens_groups(self, state: PARState) -> bool:
        """Whether the sequential start is over and the learned queries are read in this step."""
        return state.cache.length == self.config.prefix_length - 1 + self.num_start

    def step_input(self, tokens: Int[Tensor, "b n"], with_queries: bool) -> Float[Tensor, "b n2 d"]:
        x = self.token_embedding(tokens)  # (b, n, d)
        return torch.cat([x, *self._queries(len(x))], dim=1) if with_queries else x

    def _continued(
        self, x: Float[Tensor, "b n d"], state: PARState, num_wanted: int | None = None, first_wanted: int = 0
    ) -> Float[Tensor, "b2 m k"]:
        """Logits after the next positions of the sequence, from position `first_wanted` of these on."""
        cache, n = state.cache, x.shape[1]
        if isinstance(cache, StaticKVCache):
            cache.aim(n)
            logits = self.static_step(x, state, num_wanted, first_wanted)
            cache.advance(n)
            return logits
        begin, end = cache.length, cache.length + n
        rows = torch.arange(begin, end, device=x.device)
        # All that is in the cache is visible, the new group included, so there is nothing to hide as a rule.
        everything = n == 1 or (begin >= self.config.prefix_length and self.config.group_attention == "full")
        mask = None if everything and state.prefix_mask is None else self.group_mask(end)[begin:]
        if mask is not None and state.prefix_mask is not None:
            mask = hide_padding(mask, state.prefix_mask, rows)
        x = self.advance(x, state.table[rows], mask, cache)
        cache.advance(n)
        return self.output(self.norm(x[:num_wanted, first_wanted:])).float()

    def static_step(
        self, x: Float[Tensor, "b n d"], state: PARState, num_wanted: int | None = None, first_wanted: int = 0
    ) -> Float[Tensor, "b2 m k"]:
        """Logits after the positions that a static cache is aimed at; where these are is read from tensors alone."""
        cache = state.cache
        assert isinstance(cache, StaticKVCache) and state.visible is not None
        rows = cache.places[x.shape[1]]
        mask = state.visible[rows]
        if state.prefix_mask is not None:
            mask = hide_padding(mask, state.prefix_mask, rows)
        x = self.advance(x, state.table[rows], mask, cache)
        return self.output(self.norm(x[:num_wanted, first_wanted:])).float()
