"""MAGI: masked autoregressive video generation with complete teacher forcing (arXiv 2501.12389).

Frames are generated one after another, and the tokens of a frame by masked prediction. In training, every frame is in
the sequence twice: complete, as history for later frames, and as a masked copy whose hidden tokens are predicted. A
mask in the attention over time lets each copy see complete earlier frames only (complete teacher forcing, §3.2), as in
sampling. Masked teacher forcing, the baseline, has the masked frames alone.

There is no official code: `docs/magi.md` lists which parts the paper states, which follow MAR (arXiv 2406.11838), whose
diffusion head draws the tokens, and which are our choice.

Top to bottom: the model, tokens, conditions, the network's pass, sampling, loss.

Shapes: b clips, f frame slots, n tokens and s = n + e positions of a frame (e of noise level and class), d the width,
k the length of a token vector or the digits of an id.
"""

from dataclasses import dataclass, replace
from typing import NotRequired, TypedDict

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor, nn

from mutoscope.layers.draws import Draws, rand, randint, randn
from mutoscope.layers.embeddings import INITIAL_STD, grid_sin_cos, init_normal, sin_cos
from mutoscope.layers.kv_cache import KVCache, RollingKVCache, StaticKVCache
from mutoscope.layers.masks import frame_history_mask, frame_slots, hide_padded_frames, visible_frames
from mutoscope.layers.precision import project_exactly
from mutoscope.layers.token_masking import truncated_normal
from mutoscope.models.base import VideoModel
from mutoscope.models.magi.conditions import FrameConditions, Words
from mutoscope.models.magi.config import MAX_INTERVAL, MAGIConfig
from mutoscope.models.magi.network import EPS, Block, DiffusionHead, Reach, TextAttention, init_xavier, projector

CORRUPTION_STEP = 0.04  # share of random ids per noise level: 0.2 at level 5, the largest share of the 1X world model


@dataclass(frozen=True)
class TrainingDraws:
    """The random draws of one training pass but those of dropout, for p masked frames of each clip."""

    order: Float[Tensor, "b p n"]
    """Uniform numbers whose ranks order the tokens of each masked frame."""
    mask_ratio: Float[Tensor, "b p"]
    """Share of hidden tokens of each masked frame."""
    level: Int[Tensor, " b"]
    """Noise level of each clip's history."""
    noise: Float[Tensor, "b f n k2"]
    """Gaussian noise; for ids, uniform numbers: whether an id is replaced, then the replacement's digits."""
    drop_condition: Bool[Tensor, " b"]
    drop_history: Bool[Tensor, " b"]


class MAGIBatch(TypedDict):
    """Training batch of `MAGI`. A missing condition is unknown for all clips."""

    tokens: Num[Tensor, "b *c f h w"]
    """Latents (b, c, f, h, w) of unit standard deviation, or ids (b, f, h, w)."""
    label: NotRequired[Int[Tensor, " b"]]
    """Class of every clip, in [0, num_classes); −1: unknown."""
    actions: NotRequired[Float[Tensor, "b f a"]]
    """Row t is done in frame t and leads to frame t + 1; NaN: unknown."""
    interval: NotRequired[Int[Tensor, " b"]]
    """Source frames from one frame to the next, 1…25; by default 1."""
    caption: NotRequired[Float[Tensor, "b w t"]]
    """Text features of every caption."""
    caption_mask: NotRequired[Bool[Tensor, "b w"]]
    """True on rows of `caption` that belong to a word."""
    length: NotRequired[Int[Tensor, " b"]]
    """Real frames of every clip; the others are padding."""
    history_only: NotRequired[Bool[Tensor, "b f"]]
    """Frames that later frames see and that are no target."""
    history: NotRequired[Num[Tensor, "b *c f h w"]]
    """Corrupted context: later frames see it in place of `tokens` (complete teacher forcing only)."""


class MAGI(VideoModel[MAGIConfig, MAGIBatch]):
    """Frames and their conditions in, one output per token for the diffusion head (`head`) out."""

    def __init__(self, config: MAGIConfig) -> None:
        super().__init__()
        self.config = config
        d, n = config.hidden_size, config.num_tokens
        parts = config.codebook_parts
        self.token_embedding = nn.Linear(config.token_size, d) if parts is None else None
        self.code_embeddings = None if parts is None else nn.ModuleList(nn.Embedding(size, d) for size in parts)
        self.mask_token = nn.Parameter(init_normal(d))
        self.role_embedding = nn.Parameter(init_normal(2, n, d))  # complete, masked
        self.interval_embedding = nn.Embedding(MAX_INTERVAL, d)
        self.noise_embedding = nn.Embedding(config.noise_levels + 1, d)
        self.noise_mixer = nn.Linear(2 * d, d) if config.noise_mode == "channel" else None
        # The last row means "no class".
        self.class_embedding = None if config.num_classes is None else nn.Embedding(config.num_classes + 1, d)
        self.action_embedding = None if config.action_size is None else projector(config.action_size, d)
        self.null_action = None if config.action_size is None else nn.Parameter(init_normal(d))
        self.word_embedding = None if config.text_size is None else nn.Linear(config.text_size, d)
        self.null_word = None if config.text_size is None else nn.Parameter(init_normal(d))
        self.norm_in, self.norm_out = nn.LayerNorm(d, eps=EPS), nn.LayerNorm(d, eps=EPS)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.head_position = nn.Parameter(init_normal(n, d))
        self.previous_embedding = nn.Linear(config.token_size, d) if config.predicts_change else None
        self.initialize_weights()
        # After the other weights: the weights of a seed depend on the order of draws.
        self.head = (
            DiffusionHead(
                config.token_size,
                d,
                config.head_size,
                config.head_layers,
                config.diffusion.output_size(config.token_size),
                config.diffusion.reads_lengths,
            )
            if parts is None
            else nn.Linear(d, sum(parts))
        )

    def initialize_weights(self) -> None:
        """MAR's rules (the paper refers to MAR). Layer norms start as the identity.

        Mask token, tables of roles and of head positions, null action and null word: N(0, 0.02²), applied where they
        are created (`init_normal`). The diffusion head follows `DiffusionHead.initialize_weights`; the head of
        discrete tokens keeps PyTorch's default.
        """
        # Matrices: Xavier uniform; biases: 0.
        init_xavier(self)
        for module in self.modules():
            # Tables of codes, intervals, noise levels and classes: N(0, 0.02²).
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=INITIAL_STD)
            # Output of text attention: 0, so that captions change nothing at first (our choice).
            if isinstance(module, TextAttention):
                nn.init.zeros_(module.output.weight)

    # ---------------------------------------------------------------------------------------------------- tokens

    def to_tokens(self, frames: Num[Tensor, "b *c f h w"]) -> Num[Tensor, "b f n k"]:
        """Vectors of (channel, row in patch, column in patch) in raster order, or the digits of an id."""
        if self.config.codebook_parts is None:
            p = self.config.patch_size
            return rearrange(frames, "b c f (h p) (w q) -> b f (h w) (c p q)", p=p, q=p)
        ids, digits = frames.flatten(2), []  # (b, f, n)
        for size in self.config.codebook_parts:
            digits.append(ids % size)
            ids = ids // size
        return torch.stack(digits, dim=-1)  # (b, f, n, k)

    def to_frames(self, tokens: Num[Tensor, "b f n k"]) -> Num[Tensor, "b *c f h w"]:
        """The inverse of `to_tokens`."""
        (rows, columns), p = self.config.grid, self.config.patch_size
        if self.config.codebook_parts is None:
            return rearrange(tokens, "b f (h w) (c p q) -> b c f (h p) (w q)", h=rows, w=columns, p=p, q=p)
        ids = torch.zeros_like(tokens[..., 0])
        for i in reversed(range(len(self.config.codebook_parts))):
            ids = ids * self.config.codebook_parts[i] + tokens[..., i]
        return ids.unflatten(2, (rows, columns))

    def embed_tokens(self, tokens: Num[Tensor, "*s k"]) -> Float[Tensor, "*s d"]:
        """Token vectors through a linear layer, or the sum of the embeddings of an id's digits."""
        if self.code_embeddings is None:
            assert self.token_embedding is not None
            return self.token_embedding(tokens)
        return torch.stack([table(tokens[..., i]) for i, table in enumerate(self.code_embeddings)]).sum(0)

    # ------------------------------------------------------------------------------------------------ conditions

    def words(self, conditions: FrameConditions) -> Words | None:
        """Caption as the blocks read it: the null word first, hidden if the caption has words of its own."""
        if self.word_embedding is None or self.null_word is None:
            return None
        b = len(conditions.interval)
        null = self.null_word.expand(b, 1, -1)
        if conditions.caption is None or conditions.caption_mask is None:
            return Words(null, torch.ones(b, 1, dtype=torch.bool, device=self.device))
        mask = conditions.caption_mask
        vectors = torch.cat([null, self.word_embedding(conditions.caption)], dim=1)
        return Words(vectors, torch.cat([~mask.any(1, keepdim=True), mask], dim=1))

    def action_vectors(self, conditions: FrameConditions) -> Float[Tensor, "b f d"] | None:
        """Embedded actions, the null action where one is unknown; None for a model without actions."""
        if self.action_embedding is None or self.null_action is None:
            return None
        if conditions.actions is None:
            return self.null_action.expand(len(conditions.interval), 1, -1)
        known = conditions.actions.isfinite().all(-1, keepdim=True)  # (b, f, 1)
        return torch.where(known, self.action_embedding(conditions.actions.nan_to_num()), self.null_action)

    # ------------------------------------------------------------------------------------------------ the pass

    def embed_slots(
        self,
        tokens: Float[Tensor, "b f n d"],
        conditions: FrameConditions,
        times: Int[Tensor, " f"],
        masked: Bool[Tensor, " f"],
        level: Int[Tensor, "b f"],
    ) -> Float[Tensor, "b f s d"]:
        """The transformer's input: extra positions (noise level, class), then tokens.

        `times`: 0-based frames, `masked`: which slots are masked copies, `level`: noise level of each slot's history.
        """
        b, f, _, d = tokens.shape
        shared = self.interval_embedding(conditions.interval - 1)[:, None]  # (b, 1, d)
        if not self.config.is_relative:
            shared = sin_cos(times, d).to(tokens.dtype)[None] + shared  # (b, f, d)
        actions = self.action_vectors(conditions)
        shared = (shared if actions is None else shared + actions)[:, :, None]  # (b, f, 1, d)
        noise = self.noise_embedding(level)[:, :, None]  # (b, f, 1, d)
        parts = [noise] if self.noise_mixer is None else []
        if self.class_embedding is not None:
            parts.append(self._class_vectors(conditions)[:, None, None].expand(b, f, 1, d))
        parts.append(tokens + self.role_embedding[masked.long()] + self._positions(tokens))
        h = torch.cat(parts, dim=2) + shared  # (b, f, s, d)
        if self.noise_mixer is not None:
            h = self.noise_mixer(torch.cat([h, noise.expand_as(h)], dim=-1))
        return self.norm_in(h)

    def _class_vectors(self, conditions: FrameConditions) -> Float[Tensor, "b d"]:
        assert self.class_embedding is not None
        unknown = torch.full_like(conditions.interval, -1)
        label = unknown if conditions.label is None else conditions.label
        return self.class_embedding(torch.where(label < 0, self.class_embedding.num_embeddings - 1, label))

    def _positions(self, tokens: Float[Tensor, "b f n d"]) -> Float[Tensor, "n d"]:
        """Fixed features of row and column; the row's come first (our choice; the paper says sinusoidal)."""
        column, row = grid_sin_cos(self.config.grid, tokens.shape[-1], tokens.device).chunk(2, dim=-1)
        return torch.cat([row, column], dim=-1).to(tokens.dtype)

    def run_blocks(
        self,
        h: Float[Tensor, "b f s d"],
        reach: Reach,
        words: Words | None = None,
        cache: KVCache | None = None,
        draws: Draws | None = None,
    ) -> Float[Tensor, "b f n d"]:
        """The blocks; returns the outputs of tokens as the head reads them.

        `reach`: attention over time between slots, in the cache's order. `draws`: of dropout; None for none.
        """
        for layer, block in enumerate(self.blocks):
            h = block(h, reach, words, cache, layer, draws)
        return self.norm_out(h[:, :, -self.config.num_tokens :]) + self.head_position

    def reach(
        self, mask: Bool[Tensor, "*#b f g"], times: Int[Tensor, " f"], held: Int[Tensor, " g"] | None = None
    ) -> Reach:
        """What the frames `times` see of the frames `held` (themselves, if None) under a mask."""
        if not self.config.is_relative:
            return Reach(mask)
        held = times if held is None else held
        longest = self.config.reach - 1 + self.config.keeps_first  # that of a first frame behind the window
        return Reach(mask, (times[:, None] - held).clamp(0, longest))

    # -------------------------------------------------------------------------------------------------- sampling

    def reserve(self, batch_size: int, num_frames: int, static: bool = False) -> KVCache:
        """Cache for `num_frames` frames, the one in progress included; `static`: see `StaticKVCache`."""
        layers, batch, heads, size = self._cache_shape(batch_size)
        shape, kind = (layers, batch, heads, num_frames, size), StaticKVCache if static else KVCache
        return kind.reserve(shape, self.device, self.mask_token.dtype)

    def reserve_rolling(self, batch_size: int) -> RollingKVCache:
        """Cache of the frames that a stream without an end sees. Raises ValueError with absolute positions."""
        if not self.config.is_relative:
            raise ValueError("absolute positions do not roll")
        shape, dtype = self._cache_shape(batch_size), self.mask_token.dtype
        return RollingKVCache.rolling(shape, self.config.reach, self.config.keeps_first, self.device, dtype)

    def _cache_shape(self, batch_size: int) -> tuple[int, int, int, int]:
        """Layers, rows, heads and the size of a head."""
        config = self.config
        positions = config.num_tokens + (config.noise_mode == "token") + (config.num_classes is not None)
        return config.num_layers, batch_size * positions, config.num_heads, config.hidden_size // config.num_heads

    def observe(
        self, cache: KVCache, tokens: Num[Tensor, "b f n k"], conditions: FrameConditions, first: int, level: int = 0
    ) -> None:
        """Reads complete frames into the cache. `first`: 0-based time of the first one; `level`: their noise level."""
        num_frames = tokens.shape[1]
        cache.aim(num_frames)
        self.observe_step(cache, tokens, conditions, torch.arange(first, first + num_frames, device=self.device), level)
        cache.advance(num_frames)

    def observe_step(
        self,
        cache: KVCache,
        tokens: Num[Tensor, "b f n k"],
        conditions: FrameConditions,
        times: Int[Tensor, " f"],
        level: int,
    ) -> Float[Tensor, "b f n d"]:
        """`observe` at the positions that the cache is aimed at; with a static cache it depends on tensors alone."""
        masked = torch.full_like(times, self.config.teacher_forcing == "masked", dtype=torch.bool)
        levels = self.frame_levels(torch.full((len(tokens),), level, device=self.device), times)
        h = self.embed_slots(self.embed_tokens(tokens), conditions, times, masked, levels)
        return self.run_blocks(h, self._cached_reach(cache, len(times)), self.words(conditions), cache)

    def _cached_reach(self, cache: KVCache, num_frames: int) -> Reach:
        """What the next `num_frames` frames see of what the cache holds with them."""
        held, now = cache.held(num_frames), cache.now(num_frames)  # (g,), (f,)
        return self.reach(visible_frames(now, held, self.config.window, self.config.keeps_first), now, held)

    def restore(
        self,
        cache: KVCache,
        tokens: Num[Tensor, "b n k"],
        hidden: Bool[Tensor, "b n"],
        conditions: FrameConditions,
        time: int,
        blind: Bool[Tensor, " b"] | None = None,
        previous: Float[Tensor, "b n k"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Outputs for one frame in progress, whose `hidden` tokens are unknown. Samples in `blind` see no history.

        `previous`: tokens of the frame before (zeros without one), for a model that predicts the change.

        The length of the cache does not change, so that the next step overwrites this frame's keys and values.
        """
        cache.aim(1)
        times = torch.tensor([time], device=self.device)
        return self.restore_step(cache, tokens, hidden, conditions, times, blind, previous)

    def restore_step(
        self,
        cache: KVCache,
        tokens: Num[Tensor, "b n k"],
        hidden: Bool[Tensor, "b n"],
        conditions: FrameConditions,
        times: Int[Tensor, " 1"],
        blind: Bool[Tensor, " b"] | None,
        previous: Float[Tensor, "b n k"] | None,
    ) -> Float[Tensor, "b n d"]:
        """`restore` at the position that the cache is aimed at; with a static cache it depends on tensors alone."""
        embedded = torch.where(hidden[..., None], self.mask_token, self.embed_tokens(tokens))  # (b, n, d)
        if self.previous_embedding is not None and previous is not None:
            embedded = embedded + self.previous_embedding(previous)
        embedded = embedded[:, None]  # (b, 1, n, d)
        levels = torch.zeros(len(tokens), 1, dtype=torch.int64, device=self.device)
        h = self.embed_slots(embedded, conditions, times, torch.ones_like(times, dtype=torch.bool), levels)
        reach = self._cached_reach(cache, 1)
        if blind is not None:
            itself = cache.held(1) == cache.now(1)  # (g,)
            reach = replace(reach, mask=reach.mask & (itself | ~blind[:, None, None]))  # (b, 1, g)
        return self.run_blocks(h, reach, self.words(conditions), cache)[:, 0]

    @property
    def denoiser(self) -> DiffusionHead:
        """The diffusion head of a model of continuous tokens."""
        assert isinstance(self.head, DiffusionHead), "discrete tokens are drawn from code_logits"
        return self.head

    def code_logits(self, z: Float[Tensor, "*s d"]) -> Float[Tensor, "*s k"]:
        """Logits over the digits of discrete tokens, from the transformer's outputs."""
        return project_exactly(self.head, z)

    # -------------------------------------------------------------------------------------------------- training

    def forward(
        self,
        tokens: Num[Tensor, "b f n k"],
        conditions: FrameConditions,
        draws: TrainingDraws,
        length: Int[Tensor, " b"] | None = None,
        history: Num[Tensor, "b f n k"] | None = None,
        dropout: Draws | None = None,
    ) -> tuple[Float[Tensor, "b p n d"], Bool[Tensor, "b p n"]]:
        """The pass of training (§3.2): outputs for p masked frames, and which of their tokens were hidden.

        `length`: real frames of every clip. `history`: later frames see it in place of `tokens`. `dropout`: what the
        blocks' dropout draws from; None for none.
        """
        config, (_, f, n, _) = self.config, tokens.shape
        hidden = draws.order.argsort(-1).argsort(-1) < torch.ceil(draws.mask_ratio * n)[..., None]  # (b, p, n)
        seen = tokens if history is None or not self.is_complete else history
        noisy = self.embed_tokens(self.add_noise(seen, draws))  # (b, f, n, d)
        if self.is_complete:
            # No slot reads the last complete frame, hence "trimmed" and [:, :-1].
            times, masked = frame_slots(f, config.num_given, trimmed=True)
            copies = self.embed_tokens(tokens[:, config.num_given :])
            copies = torch.where(hidden[..., None], self.mask_token, copies)
            if self.previous_embedding is not None:
                copies = copies + self.previous_embedding(self.previous_tokens(seen, draws))
            embedded = torch.cat([noisy[:, :-1], copies], dim=1)  # (b, f - 1 + p, n, d)
            mask = frame_history_mask(times, masked, config.window, config.keeps_first).to(tokens.device)
        else:
            times, masked = torch.arange(f), torch.ones(f, dtype=torch.bool)
            embedded = torch.where(hidden[..., None], self.mask_token, noisy)  # (b, f, n, d)
            mask = visible_frames(times, times, config.window, config.keeps_first).to(tokens.device)
        times, masked = times.to(tokens.device), masked.to(tokens.device)
        mask = self._hide(mask, times, masked, draws, length)
        level = self.frame_levels(draws.level, times) * (~masked if self.is_complete else masked)
        if conditions.actions is not None:
            conditions = replace(conditions, actions=conditions.actions[:, times])
        h = self.embed_slots(embedded, conditions, times, masked, level)
        z = self.run_blocks(h, self.reach(mask, times), self.words(conditions), draws=dropout)
        return z[:, -hidden.shape[1] :], hidden  # the masked copies are the last p slots

    def previous_tokens(self, seen: Float[Tensor, "b f n k"], draws: TrainingDraws) -> Float[Tensor, "b p n k"]:
        """The history's frame before each target, as the network sees it: with noise, and zeros where there is none."""
        before = F.pad(self.add_noise(seen, draws)[:, :-1], (0, 0, 0, 0, 1, 0))  # (b, f, n, k)
        return before[:, self.config.num_given :].masked_fill(draws.drop_history[:, None, None, None], 0)

    def _hide(
        self,
        mask: Bool[Tensor, "f g"],
        times: Int[Tensor, " f"],
        masked: Bool[Tensor, " f"],
        draws: TrainingDraws,
        length: Int[Tensor, " b"] | None,
    ) -> Bool[Tensor, "*b f g"]:
        """Hides padded frames, and the history of the clips that `draws` names, in the mask over slots."""
        if length is not None:
            mask = hide_padded_frames(mask, times, length)  # (b, f, g)
        if self.config.history_dropout > 0:
            itself = torch.eye(len(times), dtype=torch.bool, device=mask.device)
            mask = mask & (itself | ~(draws.drop_history[:, None] & masked)[..., None])  # (b, f, g)
        return mask

    def loss(self, batch: MAGIBatch, generator: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss over the hidden tokens of a clip's target frames (see `token_loss`), then mean over clips.

        A clip without any such token counts 0. MAR draws one mask ratio for a batch, so that its mean over the hidden
        tokens of all images is this mean too.
        """
        tokens = self.to_tokens(batch["tokens"])  # (b, f, n, k)
        draws = self.draw(tokens, generator)
        history = self.to_tokens(batch["history"]) if "history" in batch else None
        conditions, dropout = self.batch_conditions(batch, draws), self.dropout_draws(generator)
        z, hidden = self(tokens, conditions, draws, batch.get("length"), history, dropout)
        targets = tokens[:, self.config.num_given :] if self.is_complete else tokens  # (b, p, n, k)
        first = tokens.shape[1] - targets.shape[1]
        if (length := batch.get("length")) is not None:
            frames = torch.arange(first, tokens.shape[1], device=tokens.device)
            hidden = hidden & (frames < length[:, None])[..., None]
        if (history_only := batch.get("history_only")) is not None:
            hidden = hidden & ~history_only[:, first:, None]
        weights = clip_weights(hidden)[hidden]  # (r,)
        if self.config.is_discrete:
            return self.code_loss(z[hidden], targets[hidden], weights)
        repeat = self.config.loss_repeat
        steps = self.config.diffusion.draw_steps((*hidden.shape, repeat), generator).to(z.device)[hidden]
        noise = randn(generator, *hidden.shape, repeat, targets.shape[-1]).to(z.device)[hidden]  # (r, repeat, k)
        previous = None
        if self.config.predicts_change:
            previous = self.previous_tokens(tokens if history is None else history, draws)[hidden]
        return self.token_loss(z[hidden], targets[hidden], weights, steps, noise, previous)

    @property
    def is_complete(self) -> bool:
        return self.config.teacher_forcing == "complete"

    def draw(self, tokens: Num[Tensor, "b f n k"], generator: Draws) -> TrainingDraws:
        """A mask for every masked frame of every clip, and one level of noise per clip."""
        b, f, n, _ = tokens.shape
        config = self.config
        p = f - config.num_given if self.is_complete else f
        order = rand(generator, b, p, n)
        ratio = truncated_normal(rand(generator, b, p), config.token_mask_ratio)
        level = randint(generator, config.noise_levels + 1, b)
        if config.is_discrete:
            noise = rand(generator, b, f, n, 1 + len(config.codebook_parts or ()))
        else:
            noise = randn(generator, *tokens.shape)
        drops = rand(generator, b, 2)
        drop = drops[:, 0] < config.condition_dropout, drops[:, 1] < config.history_dropout
        return TrainingDraws(*(part.to(tokens.device) for part in (order, ratio, level, noise, *drop)))

    def batch_conditions(self, batch: MAGIBatch, draws: TrainingDraws) -> FrameConditions:
        """Conditions of a training batch, hidden where `draws` says so. Actions move on to the frame they lead to."""
        dropped, b = draws.drop_condition, len(batch["tokens"])
        interval = batch.get("interval", torch.ones(b, dtype=torch.int64, device=dropped.device))
        label, actions, mask = batch.get("label"), batch.get("actions"), batch.get("caption_mask")
        if actions is not None:  # row t leads to frame t + 1; the action before frame 0 is unknown
            actions = F.pad(actions[:, :-1], (0, 0, 1, 0), value=torch.nan)
            actions = actions.masked_fill(dropped[:, None, None] & self.config.drop_actions, torch.nan)
        return FrameConditions(
            interval,
            None if label is None else label.masked_fill(dropped, -1),
            actions,
            batch.get("caption"),
            None if mask is None else mask & ~dropped[:, None],
        )

    def frame_levels(self, level: Int[Tensor, " b"], times: Int[Tensor, " f"]) -> Int[Tensor, "b f"]:
        """Noise level of every slot of history, from one level per clip."""
        return level[:, None] * (times > 0) if self.config.clean_first_frame else level[:, None].expand(-1, len(times))

    def add_noise(self, tokens: Num[Tensor, "b f n k"], draws: TrainingDraws) -> Num[Tensor, "b f n k"]:
        """History with noise: x + σ_l ε, or a share of 0.04 l of all ids replaced by random ones."""
        times = torch.arange(tokens.shape[1], device=tokens.device)
        level = self.frame_levels(draws.level, times)[..., None, None]  # (b, f, 1, 1)
        if self.config.codebook_parts is None:
            return tokens + self.config.noise_step * level * draws.noise
        sizes = torch.tensor(self.config.codebook_parts, device=tokens.device)
        replaced = draws.noise[..., :1] < CORRUPTION_STEP * level  # (b, f, n, 1)
        return torch.where(replaced, (draws.noise[..., 1:] * sizes).long(), tokens)

    def code_loss(
        self, z: Float[Tensor, "r d"], targets: Int[Tensor, "r k"], weights: Float[Tensor, " r"]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of the digits of r hidden tokens, weighted by token."""
        logits = self.code_logits(z).float().split(self.config.codebook_parts or (), dim=-1)
        terms = [F.cross_entropy(part, targets[:, i], reduction="none") for i, part in enumerate(logits)]  # (r,) each
        loss = (torch.stack(terms).sum(0) * weights).sum()
        return loss, {"cross_entropy": loss.detach()}

    def token_loss(
        self,
        z: Float[Tensor, "r d"],
        targets: Float[Tensor, "r k"],
        weights: Float[Tensor, " r"],
        steps: Int[Tensor, "r repeat"],
        noise: Float[Tensor, "r repeat k"],
        previous: Float[Tensor, "r k"] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The diffusion loss of MAR's head, `loss_repeat` draws for each of r hidden tokens, weighted by token.

        `previous`: what the head's prediction is added to.
        """
        diffusion, repeat = self.config.diffusion, self.config.loss_repeat
        z, targets = z.repeat(repeat, 1), targets.repeat(repeat, 1)  # (repeat*r, d), (repeat*r, k)
        weights = weights.repeat(repeat) / repeat
        steps, noise = steps.T.flatten(), noise.transpose(0, 1).flatten(0, 1)  # (repeat*r,), (repeat*r, k)
        condition = self.head.condition(z)
        base = None if previous is None else F.pad(previous.repeat(repeat, 1), (0, previous.shape[-1]))

        def predict(rows: Tensor | None, x: Tensor, times: Tensor, lengths: Tensor | None = None) -> Tensor:
            chosen = condition if rows is None else condition[rows]
            output = self.head(x, chosen, self.head.time(times, lengths))  # (m, o)
            return output if base is None else output + (base if rows is None else base[rows])

        terms = diffusion.terms(predict, targets, noise, steps)
        sums = {name: (term * weights).sum() for name, term in terms.items()}
        return torch.stack([*sums.values()]).sum(), {name: value.detach() for name, value in sums.items()}


def clip_weights(counted: Bool[Tensor, "b p n"]) -> Float[Tensor, "b p n"]:
    """Weights of the counted tokens in a mean over each clip and then over clips; 0 elsewhere."""
    share = counted.flatten(1).float()  # (b, p*n)
    return (share / share.sum(1, keepdim=True).clamp(min=1) / len(share)).view(counted.shape)
