"""NOVA: text to image and video, frame by frame and set by set, without vector quantization (arXiv 2412.14169).

Four networks on continuous latents. The temporal encoder reads the text and the finished frames in coarse tokens
(§3.2); scaling and shift turn its output for a frame into a change of its output for the first frame (§3.3); the
spatial encoder fills in a frame's fine tokens, set by set in random order, with that output as context; a small
diffusion network draws each token from the spatial encoder's output for it (§3.4).

Top to bottom: states, the model, conditions, temporal encoder, spatial encoder, loss.

Shapes: b clips, t frames, m coarse and n fine tokens per frame, d the width, p the length of a token vector.
"""

from dataclasses import dataclass
from typing import NotRequired, TypedDict

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mutoscope.errors import UserError
from mutoscope.layers.draws import Draws, of_batch, rand, randn
from mutoscope.layers.embeddings import INITIAL_STD, grid_sin_cos, init_normal
from mutoscope.layers.kv_cache import IndexedKVCache, KVCache
from mutoscope.layers.masks import block_causal_mask
from mutoscope.layers.patchify import patchify
from mutoscope.layers.token_masking import gather_rows, truncated_normal
from mutoscope.models.base import VideoModel
from mutoscope.models.nova.config import NOVAConfig
from mutoscope.models.nova.network import (
    DiffusionHead,
    Embedded,
    Encoder,
    ScalingAndShift,
    TextEmbedding,
    gather_table,
)

DEFAULT_FPS, DEFAULT_MOTION = 12.0, 5.0  # official code: values for clips without a measured rate or optical flow
MASK_SUM_EPS = 1e-5  # official code: keeps the loss finite if no token is masked


@dataclass
class NOVAState:
    """State of the temporal encoder for a batch of clips of `num_slots` frames."""

    cache: KVCache
    """Keys and values of the prefix and of the slots read so far."""
    num_slots: int
    """Frames of the whole clip."""
    blind: Bool[Tensor, " b"] | None = None
    """Samples that never see a frame: one of the guidance passes."""
    slot: int = 0
    """Slots read so far."""
    reference: Float[Tensor, "b m d"] | None = None
    """Output for the first slot, which scaling and shift change."""

    def take(self, rows: Int[Tensor, " b"]) -> "NOVAState":
        """The state of the samples in `rows`, in that order; an index may occur several times."""
        if rows.tolist() == list(range(self.cache.keys.shape[1])):
            return self  # a copy would double the largest tensor of the sampler
        cache = KVCache(self.cache.keys[:, rows], self.cache.values[:, rows], self.cache.length)
        reference = None if self.reference is None else self.reference[rows]
        return NOVAState(cache, self.num_slots, None if self.blind is None else self.blind[rows], self.slot, reference)


@dataclass
class Canvas:
    """A frame in progress."""

    context: Float[Tensor, "b m d"]
    """The temporal encoder's output for the frame."""
    tokens: Float[Tensor, "b n d"]
    """Embedded tokens; the mask token where undecided."""
    grid: Float[Tensor, "n d"] | None
    """Absolute position features; None with rotary positions."""
    known: Int[Tensor, "b k"]
    """Raster indices of the decided tokens, in the order of decision."""
    cache: "CanvasCache | None" = None
    """Left by `NOVA.fill` with `remember`."""


@dataclass
class CanvasCache:
    """Keys and values of a frame in the spatial encoder, as of the last time each token was computed."""

    decided: KVCache
    """First half of the layers: the context and the decided tokens, in the order of decision."""
    every: IndexedKVCache
    """Second half of the layers: the context and all tokens."""


@dataclass(frozen=True)
class TrainingDraws:
    """All random draws of one loss. `noise` and `steps` are for r copies of the batch, tiled as a whole."""

    order: Float[Tensor, "bt n"]
    """Uniform numbers whose ranks order the tokens of each frame."""
    mask_ratio: float
    """Share of masked tokens."""
    noise: Float[Tensor, "rbt n p"]
    steps: Int[Tensor, "rbt n"]
    """Diffusion step of every token."""


class NOVABatch(TypedDict):
    """Training batch of `NOVA`: captions for a model with text, labels for one with classes."""

    tokens: Float[Tensor, "b c t h w"]
    """Latents of the clips, of unit standard deviation."""
    caption: NotRequired[Float[Tensor, "b l c"]]
    """Text features of every caption."""
    caption_mask: NotRequired[Bool[Tensor, "b l"]]
    """True on rows of `caption` that belong to a word."""
    label: NotRequired[Int[Tensor, " b"]]
    """Class of every clip, in [0, num_classes)."""
    motion: NotRequired[Float[Tensor, " b"]]
    """Mean optical flow of every clip in pixels, for video models; missing: the published default."""


class NOVA(VideoModel[NOVAConfig, NOVABatch]):
    """Latents and a prefix of conditions in, one output per token for the diffusion head (`head`) out."""

    def __init__(self, config: NOVAConfig) -> None:
        super().__init__()
        self.config = config
        d = config.hidden_size
        shared = config.norm_position, config.positions == "rotary"
        self.temporal_encoder = Encoder(
            4 * config.token_size, d, config.temporal_layers, config.temporal_heads, *shared
        )
        self.spatial_encoder = Encoder(config.token_size, d, config.spatial_layers, config.spatial_heads, *shared)
        self.mixer = None if config.mixer_rank is None else ScalingAndShift(d, config.mixer_rank)
        reads_lengths = config.diffusion.reads_lengths
        self.head = DiffusionHead(config.token_size, d, config.head_size, config.head_layers, reads_lengths)
        self.begin_of_video = nn.Parameter(init_normal(1, d))
        self.mask_token = nn.Parameter(init_normal(1, d))
        self.time_embedding = Embedded(d, norm=True) if config.positions == "absolute" else None
        self.flow_embedding = Embedded(d) if config.is_video else None
        self.fps_embedding = Embedded(d) if config.is_video else None
        self.text = None if config.text_size is None else TextEmbedding(config.text_size, d, config.text_length)
        self.classes = None if config.num_classes is None else nn.Embedding(config.num_classes + 1, d)
        self.class_norm = None if config.num_classes is None else nn.LayerNorm(d)
        self.initialize_weights()

    def initialize_weights(self) -> None:
        """The official code's rules. Weights of a seed depend on the order of draws, hence the rules applied earlier.

        Linear layers and layer norms: PyTorch's defaults, applied where they are created; no gate starts at zero.
        Begin-of-video token, mask token, text table: N(0, 0.02²), applied where they are created (`init_normal`).
        """
        # Label table: N(0, 0.02²).
        if self.classes is not None:
            nn.init.normal_(self.classes.weight, std=INITIAL_STD)

    # ------------------------------------------------------------------------------------------------ conditions

    def text_prefix(
        self, features: Float[Tensor, "b l c"], present: Bool[Tensor, "b l"]
    ) -> Float[Tensor, "b length d"]:
        """Prefix of captions; `present` is True on rows of real words, and a caption without any is the null text."""
        assert self.text is not None
        return self.text(features, present)

    def null_prefix(self, batch_size: int) -> Float[Tensor, "b length d"]:
        """Prefix of no caption, or of no class."""
        if self.text is None:
            assert self.config.num_classes is not None
            return self.class_prefix(torch.full((batch_size,), self.config.num_classes, device=self.device))
        features = self.text.table.new_zeros(batch_size, 1, self.text.table.shape[1])
        return self.text(features, torch.zeros(batch_size, 1, dtype=torch.bool, device=self.device))

    def class_prefix(self, labels: Int[Tensor, " b"]) -> Float[Tensor, "b 1 d"]:
        """Prefix of classes; the label `num_classes` means "no class"."""
        assert self.classes is not None and self.class_norm is not None
        return self.class_norm(self.classes(labels))[:, None]

    def with_motion(
        self, prefix: Float[Tensor, "b l d"], flow: Float[Tensor, " b"] | None, fps: Float[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b l2 d"]:
        """Appends, for video models, tokens of optical flow (pixels per frame) and of frames per second to the prefix.

        None stands for `DEFAULT_MOTION` and `DEFAULT_FPS`.
        """
        if self.flow_embedding is None or self.fps_embedding is None:
            return prefix
        flow = prefix.new_full((len(prefix),), DEFAULT_MOTION) if flow is None else flow
        fps = prefix.new_full((len(prefix),), DEFAULT_FPS) if fps is None else fps
        return torch.cat([prefix, self.flow_embedding(flow)[:, None], self.fps_embedding(fps)[:, None]], dim=1)

    # ------------------------------------------------------------------------------------------- temporal encoder

    def slot_tokens(
        self, frames: Float[Tensor, "b c k h w"] | None, batch_size: int, first: int, num_slots: int
    ) -> Float[Tensor, "b k2 m d"]:
        """Coarse tokens of the slots from `first` on. Slot 0 begins the video; slot t holds frame t − 1.

        Absolute positions in time stretch a clip of any length to the length of training (§3.2).
        """
        encoder, m = self.temporal_encoder, self.config.coarse_grid[0] * self.config.coarse_grid[1]
        parts = [self.begin_of_video.expand(batch_size, 1, m, -1)] if first == 0 else []
        if frames is not None and frames.shape[2]:
            parts.append(encoder.patch_embedding(patchify(frames, 2 * self.config.patch_size)))
        tokens = torch.cat(parts, dim=1)  # (b, k2, m, d)
        if self.time_embedding is None:
            return tokens
        slots = torch.arange(first, first + tokens.shape[1], device=tokens.device)
        time = self.time_embedding(slots * (self.config.time_length / num_slots))  # (k2, d)
        return tokens + time[:, None] + self._grid_features(self.config.coarse_grid).to(tokens.dtype)

    def _grid_features(self, grid: tuple[int, int]) -> Float[Tensor, "n d"]:
        return grid_sin_cos(grid, self.config.hidden_size, self.device)

    def _coordinates(self, prefix_length: int, slots: range, grid: tuple[int, int]) -> Int[Tensor, "n 3"]:
        """(slot, row, column) of a sequence; prefix rows are at the origin, where the rotation is zero."""
        axes = [torch.arange(s.start, s.stop, device=self.device) for s in (slots, range(grid[0]), range(grid[1]))]
        return F.pad(torch.cartesian_prod(*axes), (0, 0, prefix_length, 0))

    def contexts(self, latents: Float[Tensor, "b c t h w"], prefix: Float[Tensor, "b l d"]) -> Float[Tensor, "b t m d"]:
        """Context of every frame of a clip for the spatial encoder, in a single pass under the block-causal mask."""
        b, _, t = latents.shape[:3]
        tokens = self.slot_tokens(latents[:, :, :-1], b, 0, t)  # (b, t, m, d)
        m, length = tokens.shape[2], prefix.shape[1]
        slots = torch.arange(t, device=tokens.device).repeat_interleave(m)
        mask = None if t == 1 else block_causal_mask(F.pad(slots, (length, 0)))  # the prefix belongs to slot 0
        table = self.temporal_encoder.table(self._coordinates(length, range(t), self.config.coarse_grid))
        x = torch.cat([prefix, tokens.flatten(1, 2)], dim=1)  # (b, l + t*m, d)
        for block in self.temporal_encoder.blocks:
            x = block(x, mask, table)
        outputs = self.temporal_encoder.norm(x[:, length:]).unflatten(1, (t, m))  # (b, t, m, d)
        return torch.cat([outputs[:, :1], self._mix(outputs[:, :1], outputs[:, 1:])], dim=1)

    def _mix(self, reference: Float[Tensor, "*#b m d"], current: Float[Tensor, "*#b m d"]) -> Float[Tensor, "*b m d"]:
        return current if self.mixer is None else self.mixer(reference, current)

    def start(
        self, prefix: Float[Tensor, "b l d"], num_slots: int, blind: Bool[Tensor, " b"] | None = None
    ) -> tuple[NOVAState, Float[Tensor, "b m d"]]:
        """Reads the prefix; returns the state and the context of the first frame.

        `num_slots`: frames of the whole clip. `blind`: samples that never see a frame.
        """
        encoder, (rows, columns) = self.temporal_encoder, self.config.coarse_grid
        head_size = self.config.hidden_size // self.config.temporal_heads
        length = prefix.shape[1] + num_slots * rows * columns
        shape = len(encoder.blocks), len(prefix), self.config.temporal_heads, length, head_size
        state = NOVAState(KVCache.reserve(shape, prefix.device, prefix.dtype), num_slots, blind)
        return state, self._advance(state, None, prefix)

    def read_frame(self, state: NOVAState, frame: Float[Tensor, "b c 1 h w"]) -> Float[Tensor, "b m d"]:
        """Reads a finished frame into the state; returns the context of the next one."""
        return self._advance(state, frame, None)

    def _advance(
        self, state: NOVAState, frame: Float[Tensor, "b c 1 h w"] | None, prefix: Float[Tensor, "b l d"] | None
    ) -> Float[Tensor, "b m d"]:
        encoder, slot = self.temporal_encoder, state.slot
        x = self.slot_tokens(frame, state.cache.keys.shape[1], slot, state.num_slots)[:, 0]  # (b, m, d)
        if state.blind is not None:
            x = torch.where(state.blind[:, None, None], self.begin_of_video, x)
        length = 0 if prefix is None else prefix.shape[1]
        x = x if prefix is None else torch.cat([prefix, x], dim=1)  # (b, l + m, d)
        table = encoder.table(self._coordinates(length, range(slot, slot + 1), self.config.coarse_grid))
        num_positions = x.shape[1]
        for layer, block in enumerate(encoder.blocks):
            x = block(x, None, table, state.cache, layer)
        state.cache.advance(num_positions)
        state.slot += 1
        x = encoder.norm(x[:, length:])
        if state.reference is None:
            state.reference = x
            return x
        return self._mix(state.reference, x)

    # -------------------------------------------------------------------------------------------- spatial encoder

    def canvas(self, context: Float[Tensor, "b m d"]) -> Canvas:
        """A frame without decided tokens."""
        absolute = self.config.positions == "absolute"
        grid = self._grid_features(self.config.grid).to(context.dtype) if absolute else None
        n = self.config.grid[0] * self.config.grid[1]
        tokens = self.mask_token.expand(n, -1) if grid is None else self.mask_token + grid
        known = torch.zeros(len(context), 0, dtype=torch.int64, device=context.device)
        return Canvas(context, tokens.expand(len(context), -1, -1).clone(), grid, known)

    def write(self, canvas: Canvas, ids: Int[Tensor, "b k"], vectors: Float[Tensor, "b k p"]) -> None:
        """Writes decided tokens to the canvas; `ids` are their raster indices."""
        tokens = self.spatial_encoder.patch_embedding(vectors)
        tokens = tokens if canvas.grid is None else tokens + canvas.grid[ids]
        tokens = tokens.to(canvas.tokens.dtype)  # under autocast the embedding returns a narrower dtype
        canvas.tokens = canvas.tokens.scatter(1, ids[..., None].expand_as(tokens), tokens)
        canvas.known = torch.cat([canvas.known, ids], dim=1)

    def fill(
        self, canvas: Canvas, ids: Int[Tensor, "b r"] | None = None, remember: bool = False
    ) -> Float[Tensor, "b r d"]:
        """Outputs for the tokens `ids`, or for all.

        The first half of the layers sees the context and the decided tokens only, the second half all tokens (§3.3).
        With `remember`, the canvas keeps their keys and values for `fill_in_part`.
        """
        encoder, x, m = self.spatial_encoder, canvas.tokens, canvas.context.shape[1]
        half = len(encoder.blocks) // 2
        canvas.cache = self._canvas_cache(canvas) if remember else None
        h = self._fill_decided(canvas)  # (b, m + k, d)
        updated = x.scatter(1, canvas.known[..., None].expand(-1, -1, x.shape[2]), h[:, m:])
        h = torch.cat([h[:, :m], updated], dim=1)  # (b, m + n, d)
        table = encoder.table(self._coordinates(m, range(1), self.config.grid))
        cache = None if canvas.cache is None else canvas.cache.every
        for layer, block in enumerate(encoder.blocks[half:-1]):
            h = block(h, None, table, cache, layer)
        rows = None if ids is None else ids + m
        h = encoder.blocks[-1](h, None, table, cache, len(encoder.blocks) - half - 1, rows)
        return encoder.norm(h if rows is not None else h[:, m:])

    def _fill_decided(self, canvas: Canvas) -> Float[Tensor, "b mk d"]:
        """First half of the layers: outputs for the context and the decided tokens."""
        encoder, m = self.spatial_encoder, canvas.context.shape[1]
        table = encoder.table(self._coordinates(m, range(1), self.config.grid))
        if table is not None:
            positions = F.pad(canvas.known + m, (m, 0))  # (b, m + k)
            positions[:, :m] = torch.arange(m, device=positions.device)
            table = gather_table(table, positions)
        cache = None if canvas.cache is None else canvas.cache.decided
        h = torch.cat([canvas.context, gather_rows(canvas.tokens, canvas.known)], dim=1)  # (b, m + k, d)
        for layer, block in enumerate(encoder.blocks[: len(encoder.blocks) // 2]):
            h = block(h, None, table, cache, layer)
        if cache is not None:
            cache.advance(h.shape[1])
        return h

    def fill_in_part(self, canvas: Canvas, ids: Int[Tensor, "b r"]) -> Float[Tensor, "b r d"]:
        """An approximation of `fill` at a fraction of its cost, for some sets after a `fill` with `remember`.

        Only `ids` and the tokens written since the last call are computed. All others keep the keys and values of
        their last computation, so that they ignore later decisions.
        """
        cache, encoder, m = canvas.cache, self.spatial_encoder, canvas.context.shape[1]
        assert cache is not None
        blocks, half = encoder.blocks, len(encoder.blocks) // 2
        new = canvas.known[:, cache.decided.length - m :]  # (b, k)
        positions = torch.cat([new, ids], dim=1) + m  # (b, k + r)
        table = encoder.table(self._coordinates(m, range(1), self.config.grid))
        table = None if table is None else gather_table(table, positions)  # (b, 1, k + r, pairs, 2)
        new_table = None if table is None else table[:, :, : new.shape[1]]
        h = gather_rows(canvas.tokens, new)  # (b, k, d)
        for layer, block in enumerate(blocks[:half]):
            h = block(h, None, new_table, cache.decided, layer)
        cache.decided.advance(new.shape[1])
        cache.every.positions = positions
        h = torch.cat([h, gather_rows(canvas.tokens, ids)], dim=1)  # (b, k + r, d)
        for layer, block in enumerate(blocks[half:-1]):
            h = block(h, None, table, cache.every, layer)
        rows = torch.arange(new.shape[1], positions.shape[1], device=positions.device).expand_as(ids)
        return encoder.norm(blocks[-1](h, None, table, cache.every, len(blocks) - half - 1, rows))

    def _canvas_cache(self, canvas: Canvas) -> CanvasCache:
        """An empty cache whose next step writes all positions."""
        (b, m, d), heads, layers = canvas.context.shape, self.config.spatial_heads, self.config.spatial_layers
        size, device, dtype = m + canvas.tokens.shape[1], canvas.context.device, canvas.context.dtype
        decided = KVCache.reserve((layers // 2, b, heads, size, d // heads), device, dtype)
        every = IndexedKVCache.reserve((layers - layers // 2, b, heads, size, d // heads), device, dtype)
        every.positions = torch.arange(size, device=device).expand(b, -1)
        return CanvasCache(decided, every)

    # ---------------------------------------------------------------------------------------------------- training

    def forward(
        self, latents: Float[Tensor, "b c t h w"], prefix: Float[Tensor, "b l d"], known: Int[Tensor, "bt k"]
    ) -> Float[Tensor, "bt n d"]:
        """Outputs for all tokens of all frames of a clip, as the diffusion head reads them.

        The temporal encoder reads the whole clip in a single pass; in each frame the spatial encoder sees the clean
        tokens at the raster indices `known`.
        """
        tokens = patchify(latents, self.config.patch_size).flatten(0, 1)  # (bt, n, p)
        canvas = self.canvas(self.contexts(latents, prefix).flatten(0, 1))
        self.write(canvas, known, gather_rows(tokens, known))
        return self.fill(canvas)

    def loss(self, batch: NOVABatch, generator: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """Diffusion loss of the masked tokens (see `loss_of`), with conditions dropped at random for guidance."""
        latents = batch["tokens"]
        prefix = self.with_motion(self.batch_prefix(batch, generator), batch.get("motion"))
        return self.loss_of(latents, prefix, self.draw(latents, generator))

    def batch_prefix(self, batch: NOVABatch, generator: Draws) -> Float[Tensor, "b l d"]:
        """Prefix of captions or labels, dropped with probability `condition_dropout`.

        Raises UserError if the batch lacks the condition that this model reads.
        """
        b = len(batch["tokens"])
        dropped = rand(generator, b) < self.config.condition_dropout
        dropped = dropped.to(self.device)
        if self.text is not None:
            if "caption" not in batch or "caption_mask" not in batch:
                raise UserError(f"This model needs the caption of every clip; found the keys {sorted(batch)}.")
            return self.text_prefix(batch["caption"], batch["caption_mask"] & ~dropped[:, None])
        assert self.config.num_classes is not None
        if "label" not in batch:
            raise UserError(f"This model needs the label of every clip; found the keys {sorted(batch)}.")
        return self.class_prefix(torch.where(dropped, self.config.num_classes, batch["label"]))

    def draw(self, latents: Float[Tensor, "b c t h w"], generator: Draws) -> TrainingDraws:
        """One mask ratio for the whole batch; noise and a diffusion step for every token of every repeat."""
        (b, _, t), (rows, columns), device = latents.shape[:3], self.config.grid, latents.device
        order = rand(generator, b * t, rows * columns)
        uniform = rand(of_batch(generator))
        shape = b, self.config.loss_repeat, t, rows * columns
        noise = randn(generator, *shape, self.config.token_size)
        steps = self.config.diffusion.draw_steps(shape, generator)
        noise, steps = (rearrange(x, "b r t ... -> (r b t) ...").to(device) for x in (noise, steps))
        return TrainingDraws(order.to(device), truncated_normal(uniform).item(), noise, steps)

    def loss_of(
        self, latents: Float[Tensor, "b c t h w"], prefix: Float[Tensor, "b l d"], draws: TrainingDraws
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Squared error of the diffusion head on masked tokens (§3.4, eq. 6).

        The first frame of a clip weighs as much as all the others together (official code).
        """
        b, _, t = latents.shape[:3]
        tokens = patchify(latents, self.config.patch_size).flatten(0, 1)  # (bt, n, p)
        known = draws.order.argsort(dim=1)[:, : round((1 - draws.mask_ratio) * tokens.shape[1])]  # (bt, k)
        z = self(latents, prefix, known)  # (bt, n, d)
        hidden = torch.ones_like(draws.order).scatter(1, known, 0.0)  # (bt, n)

        repeat, diffusion = self.config.loss_repeat, self.config.diffusion
        condition = self.head.condition(z).repeat(repeat, 1, 1).flatten(0, 1)  # (r*bt*n, e)
        tokens, hidden = tokens.repeat(repeat, 1, 1), hidden.repeat(repeat, 1)

        def predict(rows: Tensor | None, x: Tensor, times: Tensor, lengths: Tensor | None = None) -> Tensor:
            chosen = condition if rows is None else condition[rows]
            return self.head(x[None], chosen[None], self.head.time(times, lengths)[None])[0]  # (m, p)

        terms = diffusion.terms(predict, tokens.flatten(0, 1), draws.noise.flatten(0, 1), draws.steps.flatten())
        error = torch.stack([*terms.values()]).sum(0).view(hidden.shape)  # (r*bt, n)
        weighted = error * hidden / (hidden.sum() + MASK_SUM_EPS)  # (r*bt, n)
        frames = weighted.view(repeat, b, t, -1).sum((0, 1, 3))  # (t,)
        if t == 1:
            return frames[0], {"diffusion_loss": frames[0].detach()}
        first, others = t * frames[0], t / (t - 1) * frames[1:].sum()
        return first + others, {"first_frame_loss": first.detach(), "other_frames_loss": others.detach()}
