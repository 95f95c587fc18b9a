"""NOVA: text to image and video, frame by frame and set by set, without vector quantization (arXiv 2412.14169).

Four networks on continuous latents. The temporal encoder reads the text and the finished frames in coarse tokens
(§3.2); scaling and shift turn its output for a frame into a change of the first one (§3.3); the spatial encoder fills
in a frame's fine tokens, set by set in random order, given that context; a small diffusion network draws each token
from the spatial encoder's output for it (§3.4).

Read downward: configuration, transformer, the small networks, the model, its loss.

Shapes: b clips, t frames, m coarse and n fine tokens per frame, d the width, p the length of a token vector.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor, nn

from mutoscope.errors import UserError
from mutoscope.layers.attention import attention
from mutoscope.layers.diffusion import Diffusion, FlowMatching
from mutoscope.layers.embeddings import grid_sin_cos, sin_cos, timestep_features
from mutoscope.layers.kv_cache import KVCache
from mutoscope.layers.masks import block_causal_mask
from mutoscope.layers.patchify import patchify
from mutoscope.layers.positions import rotary_table, rotate
from mutoscope.layers.token_masking import gather_rows, truncated_normal
from mutoscope.models.base import VideoModel

NUM_TEXT_ROWS = 512  # rows of the table that stands where a caption has no words
DEFAULT_FPS, DEFAULT_MOTION = 12.0, 5.0


@dataclass(frozen=True)
class NOVAConfig:
    """Sizes of the four networks. Defaults: the published text-to-video model for 480×768 pixels.

    `latent_shape`: frames, rows and columns of the latents it was trained on; absolute positions in time are stretched
    to `num_time_slots` frames (None: no more than those). `mixer_rank`: rank of scaling and shift,
    −1 for a full matrix, None for none. Text conditions are features of `text_size` numbers, of which `text_length` are
    read; without a `text_size` the model is conditional on `num_classes` classes. `norm_position`: of the layer norms,
    behind a sub-layer as published, or before it.
    """

    hidden_size: int = 1024
    temporal_layers: int = 16
    temporal_heads: int = 16
    spatial_layers: int = 32
    spatial_heads: int = 16
    head_layers: int = 3
    head_size: int = 1280
    latent_channels: int = 4
    latent_shape: tuple[int, int, int] = (9, 60, 96)
    num_time_slots: int | None = 16
    patch_size: int = 2
    mixer_rank: int | None = 24
    positions: Literal["absolute", "rotary"] = "absolute"
    norm_position: Literal["after", "before"] = "after"
    text_size: int | None = 2560
    text_length: int = 256
    num_classes: int | None = None
    condition_dropout: float = 0.1
    loss_repeat: int = 4
    diffusion: Diffusion = field(default_factory=FlowMatching)

    def __post_init__(self) -> None:
        object.__setattr__(self, "latent_shape", tuple(self.latent_shape))  # JSON has no tuples
        coarse = 2 * self.patch_size
        if self.latent_shape[1] % coarse or self.latent_shape[2] % coarse:
            raise UserError(f"Rows and columns of latents must be multiples of {coarse}, found {self.latent_shape}.")
        if (self.text_size is None) == (self.num_classes is None):
            raise UserError("A NOVA reads either text or classes: set one of text_size and num_classes.")
        if self.text_size is not None and not 1 <= self.text_length <= NUM_TEXT_ROWS:
            raise UserError(f"text_length must be between 1 and {NUM_TEXT_ROWS}, found {self.text_length}.")
        if self.mixer_rank is not None and self.mixer_rank == 0:
            raise UserError("mixer_rank must be positive, -1 for a full matrix, or null for no mixer; found 0.")
        for heads in (self.temporal_heads, self.spatial_heads):
            if self.hidden_size % heads or (
                self.positions == "rotary" and any(p <= 0 for p in rope_pairs(self, heads))
            ):
                raise UserError(
                    f"{heads} heads do not fit a width of {self.hidden_size} with {self.positions} positions."
                )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of fine tokens."""
        return self.latent_shape[1] // self.patch_size, self.latent_shape[2] // self.patch_size

    @property
    def coarse_grid(self) -> tuple[int, int]:
        """Rows and columns of the temporal encoder's tokens."""
        return self.grid[0] // 2, self.grid[1] // 2

    @property
    def token_size(self) -> int:
        return self.patch_size**2 * self.latent_channels

    @property
    def time_length(self) -> int:
        """Slots that the positions of any clip are stretched to."""
        return self.num_time_slots or self.latent_shape[0]

    @property
    def is_video(self) -> bool:
        return self.time_length > 1


def rope_pairs(config: NOVAConfig, heads: int) -> tuple[int, int, int]:
    """Channel pairs of a head turned by time, row and column: an eighth of the channels by time."""
    size = config.hidden_size // heads
    time = size // 8
    if time % 2 or (size - time) % 4:
        return 0, 0, 0
    return time // 2, (size - time) // 4, (size - time) // 4


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

    def __init__(self, config: NOVAConfig, heads: int) -> None:
        super().__init__()
        d = config.hidden_size
        self.norm_after = config.norm_position == "after"
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

    def __init__(self, config: NOVAConfig, layers: int, heads: int, patch_size: int) -> None:
        super().__init__()
        self.pairs = rope_pairs(config, heads) if config.positions == "rotary" else None
        self.patch_embedding = nn.Linear(patch_size**2 * config.latent_channels, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(config.hidden_size)

    def table(self, places: Int[Tensor, "n 3"]) -> Float[Tensor, "n pairs 2"] | None:
        """Rotations of places (slot, row, column); None with absolute positions."""
        return None if self.pairs is None else rotary_table(places, self.pairs)


def gather_table(table: Float[Tensor, "*b n pairs 2"], rows: Int[Tensor, "b r"]) -> Float[Tensor, "b 1 r pairs 2"]:
    """The rotations of chosen rows of every sample, for all heads."""
    return table[rows][:, None]


# ---------------------------------------------------------------------------------------------------------------------
# Small networks


def projector(size_in: int, size_out: int) -> nn.Sequential:
    """Linear, SiLU, linear."""
    return nn.Sequential(nn.Linear(size_in, size_out), nn.SiLU(), nn.Linear(size_out, size_out))


class ScalingAndShift(nn.Module):
    """F_0 · (1 + γ) + β with γ and β from F_t through a matrix of low rank (§3.3, eq. 5)."""

    def __init__(self, config: NOVAConfig) -> None:
        super().__init__()
        d, rank = config.hidden_size, config.mixer_rank
        assert rank is not None
        self.down = nn.Linear(d, rank, bias=False) if rank > 0 else nn.Identity()
        self.output = nn.Linear(rank if rank > 0 else d, 2 * d)

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

    def __init__(self, config: NOVAConfig) -> None:
        super().__init__()
        e, p = config.head_size, config.token_size
        self.time_projector, self.condition_projector = projector(256, e), projector(config.hidden_size, e)
        self.patch_embedding = nn.Linear(p, e)
        self.blocks = nn.ModuleList(HeadBlock(e) for _ in range(config.head_layers))
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

    def __init__(self, config: NOVAConfig) -> None:
        super().__init__()
        assert config.text_size is not None
        self.length = config.text_length
        self.projection = nn.Linear(config.text_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size)
        self.register_buffer("table", 0.02 * torch.randn(NUM_TEXT_ROWS, config.text_size))

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


# ---------------------------------------------------------------------------------------------------------------------
# The model


@dataclass
class NOVAState:
    """What the temporal encoder remembers of a clip of `num_slots` frames: keys and values, and its first output.

    `blind` marks samples that never see a frame, one of the guidance passes.
    """

    cache: KVCache
    num_slots: int
    blind: Bool[Tensor, " b"] | None = None
    slot: int = 0
    reference: Float[Tensor, "b m d"] | None = None

    def take(self, rows: Int[Tensor, " b"]) -> "NOVAState":
        """The memory of chosen samples, each as often as it is named."""
        cache = KVCache(self.cache.keys[:, rows], self.cache.values[:, rows], self.cache.length)
        reference = None if self.reference is None else self.reference[rows]
        return NOVAState(cache, self.num_slots, None if self.blind is None else self.blind[rows], self.slot, reference)


@dataclass
class Canvas:
    """A frame being filled in: its context, its tokens (a mask token where undecided), and which are decided."""

    context: Float[Tensor, "b m d"]
    tokens: Float[Tensor, "b n d"]
    grid: Float[Tensor, "n d"] | None
    known: Int[Tensor, "b k"]


@dataclass(frozen=True)
class TrainingDraws:
    """Everything random about one loss. The batch is repeated r times, tiled whole."""

    order: Float[Tensor, "bt n"]
    mask_ratio: float
    noise: Float[Tensor, "rbt n p"]
    steps: Int[Tensor, "rbt n"]


class NOVA(VideoModel):
    def __init__(self, config: NOVAConfig) -> None:
        super().__init__()
        self.config = config
        d, p = config.hidden_size, config.patch_size
        self.temporal_encoder = Encoder(config, config.temporal_layers, config.temporal_heads, 2 * p)
        self.spatial_encoder = Encoder(config, config.spatial_layers, config.spatial_heads, p)
        self.mixer = None if config.mixer_rank is None else ScalingAndShift(config)
        self.head = DiffusionHead(config)
        self.begin_of_video = nn.Parameter(0.02 * torch.randn(1, d))
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, d))
        self.time_embedding = Embedded(d, norm=True) if config.positions == "absolute" else None
        self.flow_embedding = Embedded(d) if config.is_video else None
        self.fps_embedding = Embedded(d) if config.is_video else None
        self.text = TextEmbedding(config) if config.text_size is not None else None
        self.classes = None if config.num_classes is None else nn.Embedding(config.num_classes + 1, d)
        self.class_norm = None if config.num_classes is None else nn.LayerNorm(d)
        if self.classes is not None:
            nn.init.normal_(self.classes.weight, std=0.02)

    # ------------------------------------------------------------------------------------------------ conditions

    def text_prefix(
        self, features: Float[Tensor, "b l c"], present: Bool[Tensor, "b l"]
    ) -> Float[Tensor, "b length d"]:
        """Prefix of captions; `present` tells real words, and a caption without any is the null text."""
        assert self.text is not None
        return self.text(features, present)

    def null_prefix(self, batch_size: int) -> Float[Tensor, "b length d"]:
        """Prefix of no caption, or of no class."""
        if self.text is None:
            assert self.config.num_classes is not None
            return self.class_prefix(torch.full((batch_size,), self.config.num_classes, device=self.device))
        nothing = self.text.table.new_zeros(batch_size, 1, self.text.table.shape[1])
        return self.text(nothing, torch.zeros(batch_size, 1, dtype=torch.bool, device=self.device))

    def class_prefix(self, labels: Int[Tensor, " b"]) -> Float[Tensor, "b 1 d"]:
        assert self.classes is not None and self.class_norm is not None
        return self.class_norm(self.classes(labels))[:, None]

    def with_motion(
        self, prefix: Float[Tensor, "b l d"], flow: Float[Tensor, " b"] | None, fps: Float[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b l2 d"]:
        """The prefix and, for video models, tokens of optical flow and frames per second behind it, in raw units."""
        if self.flow_embedding is None or self.fps_embedding is None:
            return prefix
        flow = prefix.new_full((len(prefix),), DEFAULT_MOTION) if flow is None else flow
        fps = prefix.new_full((len(prefix),), DEFAULT_FPS) if fps is None else fps
        return torch.cat([prefix, self.flow_embedding(flow)[:, None], self.fps_embedding(fps)[:, None]], dim=1)

    # ------------------------------------------------------------------------------------------- temporal encoder

    def slot_tokens(
        self, frames: Float[Tensor, "b c k h w"] | None, batch_size: int, first: int, num_slots: int
    ) -> Float[Tensor, "b k2 m d"]:
        """Coarse tokens of slots from `first` on. Slot 0 begins the video; slot t shows frame t − 1.

        Absolute positions in time stretch a clip of any length to that of training (§3.2).
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
        return tokens + time[:, None] + self._grid(self.config.coarse_grid).to(tokens.dtype)

    def _grid(self, grid: tuple[int, int]) -> Float[Tensor, "n d"]:
        return grid_sin_cos(grid, self.config.hidden_size, self.device)

    def _places(self, prefix_length: int, slots: range, grid: tuple[int, int]) -> Int[Tensor, "n 3"]:
        """(slot, row, column) of a sequence; a prefix lies at the origin, where nothing is turned."""
        axes = [torch.arange(s.start, s.stop, device=self.device) for s in (slots, range(grid[0]), range(grid[1]))]
        return F.pad(torch.cartesian_prod(*axes), (0, 0, prefix_length, 0))

    def contexts(self, latents: Float[Tensor, "b c t h w"], prefix: Float[Tensor, "b l d"]) -> Float[Tensor, "b t m d"]:
        """What the spatial encoder is told of every frame of a clip, in one pass under the block-causal mask."""
        b, _, t = latents.shape[:3]
        tokens = self.slot_tokens(latents[:, :, :-1], b, 0, t)  # (b, t, m, d)
        m, length = tokens.shape[2], prefix.shape[1]
        slots = torch.arange(t, device=tokens.device).repeat_interleave(m)
        mask = None if t == 1 else block_causal_mask(F.pad(slots, (length, 0)))  # the prefix belongs to slot 0
        table = self.temporal_encoder.table(self._places(length, range(t), self.config.coarse_grid))
        x = torch.cat([prefix, tokens.flatten(1, 2)], dim=1)
        for block in self.temporal_encoder.blocks:
            x = block(x, mask, table)
        outputs = self.temporal_encoder.norm(x[:, length:]).unflatten(1, (t, m))
        return torch.cat([outputs[:, :1], self._mix(outputs[:, :1], outputs[:, 1:])], dim=1)

    def _mix(self, reference: Float[Tensor, "*#b m d"], current: Float[Tensor, "*#b m d"]) -> Float[Tensor, "*b m d"]:
        return current if self.mixer is None else self.mixer(reference, current)

    def start(
        self, prefix: Float[Tensor, "b l d"], num_slots: int, blind: Bool[Tensor, " b"] | None = None
    ) -> tuple[NOVAState, Float[Tensor, "b m d"]]:
        """Reads the prefix; returns the memory and the context of the first frame."""
        encoder, (rows, columns) = self.temporal_encoder, self.config.coarse_grid
        head_size = self.config.hidden_size // self.config.temporal_heads
        length = prefix.shape[1] + num_slots * rows * columns
        shape = len(encoder.blocks), len(prefix), self.config.temporal_heads, length, head_size
        state = NOVAState(KVCache.reserve(shape, prefix.device, prefix.dtype), num_slots, blind)
        return state, self._advance(state, None, prefix)

    def read_frame(self, state: NOVAState, frame: Float[Tensor, "b c 1 h w"]) -> Float[Tensor, "b m d"]:
        """Reads a finished frame into the memory; returns the context of the next one."""
        return self._advance(state, frame, None)

    def _advance(
        self, state: NOVAState, frame: Float[Tensor, "b c 1 h w"] | None, prefix: Float[Tensor, "b l d"] | None
    ) -> Float[Tensor, "b m d"]:
        encoder, slot = self.temporal_encoder, state.slot
        x = self.slot_tokens(frame, state.cache.keys.shape[1], slot, state.num_slots)[:, 0]  # (b, m, d)
        if state.blind is not None:
            x = torch.where(state.blind[:, None, None], self.begin_of_video, x)
        length = 0 if prefix is None else prefix.shape[1]
        x = x if prefix is None else torch.cat([prefix, x], dim=1)
        table = encoder.table(self._places(length, range(slot, slot + 1), self.config.coarse_grid))
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
        """A frame of which nothing is decided."""
        absolute = self.config.positions == "absolute"
        grid = self._grid(self.config.grid).to(context.dtype) if absolute else None
        n = self.config.grid[0] * self.config.grid[1]
        tokens = self.mask_token.expand(n, -1) if grid is None else self.mask_token + grid
        known = torch.zeros(len(context), 0, dtype=torch.int64, device=context.device)
        return Canvas(context, tokens.expand(len(context), -1, -1).clone(), grid, known)

    def write(self, canvas: Canvas, ids: Int[Tensor, "b k"], vectors: Float[Tensor, "b k p"]) -> None:
        """Puts decided tokens on the canvas."""
        tokens = self.spatial_encoder.patch_embedding(vectors)
        tokens = tokens if canvas.grid is None else tokens + canvas.grid[ids]
        canvas.tokens = canvas.tokens.scatter(1, ids[..., None].expand_as(tokens), tokens)
        canvas.known = torch.cat([canvas.known, ids], dim=1)

    def fill(self, canvas: Canvas, ids: Int[Tensor, "b r"] | None = None) -> Float[Tensor, "b r d"]:
        """Outputs for the tokens `ids`, or for all.

        The first half of the layers sees the context and the decided tokens only, the second half all places (§3.3).
        """
        encoder, context, x = self.spatial_encoder, canvas.context, canvas.tokens
        m, half = context.shape[1], len(encoder.blocks) // 2
        table = encoder.table(self._places(m, range(1), self.config.grid))
        known_places = F.pad(canvas.known + m, (m, 0))
        known_places[:, :m] = torch.arange(m, device=x.device)
        known_table = None if table is None else gather_table(table, known_places)
        h = torch.cat([context, gather_rows(x, canvas.known)], dim=1)  # (b, m + k, d)
        for block in encoder.blocks[:half]:
            h = block(h, None, known_table)
        updated = x.scatter(1, canvas.known[..., None].expand(-1, -1, x.shape[2]), h[:, m:])
        h = torch.cat([h[:, :m], updated], dim=1)  # (b, m + n, d)
        rows = None if ids is None else ids + m
        for block in encoder.blocks[half:-1]:
            h = block(h, None, table)
        h = encoder.blocks[-1](h, None, table, rows=rows)
        return encoder.norm(h if rows is not None else h[:, m:])

    # ---------------------------------------------------------------------------------------------------- training

    def loss(self, batch: dict[str, Any], generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """`batch`: latents (b, c, t, h, w) as "tokens", conditions as in `batch_prefix`, maybe "motion", "fps"."""
        latents = batch["tokens"]
        prefix = self.batch_prefix(batch, generator)
        prefix = self.with_motion(prefix, batch.get("motion"), batch.get("fps"))
        return self.loss_of(latents, prefix, self.draw(latents, generator))

    def batch_prefix(self, batch: dict[str, Any], generator: torch.Generator) -> Float[Tensor, "b l d"]:
        """Captions ("caption" features and "caption_mask") or labels ("label"), dropped at random for guidance."""
        b = len(batch["tokens"])
        dropped = torch.rand(b, generator=generator, device=generator.device) < self.config.condition_dropout
        dropped = dropped.to(self.device)
        if self.text is not None:
            return self.text_prefix(batch["caption"], batch["caption_mask"] & ~dropped[:, None])
        assert self.config.num_classes is not None
        return self.class_prefix(torch.where(dropped, self.config.num_classes, batch["label"]))

    def draw(self, latents: Float[Tensor, "b c t h w"], generator: torch.Generator) -> TrainingDraws:
        """One mask ratio for the whole batch; noise and a diffusion step for every token of every repeat."""
        bt, n = latents.shape[0] * latents.shape[2], self.config.grid[0] * self.config.grid[1]
        order = torch.rand(bt, n, generator=generator, device=generator.device)
        uniform = torch.rand((), generator=generator, device=generator.device)
        shape = self.config.loss_repeat * bt, n
        noise = torch.randn(*shape, self.config.token_size, generator=generator, device=generator.device)
        steps = self.config.diffusion.draw_steps(shape, generator)
        place = latents.device
        return TrainingDraws(order.to(place), truncated_normal(uniform).item(), noise.to(place), steps.to(place))

    def loss_of(
        self, latents: Float[Tensor, "b c t h w"], prefix: Float[Tensor, "b l d"], draws: TrainingDraws
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Squared error of the diffusion head on masked tokens (§3.4, eq. 6).

        The first frame of a clip weighs as much as all the others together.
        """
        b, _, t = latents.shape[:3]
        tokens = patchify(latents, self.config.patch_size).flatten(0, 1)  # (bt, n, p)
        known = draws.order.argsort(dim=1)[:, : round((1 - draws.mask_ratio) * tokens.shape[1])]
        canvas = self.canvas(self.contexts(latents, prefix).flatten(0, 1))
        self.write(canvas, known, gather_rows(tokens, known))
        hidden = torch.ones_like(draws.order).scatter(1, known, 0.0)

        repeat, diffusion = self.config.loss_repeat, self.config.diffusion
        condition = self.head.condition(self.fill(canvas)).repeat(repeat, 1, 1)
        tokens, hidden = tokens.repeat(repeat, 1, 1), hidden.repeat(repeat, 1)
        noisy = diffusion.add_noise(tokens, draws.noise, draws.steps)
        output = self.head(noisy, condition, self.head.time(diffusion.times(draws.steps)))
        error = (output.float() - diffusion.target(tokens, draws.noise, draws.steps)).square().mean(-1)
        weighted = error * hidden / (hidden.sum() + 1e-5)
        frames = weighted.view(repeat, b, t, -1).sum((0, 1, 3))  # (t,)
        if t == 1:
            return frames[0], {"diffusion_loss": frames[0].detach()}
        first, others = t * frames[0], t / (t - 1) * frames[1:].sum()
        return first + others, {"first_frame_loss": first.detach(), "other_frames_loss": others.detach()}
