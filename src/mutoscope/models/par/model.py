"""PAR and LlamaGen: a decoder-only transformer over discrete tokens that predicts n distant tokens per step.

PAR: arXiv 2412.15119; LlamaGen, arXiv 2406.06525, is the case n = 1. Images are clips of one frame.

Top to bottom: the sequence, the condition, the loss, decoding with a cache.

Shapes: b clips (b2: several copies of them, for guidance), p prefix rows, n positions, d the width, k codes.
"""

from dataclasses import dataclass
from math import prod
from typing import NotRequired, TypedDict

import torch
import torch.nn.functional as F
from einops import repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mutoscope.errors import UserError
from mutoscope.layers.draws import Draws, dropout, rand
from mutoscope.layers.kv_cache import KVCache, StaticKVCache
from mutoscope.layers.masks import first_positions_mask, hide_padding, num_visible
from mutoscope.layers.positions import rotary_table
from mutoscope.layers.precision import project_exactly
from mutoscope.layers.token_order import region_order
from mutoscope.models.base import VideoModel
from mutoscope.models.par.config import PARConfig
from mutoscope.models.par.network import Block, CaptionEmbedding, RMSNorm

WEIGHT_STD = 0.02  # of the normal that weights start from (LlamaGen)


@dataclass
class PARState:
    """State of decoding one batch of clips."""

    cache: KVCache
    """Keys and values of the positions decoded so far."""
    table: Float[Tensor, "length pairs 2"]
    """Rotations of the whole sequence (see `PAR.rotations`)."""
    prefix_mask: Bool[Tensor, "b p"] | None = None
    """False on padded prefix columns; None without padding."""
    visible: Bool[Tensor, "n n"] | None = None
    """Attention mask of the whole sequence, for a static cache only."""

    def keep_first(self, batch_size: int) -> None:
        """Drops all samples but the first ones: the unconditional half, once guidance is over."""
        if self.cache.keys.shape[1] == batch_size:
            return
        self.cache = self.cache.first(batch_size)
        self.prefix_mask = None if self.prefix_mask is None else self.prefix_mask[:batch_size]


class PARBatch(TypedDict):
    """Training batch of `PAR`: `label` for a class-conditional model, `caption` for a text-conditional one."""

    tokens: Int[Tensor, "b t h w"]
    """Codes of the clips, in [0, codebook_size)."""
    label: NotRequired[Int[Tensor, " b"]]
    """Class of every clip, in [0, num_classes)."""
    caption: NotRequired[Float[Tensor, "b p c"]]
    """Left-padded text features of every caption."""
    caption_mask: NotRequired[Bool[Tensor, "b p"]]
    """False on padded rows of `caption`."""


class PAR(VideoModel[PARConfig, PARBatch]):
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
            # The last row means "no class".
            self.condition = nn.Embedding((config.num_classes or 0) + int(config.condition_dropout > 0), d)
        step = config.drop_path / max(config.num_layers - 1, 1)  # the rate grows linearly from layer to layer
        self.blocks = nn.ModuleList(Block(config, layer * step) for layer in range(config.num_layers))
        self.norm = RMSNorm(config)
        self.output = nn.Linear(d, config.codebook_size, bias=False)
        self.initialize_weights()

    def initialize_weights(self) -> None:
        """LlamaGen's released code. The norms start at 1; there are no biases."""
        # Matrices and embeddings, learned queries included: N(0, 0.02²).
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=WEIGHT_STD)
        # Output layer: 0, so that the first loss is exactly the logarithm of the vocabulary.
        nn.init.zeros_(self.output.weight)

    # -------------------------------------------------------------------------------------------------- the sequence

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.config.latent_shape

    @property
    def num_parallel(self) -> int:
        return self.config.num_parallel

    @property
    def num_start(self) -> int:
        """Tokens that are decoded one by one, before the learned queries are read."""
        return self.num_parallel if self.config.sequential_start else 0

    def token_order(self, latent_shape: tuple[int, int, int] | None = None) -> Int[Tensor, " n"]:
        """Raster index of every token in decoding order."""
        shape = latent_shape or self.config.latent_shape
        regions = self.config.num_regions or self.num_parallel
        return region_order(shape, regions if self.config.order == "regions" else 1).to(self.device)

    def rotations(self, latent_shape: tuple[int, int, int]) -> Float[Tensor, "length pairs 2"]:
        """Rows of the rotary table for the whole sequence.

        The rotation of a token depends on its coordinates in the grid, not on its index in the sequence. The rows of
        the prefix and of the learned queries are zero, so their queries and keys vanish: a quirk of the official code
        that released weights depend on.
        """
        order, start, config = self.token_order(latent_shape), self.num_start, self.config
        grid = torch.cartesian_prod(*(torch.arange(size, device=self.device) for size in latent_shape))  # (t*h*w, 3)
        table = rotary_table(grid[order], config.rope_pairs, config.rope_base)  # (t*h*w, pairs, 2)
        prefix, queries = (
            table.new_zeros(n, *table.shape[1:]) for n in (config.prefix_length, config.num_parallel - 1)
        )
        return torch.cat([prefix, table[:start], queries, table[start:]])

    def group_mask(self, length: int) -> Bool[Tensor, "n n"]:
        """Attention mask of the first `length` positions of the sequence: rows attend to True columns."""
        config = self.config
        parallel = self.num_parallel if config.group_attention == "full" else 1
        visible = num_visible(length, config.prefix_length, parallel, self.device, config.sequential_start)
        return first_positions_mask(visible, length)

    # ------------------------------------------------------------------------------------------------ the condition

    def class_prefix(self, label: Int[Tensor, " b"] | None, batch_size: int) -> Float[Tensor, "b 1 d"]:
        """Embedding of the labels; without labels, of "no class". Raises UserError for a label out of range."""
        classes = self.config.num_classes or 0
        if label is None:
            if self.config.condition_dropout == 0:
                raise UserError("This model was trained without dropping its labels, so it needs one and no guidance.")
            label = torch.full((batch_size,), classes, device=self.device)
        elif label.device.type == "cpu" and not 0 <= int(label.min()) <= int(label.max()) <= classes:
            raise UserError(f"Class labels must lie in 0 … {classes - 1}; found {label.tolist()}.")
        return self.condition(label.to(self.device))[:, None]

    def caption_prefix(self, features: Float[Tensor, "b p c"] | None, batch_size: int) -> Float[Tensor, "b p d"]:
        """Prefix rows of the captions; without features, of the stored "no caption".

        Raises UserError for features of another shape.
        """
        assert isinstance(self.condition, CaptionEmbedding)
        if features is None:
            return self.condition(self.condition.unconditional.expand(batch_size, -1, -1))
        expected = (self.config.caption_length, self.config.caption_size)
        if tuple(features.shape[1:]) != expected:
            raise UserError(f"Caption features must have the shape {expected}, found {tuple(features.shape[1:])}.")
        return self.condition(features.to(self.device, self.token_embedding.weight.dtype))

    # ---------------------------------------------------------------------------------------------------- training

    def forward(
        self,
        sequence: Int[Tensor, "b n"],
        prefix: Float[Tensor, "b p d"],
        latent_shape: tuple[int, int, int] | None = None,
        prefix_mask: Bool[Tensor, "b p"] | None = None,
        draws: Draws | None = None,
    ) -> Float[Tensor, "b n k"]:
        """Logits of every token, conditioned on the tokens that its step may see. `sequence` is in decoding order.

        `prefix_mask` is False on padded prefix rows. The last n tokens are never read and may hold anything. `draws`:
        of dropout and stochastic depth; None for neither.
        """
        start, length = self.num_start, prefix.shape[1] - 1 + sequence.shape[1]
        tokens = self.token_embedding(sequence[:, : sequence.shape[1] - self.num_parallel])  # (b, n - parallel, d)
        parts = [prefix, tokens[:, :start], *self._queries(len(sequence)), tokens[:, start:]]
        x = dropout(torch.cat(parts, dim=1), self.config.token_dropout, draws)  # (b, length, d)
        mask = self.group_mask(length)  # (length, length)
        if prefix_mask is not None:
            mask = hide_padding(mask, prefix_mask.to(self.device), torch.arange(length, device=self.device))
        table = self.rotations(latent_shape or self.config.latent_shape)[:length]
        x = self.run_blocks(x, table, mask, draws=draws)[:, prefix.shape[1] - 1 :]  # (b, n, d)
        return project_exactly(self.output, self.norm(x)).float()

    def run_blocks(
        self,
        x: Float[Tensor, "b n d"],
        table: Float[Tensor, "n pairs 2"],
        mask: Bool[Tensor, "*b n m"] | None,
        cache: KVCache | None = None,
        draws: Draws | None = None,
    ) -> Float[Tensor, "b2 n d"]:
        """All layers. Shapes repeat from step to step with a static cache, so this is the part to compile."""
        for layer, block in enumerate(self.blocks):
            x = block(x, table, mask, layer, cache, draws)
        return x

    def loss(self, batch: PARBatch, generator: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean cross-entropy of all tokens."""
        tokens = batch["tokens"].to(self.device)
        latent_shape = (tokens.shape[1], tokens.shape[2], tokens.shape[3])
        sequence = tokens.flatten(1)[:, self.token_order(latent_shape)]  # (b, n)
        prefix = self.batch_prefix(batch, generator)
        mask = batch["caption_mask"].bool() if "caption_mask" in batch else None
        logits = self(sequence, prefix, latent_shape, mask, self.dropout_draws(generator))
        return self.sequence_loss(logits, sequence)

    def batch_prefix(self, batch: PARBatch, generator: Draws) -> Float[Tensor, "b p d"]:
        """Prefix of a training batch; each sample loses its condition with probability `condition_dropout`."""
        size = len(batch["tokens"])
        drop = rand(generator, size) < self.config.condition_dropout
        drop = drop.to(self.device)
        if self.config.caption_size:
            assert isinstance(self.condition, CaptionEmbedding)
            if "caption" not in batch:
                raise UserError(f"This model needs the caption of every clip; found the keys {sorted(batch)}.")
            features, unconditional = batch["caption"].to(self.device), self.condition.unconditional
            return self.caption_prefix(torch.where(drop[:, None, None], unconditional, features), size)
        if "label" not in batch:
            raise UserError(f"This model needs the label of every clip; found the keys {sorted(batch)}.")
        label = torch.where(drop, self.config.num_classes or 0, batch["label"].to(self.device))
        return self.class_prefix(label, size)

    @staticmethod
    def sequence_loss(
        logits: Float[Tensor, "b n k"], sequence: Int[Tensor, "b n"], weights: Float[Tensor, " b"] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean cross-entropy and accuracy. With `weights`, the loss is a mean weighted by sample.

        The weights are those of LlamaGen's text-to-image training, which excludes samples without a usable caption.
        """
        flat = logits.flatten(0, 1).float()  # (b*n, k)
        terms = F.cross_entropy(flat, sequence.flatten(), reduction="none").view_as(sequence)  # (b, n)
        parts = {"accuracy": (logits.detach().argmax(-1) == sequence).float().mean()}
        if weights is None:
            return terms.mean(), parts
        weighted = weights.to(terms)[:, None].expand_as(terms)
        return (terms * weighted).sum() / weighted.sum().clamp(min=1), parts

    # ---------------------------------------------------------------------------------------------------- decoding

    def new_state(
        self,
        batch_size: int,
        latent_shape: tuple[int, int, int],
        prefix_mask: Bool[Tensor, "b p"] | None = None,
        static: bool = False,
    ) -> PARState:
        """State for decoding clips of `latent_shape`, which may differ from the shape of training.

        `static`: all steps of one token have equal shapes, and all steps of n tokens (see `StaticKVCache`).
        """
        config = self.config
        length = config.prefix_length - 1 + prod(latent_shape)  # the last group is predicted, never read
        shape = (config.num_layers, batch_size, config.kv_heads, length, config.head_size)
        kind = StaticKVCache if static else KVCache
        cache = kind.reserve(shape, self.device, self.token_embedding.weight.dtype)
        mask = None if prefix_mask is None else prefix_mask.to(self.device)
        return PARState(cache, self.rotations(latent_shape), mask, self.group_mask(length) if static else None)

    def _queries(self, batch_size: int) -> list[Float[Tensor, "b m d"]]:
        """The n - 1 learned queries; an empty list for n = 1."""
        if self.query_embedding is None:
            return []
        return [repeat(self.query_embedding.weight, "m d -> b m d", b=batch_size)]

    def read_prefix(self, prefix: Float[Tensor, "b p d"], state: PARState) -> Float[Tensor, "b m k"]:
        """Logits of the first token, or of the first n without a sequential start."""
        x = prefix if self.num_start else torch.cat([prefix, *self._queries(len(prefix))], dim=1)
        return self._next_logits(x, state, first_wanted=prefix.shape[1] - 1)

    def decode(
        self, tokens: Int[Tensor, "b n"], state: PARState, num_wanted: int | None = None
    ) -> Float[Tensor, "b2 m k"]:
        """Reads the tokens decoded last; returns the logits of the following ones: 1, or n after the first n.

        With a state for several copies of the batch, the copies read the same tokens. `num_wanted`: how many rows of
        the batch need logits; None for all.
        """
        return self._next_logits(self.step_input(tokens, self.opens_groups(state)), state, num_wanted)

    def opens_groups(self, state: PARState) -> bool:
        """Whether the sequential start is over and the learned queries are read in this step."""
        return state.cache.length == self.config.prefix_length - 1 + self.num_start

    def step_input(self, tokens: Int[Tensor, "b n"], with_queries: bool) -> Float[Tensor, "b n2 d"]:
        """Embeddings of the tokens, followed by the learned queries in the step that opens the groups."""
        x = self.token_embedding(tokens)  # (b, n, d)
        return torch.cat([x, *self._queries(len(x))], dim=1) if with_queries else x

    def _next_logits(
        self, x: Float[Tensor, "b n d"], state: PARState, num_wanted: int | None = None, first_wanted: int = 0
    ) -> Float[Tensor, "b2 m k"]:
        """Appends positions to the sequence; returns the logits at these, from position `first_wanted` of `x` on."""
        cache, n = state.cache, x.shape[1]
        if isinstance(cache, StaticKVCache):
            cache.aim(n)
            logits = self.static_step(x, state, num_wanted, first_wanted)
            cache.advance(n)
            return logits
        begin, end = cache.length, cache.length + n
        rows = torch.arange(begin, end, device=x.device)
        # All cached positions and the whole new group are visible, so that most steps need no mask.
        everything = n == 1 or (begin >= self.config.prefix_length and self.config.group_attention == "full")
        mask = None if everything and state.prefix_mask is None else self.group_mask(end)[begin:]
        if mask is not None and state.prefix_mask is not None:
            mask = hide_padding(mask, state.prefix_mask, rows)
        x = self.run_blocks(x, state.table[rows], mask, cache)  # (b2, n, d)
        cache.advance(n)
        return project_exactly(self.output, self.norm(x[:num_wanted, first_wanted:]))

    def static_step(
        self, x: Float[Tensor, "b n d"], state: PARState, num_wanted: int | None = None, first_wanted: int = 0
    ) -> Float[Tensor, "b2 m k"]:
        """`decode` at the positions that a static cache is aimed at; depends on tensors alone, for CUDA graphs."""
        cache = state.cache
        assert isinstance(cache, StaticKVCache) and state.visible is not None
        rows = cache.positions[x.shape[1]]  # (n,)
        mask = state.visible[rows]  # (n, length)
        if state.prefix_mask is not None:
            mask = hide_padding(mask, state.prefix_mask, rows)
        x = self.run_blocks(x, state.table[rows], mask, cache)  # (b2, n, d)
        return project_exactly(self.output, self.norm(x[:num_wanted, first_wanted:]))
