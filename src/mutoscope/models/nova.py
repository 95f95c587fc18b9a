"""NOVA: text to image and video, frame by frame and set by set, without vector quantization (arXiv 2412.14169).

Four networks on continuous latents. The temporal encoder reads the text and the finished frames in coarse tokens
(§3.2); scaling and shift turn its output for a frame into a change of the first one (§3.3); the spatial encoder fills
in a frame's fine tokens, set by set in random order, given that context; a small diffusion network draws each token
from the spatial encoder's output for it (§3.4).

Read downward: configuration, the model, its loss. The networks it puts together stand in `nova_networks`.

Shapes: b clips, t frames, m coarse and n fine tokens per frame, d the width, p the length of a token vector.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mutoscope.errors import UserError
from mutoscope.layers.diffusion import Diffusion, FlowMatching
from mutoscope.layers.embeddings import grid_sin_cos
from mutoscope.layers.kv_cache import KVCache, PlacedKVCache
from mutoscope.layers.masks import block_causal_mask
from mutoscope.layers.patchify import patchify
from mutoscope.layers.token_masking import gather_rows, truncated_normal
from mutoscope.models.base import ModelConfig, TextShape, VideoModel
from mutoscope.models.nova_networks import (
    NUM_TEXT_ROWS,
    DiffusionHead,
    Embedded,
    Encoder,
    ScalingAndShift,
    TextEmbedding,
    gather_table,
    rope_pairs,
)

DEFAULT_FPS, DEFAULT_MOTION = 12.0, 5.0

# Text-to-image models at 1024 pixels (arXiv 2412.14169, Tab. 1): width, heads, layers and width of the diffusion head
IMAGE_SIZES = {"0.3B": (768, 12, 6, 768), "0.6B": (1024, 16, 6, 1024), "1.4B": (1536, 16, 6, 1536)}


@dataclass(frozen=True)
class NOVAConfig(ModelConfig):
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
                self.positions == "rotary" and any(p <= 0 for p in rope_pairs(self.hidden_size // heads))
            ):
                raise UserError(
                    f"{heads} heads do not fit a width of {self.hidden_size} with {self.positions} positions."
                )

    @classmethod
    def paper(cls, size: str) -> "NOVAConfig":
        """A published text-to-image size at 1024 pixels; the defaults are the published text-to-video model."""
        if size not in IMAGE_SIZES:
            raise UserError(f"There is no NOVA size {size!r}; sizes: {', '.join(IMAGE_SIZES)}.")
        width, heads, head_layers, head_size = IMAGE_SIZES[size]
        return cls(
            hidden_size=width,
            temporal_heads=heads,
            spatial_heads=heads,
            head_layers=head_layers,
            head_size=head_size,
            latent_shape=(1, 128, 128),
            num_time_slots=1,
            mixer_rank=None,
        )

    @property
    def token_grid(self) -> tuple[int, int]:
        return self.grid

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
    def text(self) -> TextShape | None:
        return None if self.text_size is None else TextShape(self.text_length, self.text_size)

    @property
    def time_length(self) -> int:
        """Slots that the positions of any clip are stretched to."""
        return self.num_time_slots or self.latent_shape[0]

    @property
    def is_video(self) -> bool:
        return self.time_length > 1


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
        if rows.tolist() == list(range(self.cache.keys.shape[1])):
            return self  # a copy would double the largest tensor there is
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
    memory: "CanvasMemory | None" = None


@dataclass
class CanvasMemory:
    """Keys and values of a frame in the spatial encoder, as they were when each token was last computed.

    `decided`: the first half's, of the context and the decided tokens in their order; `places`: the second half's.
    """

    decided: KVCache
    places: PlacedKVCache


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
        d = config.hidden_size
        shared = config.norm_position, config.positions == "rotary"
        self.temporal_encoder = Encoder(
            4 * config.token_size, d, config.temporal_layers, config.temporal_heads, *shared
        )
        self.spatial_encoder = Encoder(config.token_size, d, config.spatial_layers, config.spatial_heads, *shared)
        self.mixer = None if config.mixer_rank is None else ScalingAndShift(d, config.mixer_rank)
        self.head = DiffusionHead(config.token_size, d, config.head_size, config.head_layers)
        self.begin_of_video = nn.Parameter(0.02 * torch.randn(1, d))
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, d))
        self.time_embedding = Embedded(d, norm=True) if config.positions == "absolute" else None
        self.flow_embedding = Embedded(d) if config.is_video else None
        self.fps_embedding = Embedded(d) if config.is_video else None
        self.text = None if config.text_size is None else TextEmbedding(config.text_size, d, config.text_length)
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
        tokens = tokens.to(canvas.tokens.dtype)  # autocast makes them narrower
        canvas.tokens = canvas.tokens.scatter(1, ids[..., None].expand_as(tokens), tokens)
        canvas.known = torch.cat([canvas.known, ids], dim=1)

    def fill(
        self, canvas: Canvas, ids: Int[Tensor, "b r"] | None = None, remember: bool = False
    ) -> Float[Tensor, "b r d"]:
        """Outputs for the tokens `ids`, or for all.

        The first half of the layers sees the context and the decided tokens only, the second half all places (§3.3).
        With `remember` their keys and values stay with the canvas, for `fill_in_part`.
        """
        encoder, context, x = self.spatial_encoder, canvas.context, canvas.tokens
        m, half = context.shape[1], len(encoder.blocks) // 2
        table = encoder.table(self._places(m, range(1), self.config.grid))
        known_places = F.pad(canvas.known + m, (m, 0))
        known_places[:, :m] = torch.arange(m, device=x.device)
        known_table = None if table is None else gather_table(table, known_places)
        canvas.memory = self._memory(canvas) if remember else None
        first, second = (None, None) if canvas.memory is None else (canvas.memory.decided, canvas.memory.places)
        h = torch.cat([context, gather_rows(x, canvas.known)], dim=1)  # (b, m + k, d)
        for layer, block in enumerate(encoder.blocks[:half]):
            h = block(h, None, known_table, first, layer)
        if first is not None:
            first.advance(h.shape[1])
        updated = x.scatter(1, canvas.known[..., None].expand(-1, -1, x.shape[2]), h[:, m:])
        h = torch.cat([h[:, :m], updated], dim=1)  # (b, m + n, d)
        rows = None if ids is None else ids + m
        for layer, block in enumerate(encoder.blocks[half:-1]):
            h = block(h, None, table, second, layer)
        h = encoder.blocks[-1](h, None, table, second, len(encoder.blocks) - half - 1, rows)
        return encoder.norm(h if rows is not None else h[:, m:])

    def fill_in_part(self, canvas: Canvas, ids: Int[Tensor, "b r"]) -> Float[Tensor, "b r d"]:
        """An approximation of `fill` at a fraction of its cost, some sets after a `fill` with `remember`.

        Computed are `ids` and the tokens written since the last call. All others keep the keys and values that they
        had when they were last computed, so they do not know what was decided since.
        """
        memory, encoder, m = canvas.memory, self.spatial_encoder, canvas.context.shape[1]
        assert memory is not None
        blocks, half = encoder.blocks, len(encoder.blocks) // 2
        new = canvas.known[:, memory.decided.length - m :]  # (b, k)
        places = torch.cat([new, ids], dim=1) + m  # (b, k + r)
        table = encoder.table(self._places(m, range(1), self.config.grid))
        table = None if table is None else gather_table(table, places)
        new_table = None if table is None else table[:, :, : new.shape[1]]
        h = gather_rows(canvas.tokens, new)
        for layer, block in enumerate(blocks[:half]):
            h = block(h, None, new_table, memory.decided, layer)
        memory.decided.advance(new.shape[1])
        memory.places.places = places
        h = torch.cat([h, gather_rows(canvas.tokens, ids)], dim=1)  # (b, k + r, d)
        for layer, block in enumerate(blocks[half:-1]):
            h = block(h, None, table, memory.places, layer)
        rows = torch.arange(new.shape[1], places.shape[1], device=places.device).expand_as(ids)
        return encoder.norm(blocks[-1](h, None, table, memory.places, len(blocks) - half - 1, rows))

    def _memory(self, canvas: Canvas) -> CanvasMemory:
        """An empty one, aimed at all places."""
        (b, m, d), heads, layers = canvas.context.shape, self.config.spatial_heads, self.config.spatial_layers
        size, device, dtype = m + canvas.tokens.shape[1], canvas.context.device, canvas.context.dtype
        decided, places = (
            cache.reserve((count, b, heads, size, d // heads), device, dtype)
            for cache, count in ((KVCache, layers // 2), (PlacedKVCache, layers - layers // 2))
        )
        assert isinstance(places, PlacedKVCache)
        places.places = torch.arange(size, device=device).expand(b, -1)
        return CanvasMemory(decided, places)

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
