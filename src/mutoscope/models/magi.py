"""MAGI: masked autoregressive video generation with complete teacher forcing (arXiv 2501.12389).

Frames follow each other, and the tokens of a frame are filled in by masked prediction. In training every frame stands
in the sequence twice: complete, as history for later frames, and as a masked copy that is to be restored. A mask in
the attention over time lets each copy see complete earlier frames only (complete teacher forcing, §3.2), which is what
sampling shows it. Masked teacher forcing, the baseline, has the masked frames alone.

There is no official code: `docs/magi.md` lists what the paper states, what follows MAR (arXiv 2406.11838), whose
diffusion head draws the tokens, and what is our choice.

Read downward: configuration, the model, its loss. The networks it is made of stand in `magi_networks.py`.

Shapes: b clips, f frame slots, n tokens and e extra positions of a frame, d the width, c the length of a token vector.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor, nn

from mutoscope.errors import UserError
from mutoscope.layers.embeddings import grid_sin_cos, sin_cos
from mutoscope.layers.gaussian_diffusion import LearnedVariance
from mutoscope.layers.kv_cache import KVCache
from mutoscope.layers.masks import causal_frames_mask, frame_history_mask, frame_slots, hide_padded_frames
from mutoscope.layers.token_masking import truncated_normal
from mutoscope.models.base import ModelConfig, TextShape, VideoModel
from mutoscope.models.magi_networks import (
    EPS,
    Block,
    DiffusionHead,
    TextAttention,
    Words,
    initialise,
    projector,
)
from mutoscope.models.magi_networks import Conditions as Conditions

MAX_INTERVAL = 25

# MAR's sizes (arXiv 2406.11838, §5), two small ones added: width, layers, heads, layers and width of the diffusion head
PAPER_SIZES = {
    "tiny": (64, 2, 4, 2, 64),
    "small": (128, 4, 4, 3, 128),
    "B": (768, 12, 12, 6, 1024),
    "L": (1024, 16, 16, 8, 1280),
    "H": (1280, 20, 16, 12, 1536),
}


@dataclass(frozen=True)
class MAGIConfig(ModelConfig):
    """Defaults: the size B on the latents of 16 frames of 256×256 through Stable Diffusion's autoencoder.

    `teacher_forcing`: "complete", or "masked", the baseline. `codebook_parts`: tokens are discrete, and these are the
    sizes of the digits that an id consists of, lowest first: (1024,), or (512, 512) for large vocabularies.
    Conditions: `num_classes` classes, text features of `text_size` numbers, actions of `action_size` numbers per frame.

    `noise_levels` and `noise_step`: training adds noise of deviation `noise_step` · l to what is seen as history, l
    from 0 to `noise_levels` (dynamic noise injection); 0 levels: none. `noise_mode`: the level as a position of its
    own, or mixed into every channel. `clean_first_frame`: noise spares the first frame in sight, so that what drifts is
    told by what does not. `window`: frames that see each other, None for all. `condition_dropout` and
    `history_dropout`: shares of clips whose conditions, or whose history, are hidden for guidance. `drop_actions`:
    actions are among these conditions; if not, clips whose actions are known teach nothing about clips without.
    `token_mask_ratio`: smallest share of masked tokens.
    """

    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    head_layers: int = 6
    head_size: int = 1024
    latent_channels: int = 4
    latent_shape: tuple[int, int, int] = (16, 32, 32)
    patch_size: int = 2
    codebook_parts: tuple[int, ...] | None = None
    num_classes: int | None = None
    text_size: int | None = None
    text_length: int = 64
    action_size: int | None = None
    teacher_forcing: Literal["complete", "masked"] = "complete"
    window: int | None = None
    num_given: int = 0
    noise_levels: int = 5
    noise_step: float = 0.14
    noise_mode: Literal["token", "channel"] = "token"
    clean_first_frame: bool = False
    token_mask_ratio: float = 0.7
    condition_dropout: float = 0.1
    drop_actions: bool = True
    history_dropout: float = 0.0
    dropout: float = 0.1
    loss_repeat: int = 4
    diffusion: LearnedVariance = field(default_factory=LearnedVariance)

    def __post_init__(self) -> None:
        object.__setattr__(self, "latent_shape", tuple(self.latent_shape))  # JSON has no tuples
        if self.codebook_parts is not None:
            object.__setattr__(self, "codebook_parts", tuple(self.codebook_parts))
        frames, rows, columns = self.latent_shape
        if self.hidden_size % self.num_heads or self.hidden_size % 4:
            raise UserError(f"A width of {self.hidden_size} does not split into {self.num_heads} heads and 4 parts.")
        if rows % self.patch_size or columns % self.patch_size:
            raise UserError(f"Rows and columns of {self.latent_shape} must be multiples of patch_size.")
        if not 0 <= self.num_given < frames:
            raise UserError(f"num_given must lie between 0 and {frames - 1}, found {self.num_given}.")
        if self.window is not None and self.window < 1:
            raise UserError(f"window must be at least 1 frame, found {self.window}.")
        if not 0 <= self.token_mask_ratio <= 1 or self.noise_levels < 0:
            raise UserError("token_mask_ratio must lie in [0, 1] and noise_levels must not be negative.")

    @classmethod
    def paper(cls, size: str, **overrides: Any) -> "MAGIConfig":
        """A size of MAR's, by default on 16 frames of 256×256 through Stable Diffusion's autoencoder."""
        if size not in PAPER_SIZES:
            raise UserError(f"There is no MAGI size {size!r}; sizes: {', '.join(PAPER_SIZES)}.")
        width, layers, heads, head_layers, head_size = PAPER_SIZES[size]
        return cls(
            hidden_size=width,
            num_layers=layers,
            num_heads=heads,
            head_layers=head_layers,
            head_size=head_size,
            **overrides,
        )

    @property
    def token_grid(self) -> tuple[int, int]:
        return self.grid

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the tokens of a frame."""
        return self.latent_shape[1] // self.patch_size, self.latent_shape[2] // self.patch_size

    @property
    def num_tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def token_size(self) -> int:
        return self.patch_size**2 * self.latent_channels

    @property
    def is_discrete(self) -> bool:
        return self.codebook_parts is not None

    @property
    def codebook_size(self) -> int | None:
        return math.prod(self.codebook_parts) if self.codebook_parts else None

    @property
    def text(self) -> TextShape | None:
        return None if self.text_size is None else TextShape(self.text_length, self.text_size)

    @property
    def clip_fields(self) -> tuple[str, ...]:
        actions = ("actions",) if self.action_size is not None else ()
        return ("label", *actions, "interval", "history_only", "history")

    @property
    def tasks(self) -> tuple[str, ...]:
        """What clips can be asked for by: frames always, the rest as far as the model reads it."""
        read = {"class": self.num_classes, "text": self.text_size, "action": self.action_size}
        named = tuple(f"{name}-conditional" for name, size in read.items() if size is not None)
        both = ("class-conditional-frame-prediction",) if self.num_classes is not None else ()
        return ("unconditional", "frame-prediction", *named, *both)


# ---------------------------------------------------------------------------------------------------------------------
# The model


@dataclass(frozen=True)
class TrainingDraws:
    """Everything random about one loss but dropout: per masked frame, per clip, per position of history."""

    order: Float[Tensor, "b p n"]
    mask_ratio: Float[Tensor, "b p"]
    level: Int[Tensor, " b"]
    noise: Float[Tensor, "b f n k2"]
    drop_condition: Bool[Tensor, " b"]
    drop_history: Bool[Tensor, " b"]


class MAGI(VideoModel):
    def __init__(self, config: MAGIConfig) -> None:
        super().__init__()
        self.config = config
        d, n = config.hidden_size, config.num_tokens
        parts = config.codebook_parts
        self.token_embedding = nn.Linear(config.token_size, d) if parts is None else None
        self.code_embeddings = None if parts is None else nn.ModuleList(nn.Embedding(size, d) for size in parts)
        self.mask_token = nn.Parameter(0.02 * torch.randn(d))
        self.role_embedding = nn.Parameter(0.02 * torch.randn(2, n, d))  # complete, masked
        self.interval_embedding = nn.Embedding(MAX_INTERVAL, d)
        self.noise_embedding = nn.Embedding(config.noise_levels + 1, d)
        self.noise_mixer = nn.Linear(2 * d, d) if config.noise_mode == "channel" else None
        self.class_embedding = None if config.num_classes is None else nn.Embedding(config.num_classes + 1, d)
        self.action_embedding = None if config.action_size is None else projector(config.action_size, d)
        self.null_action = None if config.action_size is None else nn.Parameter(0.02 * torch.randn(d))
        self.word_embedding = None if config.text_size is None else nn.Linear(config.text_size, d)
        self.null_word = None if config.text_size is None else nn.Parameter(0.02 * torch.randn(d))
        self.norm_in, self.norm_out = nn.LayerNorm(d, eps=EPS), nn.LayerNorm(d, eps=EPS)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.head_position = nn.Parameter(0.02 * torch.randn(n, d))
        initialise(self)
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, TextAttention):
                nn.init.zeros_(module.output.weight)
        self.head = (
            DiffusionHead(config.token_size, d, config.head_size, config.head_layers)
            if parts is None
            else nn.Linear(d, sum(parts))
        )

    # ---------------------------------------------------------------------------------------------------- tokens

    def to_tokens(self, frames: Num[Tensor, "b *c f h w"]) -> Num[Tensor, "b f n k"]:
        """Vectors of (channel, row in patch, column in patch) in raster order, or the digits of discrete ids."""
        if self.config.codebook_parts is None:
            p = self.config.patch_size
            return rearrange(frames, "b c f (h p) (w q) -> b f (h w) (c p q)", p=p, q=p)
        ids, digits = frames.flatten(2), []
        for size in self.config.codebook_parts:
            digits.append(ids % size)
            ids = ids // size
        return torch.stack(digits, dim=-1)

    def to_frames(self, tokens: Num[Tensor, "b f n k"]) -> Num[Tensor, "b *c f h w"]:
        """The inverse."""
        (rows, columns), p = self.config.grid, self.config.patch_size
        if self.config.codebook_parts is None:
            return rearrange(tokens, "b f (h w) (c p q) -> b c f (h p) (w q)", h=rows, w=columns, p=p, q=p)
        ids = torch.zeros_like(tokens[..., 0])
        for i in reversed(range(len(self.config.codebook_parts))):
            ids = ids * self.config.codebook_parts[i] + tokens[..., i]
        return ids.unflatten(2, (rows, columns))

    def embed_tokens(self, tokens: Num[Tensor, "*s k"]) -> Float[Tensor, "*s d"]:
        if self.code_embeddings is None:
            assert self.token_embedding is not None
            return self.token_embedding(tokens)
        return torch.stack([table(tokens[..., i]) for i, table in enumerate(self.code_embeddings)]).sum(0)

    # ------------------------------------------------------------------------------------------------ conditions

    def words(self, conditions: Conditions) -> Words | None:
        """The null word stands first and is hidden where a caption has words of its own."""
        if self.word_embedding is None or self.null_word is None:
            return None
        b = len(conditions.interval)
        null = self.null_word.expand(b, 1, -1)
        if conditions.caption is None or conditions.caption_mask is None:
            return Words(null, torch.ones(b, 1, dtype=torch.bool, device=self.device))
        mask = conditions.caption_mask
        vectors = torch.cat([null, self.word_embedding(conditions.caption)], dim=1)
        return Words(vectors, torch.cat([~mask.any(1, keepdim=True), mask], dim=1))

    def action_vectors(self, conditions: Conditions) -> Float[Tensor, "b f d"] | None:
        if self.action_embedding is None or self.null_action is None:
            return None
        if conditions.actions is None:
            return self.null_action.expand(len(conditions.interval), 1, -1)
        known = conditions.actions.isfinite().all(-1, keepdim=True)
        return torch.where(known, self.action_embedding(conditions.actions.nan_to_num()), self.null_action)

    def slots(
        self,
        tokens: Float[Tensor, "b f n d"],
        conditions: Conditions,
        times: Int[Tensor, " f"],
        masked: Bool[Tensor, " f"],
        level: Int[Tensor, "b f"],
    ) -> Float[Tensor, "b f s d"]:
        """The transformer's input: extra positions (noise level, class), then tokens.

        `times`: 0-based frames, `masked`: which slots are masked copies, `level`: how noisy a slot's history is.
        """
        b, f, _, d = tokens.shape
        shared = sin_cos(times, d).to(tokens.dtype)[None] + self.interval_embedding(conditions.interval - 1)[:, None]
        actions = self.action_vectors(conditions)
        shared = (shared if actions is None else shared + actions)[:, :, None]  # (b, f, 1, d)
        column, row = grid_sin_cos(self.config.grid, d, tokens.device).chunk(2, dim=-1)
        places = torch.cat([row, column], dim=-1).to(tokens.dtype)  # (n, d)
        noise = self.noise_embedding(level)[:, :, None]  # (b, f, 1, d)
        parts = [noise] if self.noise_mixer is None else []
        if self.class_embedding is not None:
            nothing = torch.full_like(conditions.interval, -1)
            label = nothing if conditions.label is None else conditions.label
            label = torch.where(label < 0, self.class_embedding.num_embeddings - 1, label)
            parts.append(self.class_embedding(label)[:, None, None].expand(b, f, 1, d))
        parts.append(tokens + self.role_embedding[masked.long()] + places)
        h = torch.cat(parts, dim=2) + shared
        if self.noise_mixer is not None:
            h = self.noise_mixer(torch.cat([h, noise.expand_as(h)], dim=-1))
        return self.norm_in(h)

    def run(
        self,
        h: Float[Tensor, "b f s d"],
        mask: Bool[Tensor, "*#b f g"],
        words: Words | None = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "b f n d"]:
        """The blocks; outputs of tokens as the head reads them. `mask`: which slots see which, cached ones first."""
        for layer, block in enumerate(self.blocks):
            h = block(h, mask, words, cache, layer)
        return self.norm_out(h[:, :, -self.config.num_tokens :]) + self.head_position

    # -------------------------------------------------------------------------------------------------- sampling

    def reserve(self, batch_size: int, num_frames: int) -> KVCache:
        """Memory for complete frames and the one in progress."""
        config = self.config
        positions = config.num_tokens + (config.noise_mode == "token") + (config.num_classes is not None)
        shape = config.num_layers, batch_size * positions, config.num_heads, num_frames
        return KVCache.reserve((*shape, config.hidden_size // config.num_heads), self.device, self.mask_token.dtype)

    def observe(
        self, cache: KVCache, tokens: Num[Tensor, "b f n k"], conditions: Conditions, first: int, level: int = 0
    ) -> None:
        """Reads complete frames into the cache; `first` is the time of the first of them."""
        b, f = tokens.shape[:2]
        times = torch.arange(first, first + f, device=self.device)
        masked = torch.full_like(times, self.config.teacher_forcing == "masked", dtype=torch.bool)
        levels = self.frame_levels(torch.full((b,), level, device=self.device), times)
        h = self.slots(self.embed_tokens(tokens), conditions, times, masked, levels)
        mask = causal_frames_mask(f, cache.length + f, self.device, self.config.window)
        self.run(h, mask, self.words(conditions), cache)
        cache.advance(f)

    def restore(
        self,
        cache: KVCache,
        tokens: Num[Tensor, "b n k"],
        hidden: Bool[Tensor, "b n"],
        conditions: Conditions,
        time: int,
        blind: Bool[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Outputs for one frame in progress, whose `hidden` tokens are unknown. Samples in `blind` see no history.

        The cache is left as it was.
        """
        embedded = torch.where(hidden[..., None], self.mask_token, self.embed_tokens(tokens))[:, None]
        times = torch.tensor([time], device=self.device)
        levels = torch.zeros(len(tokens), 1, dtype=torch.int64, device=self.device)
        h = self.slots(embedded, conditions, times, torch.ones_like(times, dtype=torch.bool), levels)
        mask = causal_frames_mask(1, cache.length + 1, self.device, self.config.window)
        if blind is not None:
            itself = torch.arange(cache.length + 1, device=self.device) == cache.length
            mask = mask & (itself | ~blind[:, None, None])
        return self.run(h, mask, self.words(conditions), cache)[:, 0]

    @property
    def denoiser(self) -> DiffusionHead:
        """The diffusion head of a model of continuous tokens."""
        assert isinstance(self.head, DiffusionHead), "discrete tokens are drawn from code_logits"
        return self.head

    def code_logits(self, z: Float[Tensor, "*s d"]) -> Float[Tensor, "*s k"]:
        """Logits over the digits of discrete tokens, from the transformer's outputs."""
        return self.head(z)

    # -------------------------------------------------------------------------------------------------- training

    def loss(self, batch: dict[str, Any], generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """`batch`: "tokens", latents (b, c, f, h, w) or ids (b, f, h, w); as far as they are there "label" (b,),
        "actions" (b, f, a) done in each frame, "interval" (b,), "caption" and "caption_mask", "length" (b,), the number
        of real frames, "history_only" (b, f), frames that are seen but not asked for, and "history", like tokens, what
        the frames look like where they are history (complete teacher forcing only).
        """
        tokens = self.to_tokens(batch["tokens"])
        draws = self.draw(tokens, generator)
        history = tokens if batch.get("history") is None else self.to_tokens(batch["history"])
        z, hidden = self.outputs(tokens, self.batch_conditions(batch, draws), draws, batch.get("length"), history)
        targets = tokens[:, self.config.num_given :] if self.is_complete else tokens
        given = tokens.shape[1] - targets.shape[1]
        if (length := batch.get("length")) is not None:
            frames = torch.arange(given, tokens.shape[1], device=tokens.device)
            hidden = hidden & (frames < length[:, None])[..., None]
        if (history_only := batch.get("history_only")) is not None:
            hidden = hidden & ~history_only[:, given:, None]
        return self.token_loss(z[hidden], targets[hidden], generator)

    @property
    def is_complete(self) -> bool:
        return self.config.teacher_forcing == "complete"

    def draw(self, tokens: Num[Tensor, "b f n k"], generator: torch.Generator) -> TrainingDraws:
        """A mask for every masked frame of every clip, and one level of noise per clip."""
        b, f, n, _ = tokens.shape
        config, place = self.config, generator.device
        p = f - config.num_given if self.is_complete else f
        order = torch.rand(b, p, n, generator=generator, device=place)
        ratio = truncated_normal(torch.rand(b, p, generator=generator, device=place), config.token_mask_ratio)
        level = torch.randint(config.noise_levels + 1, (b,), generator=generator, device=place)
        if config.is_discrete:  # whether an id is replaced, then by what
            noise = torch.rand(b, f, n, 1 + len(config.codebook_parts or ()), generator=generator, device=place)
        else:
            noise = torch.randn(tokens.shape, generator=generator, device=place)
        drops = torch.rand(2, b, generator=generator, device=place)
        drop = drops[0] < config.condition_dropout, drops[1] < config.history_dropout
        return TrainingDraws(*(part.to(tokens.device) for part in (order, ratio, level, noise, *drop)))

    def batch_conditions(self, batch: dict[str, Any], draws: TrainingDraws) -> Conditions:
        dropped, b = draws.drop_condition, len(batch["tokens"])
        interval = batch.get("interval", torch.ones(b, dtype=torch.int64, device=dropped.device))
        label, actions, mask = batch.get("label"), batch.get("actions"), batch.get("caption_mask")
        if actions is not None:  # what is done in a frame leads to the next one
            actions = F.pad(actions[:, :-1], (0, 0, 1, 0), value=torch.nan)
            actions = actions.masked_fill(dropped[:, None, None] & self.config.drop_actions, torch.nan)
        return Conditions(
            interval,
            None if label is None else label.masked_fill(dropped, -1),
            actions,
            batch.get("caption"),
            None if mask is None else mask & ~dropped[:, None],
        )

    def outputs(
        self,
        tokens: Num[Tensor, "b f n k"],
        conditions: Conditions,
        draws: TrainingDraws,
        length: Int[Tensor, " b"] | None = None,
        history: Num[Tensor, "b f n k"] | None = None,
    ) -> tuple[Float[Tensor, "b p n d"], Bool[Tensor, "b p n"]]:
        """Outputs for the masked frames, and which of their tokens were hidden (§3.2, masks of complete and masked
        teacher forcing).
        """
        config, (_, f, n, _) = self.config, tokens.shape
        hidden = draws.order.argsort(-1).argsort(-1) < torch.ceil(draws.mask_ratio * n)[..., None]
        seen = tokens if history is None or not self.is_complete else history
        noisy = self.embed_tokens(self.add_noise(seen, draws))
        if self.is_complete:
            frames, masked = frame_slots(f, config.num_given, trimmed=True)
            copies = self.embed_tokens(tokens[:, config.num_given :])
            copies = torch.where(hidden[..., None], self.mask_token, copies)
            embedded = torch.cat([noisy[:, :-1], copies], dim=1)
            mask = frame_history_mask(frames, masked, config.window).to(tokens.device)
        else:
            frames, masked = torch.arange(f), torch.ones(f, dtype=torch.bool)
            embedded = torch.where(hidden[..., None], self.mask_token, noisy)
            mask = causal_frames_mask(f, f, tokens.device, config.window)
        frames, masked = frames.to(tokens.device), masked.to(tokens.device)
        if length is not None:
            mask = hide_padded_frames(mask, frames, length)
        if config.history_dropout > 0:
            itself = torch.eye(len(frames), dtype=torch.bool, device=mask.device)
            mask = mask & (itself | ~(draws.drop_history[:, None] & masked)[..., None])
        level = self.frame_levels(draws.level, frames) * (~masked if self.is_complete else masked)
        if conditions.actions is not None:
            conditions = replace(conditions, actions=conditions.actions[:, frames])
        h = self.slots(embedded, conditions, frames, masked, level)
        z = self.run(h, mask, self.words(conditions))
        return z[:, -hidden.shape[1] :], hidden

    def frame_levels(self, level: Int[Tensor, " b"], times: Int[Tensor, " f"]) -> Int[Tensor, "b f"]:
        """The level of noise of every slot of history, from one per clip."""
        return level[:, None] * (times > 0) if self.config.clean_first_frame else level[:, None].expand(-1, len(times))

    def add_noise(self, tokens: Num[Tensor, "b f n k"], draws: TrainingDraws) -> Num[Tensor, "b f n k"]:
        """History as training sees it: x + σ_l ε, or a share of 0.04 l of all ids replaced by random ones."""
        times = torch.arange(tokens.shape[1], device=tokens.device)
        level = self.frame_levels(draws.level, times)[..., None, None]
        if self.config.codebook_parts is None:
            return tokens + self.config.noise_step * level * draws.noise
        sizes = torch.tensor(self.config.codebook_parts, device=tokens.device)
        return torch.where(draws.noise[..., :1] < 0.04 * level, (draws.noise[..., 1:] * sizes).long(), tokens)

    def token_loss(
        self, z: Float[Tensor, "r d"], targets: Num[Tensor, "r k"], generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean over hidden tokens: the diffusion loss of MAR's head, several draws for each, or cross-entropy."""
        if self.config.codebook_parts is not None:
            logits = self.head(z).float().split(self.config.codebook_parts, dim=-1)
            loss = torch.stack([F.cross_entropy(part, targets[:, i]) for i, part in enumerate(logits)]).sum()
            return loss, {"cross_entropy": loss.detach()}
        diffusion, repeat = self.config.diffusion, self.config.loss_repeat
        z, targets = z.repeat(repeat, 1), targets.repeat(repeat, 1)
        steps = diffusion.draw_steps((len(z),), generator).to(z.device)
        noise = torch.randn(targets.shape, generator=generator, device=generator.device).to(z.device)
        condition, time = self.head.condition(z), self.head.time(steps)
        output = self.head(diffusion.add_noise(targets, noise, steps), condition, time)
        error, bound = (part.mean() for part in diffusion.losses(output, targets, noise, steps))
        return error + bound, {"diffusion_loss": error.detach(), "variational_bound": bound.detach()}
