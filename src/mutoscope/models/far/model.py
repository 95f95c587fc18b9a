"""FAR: frame-autoregressive video generation by flow matching within a frame (arXiv 2503.19325).

Every frame is denoised by flow matching, given clean earlier frames. In training each frame has a noise level of its
own, and some frames are clean and marked as such (stochastic clean context), so that a sampler's clean history is
nothing new to the network. Long models read frames that are further back than a window in coarse patches.

Times are 0…1000; −1 marks a clean frame and −2 a clean coarse one.

Top to bottom: the model, tokens, conditions, the pass, sampling, loss.

Shapes: b clips, f frames, n tokens of a frame, d the width, k the frames of a training window.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mutoscope.layers.draws import Draws, of_batch, rand, randn
from mutoscope.layers.embeddings import INITIAL_STD
from mutoscope.layers.precision import project_exactly
from mutoscope.models.base import VideoModel
from mutoscope.models.far.config import FARConfig
from mutoscope.models.far.network import (
    Block,
    FARCache,
    Frames,
    Heads,
    InProgress,
    StaticFARCache,
    causal_frames,
    modulated,
    rotation_table,
)

CLEAN = -1.0  # time of a frame without noise; coarse frames have twice the time of fine ones
COARSE_FACTOR = 2.0
FEATURES = 256  # sines and cosines of a time
NO_FRAME = 1e-9  # of the published loss: a clip without noisy frames has a loss of 0
MAX_MODULATION_BYTES = 2**27  # of the modulations of several steps that are kept together


@dataclass(frozen=True)
class FrameConditions:
    """Class of each clip, and actions of some of its frames. Missing: `None`, label −1, NaN actions."""

    label: Int[Tensor, " b"] | None = None
    """In [0, num_classes)."""
    actions: Float[Tensor, "b f a"] | None = None
    """Row t is done in frame t and leads to the frame after it."""

    @classmethod
    def grouped(cls, frames: Sequence["FrameConditions"]) -> list[tuple[int, "FrameConditions"]]:
        """Runs of frames with one class, joined into one value each: (number of frames, conditions)."""
        groups: list[list[FrameConditions]] = []
        for frame in frames:
            if groups and groups[-1][-1].label is frame.label:
                groups[-1].append(frame)
            else:
                groups.append([frame])
        return [(len(group), cls(group[0].label, _joined([frame.actions for frame in group]))) for group in groups]

    def equals(self, other: "FrameConditions") -> bool:
        """Whether both hold the same tensors; equal numbers in other tensors do not count as equal."""
        return self.label is other.label and self.actions is other.actions


def _joined(actions: Sequence[Float[Tensor, "b _f a"] | None]) -> Float[Tensor, "b _f2 a"] | None:
    """Actions of frames one after another; None if one of them has none."""
    known = [action for action in actions if action is not None]
    return torch.cat(known, dim=1) if len(known) == len(actions) else None


@dataclass(frozen=True)
class TrainingDraws:
    """All random draws of one loss, for k frames of each clip."""

    start: int
    """First frame of the window of frames."""
    noise: Float[Tensor, "b c k h w"]
    steps: Int[Tensor, "b k"]
    """Training step of flow matching of each frame."""
    clean: Bool[Tensor, "b k"]
    """Frames without noise."""
    drop_label: Bool[Tensor, " b"]
    drop_action: Bool[Tensor, "b k"]


class FARBatch(TypedDict):
    """Training batch of `FAR`. A missing condition is unknown for all clips."""

    tokens: Float[Tensor, "b c f h w"]
    """Latents as the tokenizer scales them."""
    label: NotRequired[Int[Tensor, " b"]]
    """Class of every clip, in [0, num_classes); −1: unknown."""
    actions: NotRequired[Float[Tensor, "b f a"]]
    """Row t is done in frame t and leads to frame t + 1; NaN: unknown."""
    history: NotRequired[Float[Tensor, "b c f h w"]]
    """Corrupted context: clean frames show it in place of `tokens`; targets stay those of `tokens`."""


class Modulations:
    """Modulations of a frame in progress for all steps of a sampler, computed for many steps at once.

    They depend on time, class and action, not on tokens: one product for all steps reads the weights once.
    """

    def __init__(self, model: "FAR", times: Float[Tensor, " steps"], conditions: FrameConditions, rows: int) -> None:
        self._model, self._times, self._conditions, self._rows = model, times, conditions, rows
        width = model.config.hidden_size * (6 * model.config.num_layers + 2)
        self._stride = max(1, MAX_MODULATION_BYTES // (4 * rows * width))
        self._chunk = -1
        self._values: list[Tensor] = []

    def at(self, step: int) -> list[Float[Tensor, "b 1 _size"]]:
        """Modulations of every block and of the output in one step."""
        chunk, index = divmod(step, self._stride)
        if chunk != self._chunk:
            times = self._times[chunk * self._stride : (chunk + 1) * self._stride]
            vector = self._model.vectors(times.expand(self._rows, -1), self._conditions)  # (b, steps, d)
            layers = (*(block.modulation for block in self._model.blocks), self._model.modulation)
            self._values, self._chunk = [layer(vector) for layer in layers], chunk
        return [value[:, index : index + 1] for value in self._values]


class FAR(VideoModel[FARConfig, FARBatch]):
    """Noisy and clean frames with their times and conditions in, velocities (noise minus clean latents) out."""

    def __init__(self, config: FARConfig) -> None:
        super().__init__()
        self.config = config
        d, layers = config.hidden_size, config.num_layers
        size = config.latent_channels * config.patch_size**2
        self.token_embedding = nn.Linear(size, d)
        self.time_embedding = nn.Sequential(nn.Linear(FEATURES, d), nn.SiLU(), nn.Linear(d, d))
        # The last rows mean "unknown".
        self.class_embedding = nn.Embedding(config.num_classes + 1, d) if config.num_classes else None
        self.action_embedding = None if config.action_size is None else nn.Embedding(config.action_size + 1, d)
        self.blocks = nn.ModuleList(Block(config, is_last=i == layers - 1) for i in range(layers))
        self.modulation, self.output = nn.Linear(d, 2 * d), nn.Linear(d, size)
        self.coarse_embedding: nn.Linear | None = None
        self.coarse_output: nn.Linear | None = None
        if config.coarse_patch_size is not None:
            coarse_size = config.latent_channels * config.coarse_patch_size**2
            self.coarse_embedding = nn.Linear(coarse_size, d)
            # Part of the published networks without any effect on a loss or a sample, and zero.
            self.coarse_output = nn.Linear(d, coarse_size).requires_grad_(False)
        self.initialize_weights()

    def initialize_weights(self) -> None:
        """The published rules: every block starts as the identity, and the output as 0."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=INITIAL_STD)
        for heads in (module for module in self.modules() if isinstance(module, Heads)):
            for matrix in heads.qkv.weight.chunk(3):  # three published matrices, each by the rule
                nn.init.xavier_uniform_(matrix)
        for name, parameter in self.named_parameters():
            if name.startswith("time_embedding") and parameter.ndim == 2:
                nn.init.normal_(parameter, std=INITIAL_STD)
            if name.endswith("modulation.weight") or name in ("output.weight", "coarse_output.weight"):
                nn.init.zeros_(parameter)

    @property
    def dtype(self) -> torch.dtype:
        """In which the network computes. Weights of 8 bits are no parameters."""
        return next(self.parameters()).dtype

    # ---------------------------------------------------------------------------------------------------- tokens

    def to_tokens(self, frames: Float[Tensor, "b c f h w"], patch_size: int) -> Float[Tensor, "b f n k"]:
        """Vectors of (channel, row in patch, column in patch) in raster order."""
        return rearrange(frames, "b c f (h p) (w q) -> b f (h w) (c p q)", p=patch_size, q=patch_size)

    def to_frames(self, tokens: Float[Tensor, "b f n k"], num_rows: int) -> Float[Tensor, "b c f h w"]:
        """The inverse of `to_tokens` for fine tokens, `num_rows` rows of them."""
        p = self.config.patch_size
        return rearrange(tokens, "b f (h w) (c p q) -> b c f (h p) (w q)", h=num_rows, p=p, q=p)

    def rotation(
        self, numbers: Int[Tensor, " f"], size: tuple[int, int], patch_size: int
    ) -> Float[Tensor, "tokens pairs 2"]:
        """Rotation of all tokens of the frames `numbers`; a coarse token is where its first fine token is."""
        step = patch_size // self.config.patch_size
        positions = numbers.bfloat16() if self.config.rounds_positions else numbers
        rows, columns = (torch.arange(side // patch_size) * step for side in size)
        axes = torch.meshgrid(positions.float().cpu(), rows.float(), columns.float(), indexing="ij")
        coordinates = torch.stack(axes, dim=-1).flatten(0, 2)  # (f*h*w, 3)
        return rotation_table(coordinates, self.config.rotary_channels).to(self.device)

    # ------------------------------------------------------------------------------------------------ conditions

    def vectors(self, times: Float[Tensor, "b f"], conditions: FrameConditions) -> Float[Tensor, "b f d"]:
        """Sum of the embeddings of time, class and action of each frame, after SiLU."""
        times = times.bfloat16().float() if self.config.rounds_times else times
        vector = self.time_embedding(time_features(times).to(self.dtype))  # (b, f, d)
        if self.class_embedding is not None:
            vector = vector + self._class_vectors(conditions.label, len(times))[:, None]
        if self.action_embedding is not None:
            vector = vector + self._action_vectors(conditions.actions, len(times))
        return F.silu(vector)

    def _class_vectors(self, label: Int[Tensor, " b"] | None, count: int) -> Float[Tensor, "b d"]:
        assert self.class_embedding is not None
        unknown = self.class_embedding.num_embeddings - 1
        if label is None:
            return self.class_embedding.weight[unknown].expand(count, -1)
        return self.class_embedding(torch.where(label < 0, unknown, label))

    def _action_vectors(self, actions: Float[Tensor, "b f a"] | None, count: int) -> Float[Tensor, "b #f d"]:
        """Rows of the table weighted by the numbers of an action; for a single 1 the row of that action."""
        assert self.action_embedding is not None
        table = self.action_embedding.weight  # (a + 1, d)
        if actions is None:
            return table[-1].expand(count, 1, -1)
        known = actions.isfinite().all(-1, keepdim=True)  # (b, f, 1)
        numbers = actions.nan_to_num().to(table)  # (b, f, a)
        if self.config.one_action:
            total = numbers.sum(-1, keepdim=True)
            known = known & (total > 0)
            numbers = numbers / torch.where(total > 0, total, 1.0)
        return torch.where(known, numbers @ table[:-1], table[-1])

    # -------------------------------------------------------------------------------------------------- the pass

    def frames(self, latents: Float[Tensor, "b c f h w"], first: int = 0, is_coarse: bool = False) -> Frames:
        """Frames as the blocks read them; `first` is the number of the first one."""
        size = latents.shape[-2], latents.shape[-1]
        patch_size = self.config.coarse_patch_size if is_coarse else self.config.patch_size
        assert patch_size is not None
        numbers = torch.arange(first, first + latents.shape[2])
        return Frames(self.embed(latents, is_coarse), self.rotation(numbers, size, patch_size), is_coarse)

    def embed(self, latents: Float[Tensor, "b c f h w"], is_coarse: bool = False) -> Float[Tensor, "b f n d"]:
        """Embedded tokens of frames, all fine or all coarse."""
        embedding = self.coarse_embedding if is_coarse else self.token_embedding
        patch_size = self.config.coarse_patch_size if is_coarse else self.config.patch_size
        assert embedding is not None and patch_size is not None
        return embedding(self.to_tokens(latents, patch_size).to(self.dtype))

    def forward(
        self, latents: Float[Tensor, "b c f h w"], times: Float[Tensor, "b f"], conditions: FrameConditions
    ) -> Float[Tensor, "b c f2 h w"]:
        """Velocities of the fine frames of whole clips: in a long model the last `window` ones, else all of them."""
        count, window = latents.shape[2], self.config.num_fine_frames
        coarse = 0 if window is None else max(count - window, 0)
        times = torch.cat([times[:, :coarse] * COARSE_FACTOR, times[:, coarse:]], dim=1)
        vectors = self.vectors(times, conditions)  # (b, f, d)
        spans = [(coarse, count, False)] if coarse == 0 else [(0, coarse, True), (coarse, count, False)]
        parts = [self.frames(latents[:, :, first:last], first, is_coarse) for first, last, is_coarse in spans]
        fine = self.run_blocks(parts, [vectors[:, first:last] for first, last, _ in spans], coarse)
        return self.velocities(fine, self.modulation(vectors[:, coarse:]), latents.shape[-2])

    def run_blocks(self, parts: list[Frames], vectors: list[Float[Tensor, "b _f d"]], num_coarse: int) -> Frames:
        """The fine frames of a clip after all blocks, `num_coarse` coarse ones before them."""
        numbers = [
            torch.arange(part.x.shape[1]).add(0 if part.is_coarse else num_coarse).repeat_interleave(part.x.shape[2])
            for part in parts
        ]
        keys = torch.cat(numbers).to(self.device)
        mask = causal_frames(keys, keys, self.config.slope)
        for layer, block in enumerate(self.blocks):
            is_last = layer == len(self.blocks) - 1
            mask = mask[-parts[-1].num_tokens :] if is_last else mask
            modulations = [block.modulation(vector) for vector in vectors]
            parts = block(parts, modulations, mask, num_outputs=1 if is_last else None)
        [fine] = parts
        return fine

    def velocities(
        self, part: Frames, modulation: Float[Tensor, "b f two_d"], height: int
    ) -> Float[Tensor, "b c f h w"]:
        """The output layer, in float32 even inside of autocast."""
        scale, shift = modulation.chunk(2, dim=-1)  # in this order, unlike in the blocks
        tokens = project_exactly(self.output, modulated(part.x, shift, scale))
        return self.to_frames(tokens, height // self.config.patch_size)

    # -------------------------------------------------------------------------------------------------- sampling

    def reserve(self, batch_size: int, num_frames: int, static: bool = False) -> FARCache:
        """Cache for `num_frames` frames, the one in progress included; `static`: see `StaticKVCache`."""
        config, fine = self.config, math.prod(self.config.token_grid)
        num_fine = min(num_frames, config.num_fine_frames or num_frames)
        coarse = fine * (config.patch_size / (config.coarse_patch_size or 1)) ** 2
        length = num_fine * fine + round((num_frames - num_fine) * coarse)
        shape = config.num_layers, batch_size, config.num_heads, length, config.head_size
        return (StaticFARCache if static else FARCache).reserve(shape, self.device, self.dtype)

    def read(
        self,
        cache: FARCache,
        latents: Float[Tensor, "b c f h w"],
        conditions: FrameConditions,
        first: int,
        is_coarse: bool = False,
    ) -> None:
        """Reads clean frames into the cache; `first` is the number of the first one."""
        numbers, rotation, mask = self.place(cache, latents, first, is_coarse)
        self.read_step(cache, latents, conditions, rotation, mask, is_coarse)
        cache.frames = cache.frames + numbers
        cache.advance(len(numbers))

    def place(
        self, cache: FARCache, latents: Float[Tensor, "b c f h w"], first: int, is_coarse: bool = False
    ) -> tuple[list[int], Float[Tensor, "tokens pairs 2"], Bool[Tensor, "n m"] | Float[Tensor, "n m"] | None]:
        """Aims the cache at frames: the frame number of each of their tokens, the tokens' rotation, and their mask."""
        patch_size = self.config.coarse_patch_size if is_coarse else self.config.patch_size
        assert patch_size is not None
        (count, height, width), frames = latents.shape[2:], torch.arange(first, first + latents.shape[2])
        num_tokens = (height // patch_size) * (width // patch_size)
        numbers = frames.repeat_interleave(num_tokens).tolist()
        cache.aim(len(numbers))
        cache.in_progress = None
        seen, is_static = cache.frames + numbers, isinstance(cache, StaticFARCache)
        if is_static:  # attention reads the free positions too, which count as later frames
            seen = seen + [first + count] * (cache.keys.shape[3] - len(seen))
        needs_mask = is_static or count > 1 or self.config.slope != 0
        mask = self._mask(numbers, seen) if needs_mask else None
        return numbers, self.rotation(frames, (height, width), patch_size), mask

    def read_step(
        self,
        cache: FARCache,
        latents: Float[Tensor, "b c f h w"],
        conditions: FrameConditions,
        rotation: Float[Tensor, "tokens pairs 2"],
        mask: Bool[Tensor, "n m"] | Float[Tensor, "n m"] | None,
        is_coarse: bool = False,
    ) -> Float[Tensor, "b f d"]:
        """`read` at the positions that the cache is aimed at; with a static cache it depends on tensors alone.

        Returns the vectors of the conditions, for steps that must return something.
        """
        time = CLEAN * (COARSE_FACTOR if is_coarse else 1.0)
        vector = self.vectors(torch.full(latents.shape[:3:2], time, device=self.device), conditions)  # (b, f, d)
        parts = [Frames(self.embed(latents, is_coarse), rotation, is_coarse)]
        for layer, block in enumerate(self.blocks):
            # Of the last block only keys and values are needed.
            num_outputs = 0 if layer == len(self.blocks) - 1 else None
            parts = block(parts, [block.modulation(vector)], mask, cache, layer, num_outputs)
        return vector

    def velocity(
        self,
        cache: FARCache,
        latents: Float[Tensor, "b c 1 h w"],
        modulations: list[Float[Tensor, "b 1 _size"]],
        number: int,
    ) -> Float[Tensor, "b c 1 h w"]:
        """Velocity of the frame in progress. The length of the cache does not change."""
        return self.velocity_step(cache, latents, modulations, self.in_progress(cache, latents, number))

    def in_progress(self, cache: FARCache, latents: Float[Tensor, "b c 1 h w"], number: int) -> InProgress:
        """Aims the cache at the frame in progress: its rotation and mask, which are computed once."""
        found = cache.in_progress
        if found is None or found.number != number:
            found = cache.in_progress = InProgress(number, *self.place(cache, latents, number)[1:])
        return found

    def velocity_step(
        self,
        cache: FARCache,
        latents: Float[Tensor, "b c 1 h w"],
        modulations: list[Float[Tensor, "b 1 _size"]],
        frame: InProgress,
    ) -> Float[Tensor, "b c 1 h w"]:
        """`velocity` at the positions that the cache is aimed at; with a static cache it depends on tensors alone."""
        part = Frames(self.embed(latents), frame.rotation)
        for layer, block in enumerate(self.blocks):
            [part] = block([part], modulations[layer : layer + 1], frame.mask, cache, layer)
        return self.velocities(part, modulations[-1], latents.shape[-2])

    def _mask(self, queries: list[int], keys: list[int]) -> Bool[Tensor, "n m"] | Float[Tensor, "n m"]:
        numbers = (torch.tensor(frames, device=self.device) for frames in (queries, keys))
        return causal_frames(*numbers, self.config.slope)

    def modulations(self, times: Float[Tensor, " steps"], conditions: FrameConditions, rows: int) -> Modulations:
        """Modulations of a frame in progress at the times of all steps of a sampler."""
        return Modulations(self, times.to(self.device), conditions, rows)

    # -------------------------------------------------------------------------------------------------- training

    def loss(self, batch: FARBatch, generator: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """Squared error of the velocities of the noisy ones among the last `window` frames."""
        draws = self.draw(batch["tokens"], generator)
        latents, times, target = self.noisy(batch["tokens"], draws, batch.get("history"))
        velocities = self(latents, times, self.batch_conditions(batch, draws))
        loss = self.frame_loss(velocities, target, draws)
        if self.coarse_embedding is not None and latents.shape[2] <= self.config.window:
            # Windows without coarse frames: training on several processes needs a gradient for every weight.
            coarse = (*self.coarse_embedding.parameters(), *self._coarse_weights())
            loss = loss + 0.0 * torch.stack([weight.sum() for weight in coarse]).sum()
        return loss, {"flow_loss": loss.detach()}

    def _coarse_weights(self) -> list[Tensor]:
        return [
            weight
            for block in self.blocks
            for name, weight in block.named_parameters()
            if name.startswith("coarse_heads") and weight.requires_grad
        ]

    def draw(self, tokens: Float[Tensor, "b c f h w"], generator: Draws) -> TrainingDraws:
        """A window of frames (in a long model of random length and start), noise, levels and what is hidden.

        Long models: the same window for all clips of the batch, k drawn from {window … f − 1}.
        """
        (b, c, f, h, w), config, shared = tokens.shape, self.config, of_batch(generator)
        k, start = f, 0
        if config.is_long and f > config.window:
            k = int(torch.randint(config.window, f, (), generator=shared, device=shared.device))
            start = int(torch.randint(f - k + 1, (), generator=shared, device=shared.device))
        noise = randn(generator, b, c, k, h, w)
        steps = self._draw_steps((b, k), generator)
        clean = rand(generator, b, k) < (config.clean_share or 0.0)
        if config.is_long:
            clean[:, : max(k - config.window, 0)] = True
        drop_label = rand(generator, b) < config.condition_dropout
        drop_action = rand(generator, b, k) < config.condition_dropout
        return TrainingDraws(
            start, *(part.to(tokens.device) for part in (noise, steps, clean, drop_label, drop_action))
        )

    def _draw_steps(self, shape: tuple[int, int], generator: Draws) -> Int[Tensor, "b k"]:
        if self.config.time_distribution == "logit_normal":
            return self.config.diffusion.draw_steps(shape, generator)
        return (rand(generator, *shape) * len(self.config.diffusion.sigmas)).long()

    def noisy(
        self,
        tokens: Float[Tensor, "b c f h w"],
        draws: TrainingDraws,
        history: Float[Tensor, "b c f h w"] | None = None,
    ) -> tuple[Float[Tensor, "b c k h w"], Float[Tensor, "b k"], Float[Tensor, "b c k h w"]]:
        """The window's frames as the network reads them, their times, and the target velocities.

        `history`: clean frames show it, if there is any.
        """
        window = slice(draws.start, draws.start + draws.noise.shape[2])
        clean, shown = tokens[:, :, window], (tokens if history is None else history)[:, :, window]
        diffusion = self.config.diffusion
        sigma = diffusion.sigmas.to(clean.device)[draws.steps][:, None, :, None, None]  # (b, 1, k, 1, 1)
        mixed = sigma * draws.noise + (1 - sigma) * clean
        latents = torch.where(draws.clean[:, None, :, None, None], shown, mixed)
        times = diffusion.times(draws.steps).masked_fill(draws.clean, CLEAN)
        return latents, times, draws.noise - clean

    def batch_conditions(self, batch: FARBatch, draws: TrainingDraws) -> FrameConditions:
        """Conditions of the window's frames, hidden where `draws` says so."""
        label, actions = batch.get("label"), batch.get("actions")
        if actions is not None:
            actions = actions[:, draws.start : draws.start + draws.drop_action.shape[1]]
            actions = actions.masked_fill(draws.drop_action[..., None], torch.nan)
        return FrameConditions(None if label is None else label.masked_fill(draws.drop_label, -1), actions)

    def frame_loss(
        self, velocities: Float[Tensor, "b c f2 h w"], target: Float[Tensor, "b c k h w"], draws: TrainingDraws
    ) -> Float[Tensor, ""]:
        """Mean over clips of the mean over noisy frames among the last `window`; a clip without any has 0."""
        count = min(self.config.window, velocities.shape[2])
        error = (velocities[:, :, -count:].float() - target[:, :, -count:].float()).square().mean(dim=(1, 3, 4))
        noisy = ~draws.clean[:, -count:]  # (b, count)
        return ((error * noisy).sum(1) / (noisy.sum(1) + NO_FRAME)).mean()


def time_features(times: Float[Tensor, "*s"]) -> Float[Tensor, "*s features"]:
    """[cos(t f), sin(t f)] with f_k = 10000^(−k/127): the last frequency is 1/10000."""
    half = FEATURES // 2
    exponents = torch.arange(half, dtype=torch.float32, device=times.device)
    angle = times.float()[..., None] * torch.exp(exponents * -math.log(10_000.0) / (half - 1))
    return torch.cat([angle.cos(), angle.sin()], dim=-1)
