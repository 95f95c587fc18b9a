"""Baselines that MAGVIT is compared with under the same tokenizer (arXiv 2212.05199, §4.3, Tab. 5 and 6).

`MagvitAR`: an autoregressive transformer over the same tokens, one at a time.
`PrefixMagvit`: masked decoding with the condition as a prefix of the sequence instead of inside it.
Latent masking as in MaskGIT needs no network of its own: `MagvitConfig(condition_mode="cond->cond")`, decoded with
`keep_given`. The 2D-VQ is `VQ3DConfig(per_frame=True)`.
"""

import math
from dataclasses import dataclass, replace
from typing import NotRequired, TypedDict

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mutoscope.errors import UserError
from mutoscope.layers.attention import attention
from mutoscope.layers.draws import Draws, dropout, of_batch, rand
from mutoscope.layers.kv_cache import KVCache, StaticKVCache
from mutoscope.layers.masks import causal_mask
from mutoscope.layers.precision import project_exactly
from mutoscope.layers.token_masking import cosine_mask_ratio
from mutoscope.models.base import ModelConfig, VideoModel
from mutoscope.models.magvit.config import MagvitConfig, PaperSize, paper_size
from mutoscope.models.magvit.model import WEIGHT_CUT, WEIGHT_STD, Magvit, MagvitBatch, mask_tokens

BEGIN, SEPARATOR = -1, -2  # rows counted from the end of the vocabulary


# ---------------------------------------------------------------------------------------------------------------------
# The autoregressive transformer


@dataclass(frozen=True)
class MagvitARConfig(ModelConfig):
    """Sizes as in MAGVIT. Vocabulary rows: codes, class labels, "no class", then `num_special_tokens`.

    `condition_frames`: latent frames of the condition video that precede the clip, followed by a separator.
    With one special token the separator shares its row with "no class", as in the official vocabulary.
    """

    num_layers: int
    hidden_size: int
    num_heads: int
    mlp_size: int
    codebook_size: int = 1024
    num_classes: int = 0
    num_special_tokens: int = 1
    latent_shape: tuple[int, int, int] = (4, 16, 16)  # frames, rows, columns
    condition_frames: int = 0
    dropout: float = 0.1
    layer_norm_eps: float = 1e-6  # the released code's; BERT's 1e-12 is for MAGVIT alone
    label_smoothing: float = 1e-4

    def __post_init__(self) -> None:
        object.__setattr__(self, "latent_shape", tuple(self.latent_shape))  # JSON has no tuples
        if self.hidden_size % self.num_heads:
            raise UserError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}.")
        if not 0 <= self.condition_frames <= self.latent_shape[0]:
            raise UserError(f"condition_frames {self.condition_frames} is not among 0 ... {self.latent_shape[0]}.")

    @classmethod
    def paper(cls, size: PaperSize, **overrides: object) -> "MagvitARConfig":
        """The published size of MAGVIT."""
        layers, hidden, mlp, heads = paper_size(size)
        return replace(cls(layers, hidden, heads, mlp), **overrides)

    @property
    def num_tokens(self) -> int:
        return math.prod(self.latent_shape)

    @property
    def vocab_size(self) -> int:
        return self.codebook_size + self.num_classes + 1 + self.num_special_tokens

    @property
    def prefix_length(self) -> int:
        """Begin and class; with a condition, its tokens and the separator."""
        _, h, w = self.latent_shape
        return 2 + (self.condition_frames * h * w + 1 if self.condition_frames else 0)

    @property
    def max_length(self) -> int:
        """Longest input: the last token is predicted, never read."""
        return self.prefix_length + self.num_tokens - 1


class CausalBlock(nn.Module):
    """Norm before each sub-layer; attention without biases, MLP with them."""

    def __init__(self, config: MagvitARConfig) -> None:
        super().__init__()
        d, eps = config.hidden_size, config.layer_norm_eps
        self.num_heads = config.num_heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(d, eps=eps), nn.LayerNorm(d, eps=eps)
        self.qkv, self.output = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False)
        self.mlp_in, self.mlp_out = nn.Linear(d, config.mlp_size), nn.Linear(config.mlp_size, d)
        self.dropout = config.dropout

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        mask: Bool[Tensor, "n m"],
        layer: int,
        cache: KVCache | None,
        draws: Draws | None = None,
    ) -> Float[Tensor, "b n d"]:
        qkv = self.qkv(self.attention_norm(x))
        q, k, v = rearrange(qkv, "b n (three heads d) -> three b heads n d", three=3, heads=self.num_heads)
        if cache is not None:
            k, v = cache.append(layer, k, v)  # (b, heads, m, d)
        a = attention(q, k, v, mask, self.dropout, draws)
        x = x + dropout(self.output(rearrange(a, "b heads n d -> b n (heads d)")), self.dropout, draws)
        h = F.gelu(self.mlp_in(self.mlp_norm(x)), approximate="tanh")  # (b, n, mlp)
        return x + dropout(self.mlp_out(dropout(h, self.dropout, draws)), self.dropout, draws)


class MagvitARBatch(TypedDict):
    """Training batch of `MagvitAR`."""

    tokens: Int[Tensor, "b t h w"]
    """Codes of the clips, in [0, codebook_size)."""
    label: NotRequired[Int[Tensor, " b"]]
    """Class of every clip, in [0, num_classes]; num_classes means "no class"."""
    condition_tokens: NotRequired[Int[Tensor, "b t h w"]]
    """Tokens of the condition video; required if the configuration has `condition_frames`."""


class MagvitAR(VideoModel[MagvitARConfig, MagvitARBatch]):
    """Decoder-only transformer: [begin, class, condition..., separator?, tokens in (time, row, column) order].

    Causal in training as in sampling. (The official training mask also hides code 0 and the begin token from
    attention, which its cached decoding does not: the two disagree there.)
    """

    def __init__(self, config: MagvitARConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_length, config.hidden_size)
        self.blocks = nn.ModuleList(CausalBlock(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.output = nn.Linear(config.hidden_size, config.vocab_size)
        self.initialize_weights()

    def initialize_weights(self) -> None:
        """The released configuration of the baseline."""
        for module in self.modules():
            # Matrices: Xavier uniform; biases: 0.
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        # Embeddings: N(0, 1/d).
        for embedding in (self.token_embedding, self.position_embedding):
            nn.init.normal_(embedding.weight, std=self.config.hidden_size**-0.5)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.config.latent_shape

    def new_cache(self, batch_size: int, static: bool = False) -> KVCache:
        """Memory for one whole sequence per sample; `static`: steps of unchanging shapes (see `StaticKVCache`)."""
        config, heads = self.config, self.config.num_heads
        shape = (config.num_layers, batch_size, heads, config.max_length, config.hidden_size // heads)
        return (StaticKVCache if static else KVCache).reserve(shape, self.device, self.token_embedding.weight.dtype)

    def prefix(
        self, label: Int[Tensor, " b"] | None, condition_tokens: Int[Tensor, "b t h w"] | None, batch_size: int
    ) -> Int[Tensor, "b p"]:
        """Everything before the first token of the clip; without a label the class slot holds "no class"."""
        config = self.config
        labels = torch.full((batch_size,), config.num_classes) if label is None else label
        if labels.device.type == "cpu" and not 0 <= int(labels.min()) <= int(labels.max()) <= config.num_classes:
            raise UserError(f"Class labels must lie in 0 ... {config.num_classes - 1}; found {labels.tolist()}.")
        classes = config.codebook_size + labels.to(self.device).long()[:, None]  # (b, 1)
        parts = [torch.full_like(classes, BEGIN), classes]
        if config.condition_frames:
            if condition_tokens is None:
                raise UserError("This model needs the tokens of a condition video (a context).")
            context = condition_tokens[:, : config.condition_frames].to(self.device).flatten(1)  # (b, frames*h*w)
            parts += [context, torch.full_like(classes, SEPARATOR)]
        return torch.cat(parts, dim=1)

    def forward(
        self, ids: Int[Tensor, "b n"], cache: KVCache | None = None, draws: Draws | None = None
    ) -> Float[Tensor, "b n vocab"]:
        """Logits of the token after each position. With a cache, `ids` follow the positions that it holds.

        `draws`: of dropout; None for none.
        """
        if isinstance(cache, StaticKVCache):
            cache.aim(ids.shape[1])
        logits = self.step(ids, cache, draws)
        if cache is not None:
            cache.advance(ids.shape[1])
        return logits

    def step(
        self, ids: Int[Tensor, "b n"], cache: KVCache | None, draws: Draws | None = None
    ) -> Float[Tensor, "b n vocab"]:
        """`forward` without advancing the cache; the caller has aimed a static cache at these positions."""
        start, n = (cache.length if cache else 0), ids.shape[1]
        if isinstance(cache, StaticKVCache):
            rows = cache.positions[n]
            positions = self.position_embedding.weight[rows]  # (n, d)
            mask = torch.arange(cache.keys.shape[3], device=ids.device) <= rows[:, None]
        else:
            positions = self.position_embedding.weight[start : start + n]
            mask = causal_mask(n, start + n, ids.device)
        ids = torch.where(ids < 0, ids + self.config.vocab_size, ids)
        x = dropout(self.token_embedding(ids), self.config.dropout, draws) + positions  # (b, n, d)
        for layer, block in enumerate(self.blocks):
            x = block(x, mask, layer, cache, draws)
        return project_exactly(self.output, self.norm(x))

    def code_logits(self, ids: Int[Tensor, "b n"], cache: KVCache | None = None) -> Float[Tensor, "b k"]:
        """Logits over the codes for the token after the last one."""
        return self(ids, cache)[:, -1, : self.config.codebook_size]

    def loss(self, batch: MagvitARBatch, generator: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of every next token, class and condition included."""
        tokens = batch["tokens"].to(self.device).flatten(1)  # (b, n)
        prefix = self.prefix(batch.get("label"), batch.get("condition_tokens"), len(tokens))
        sequence = torch.cat([prefix, tokens], dim=1)  # (b, p + n)
        targets = torch.where(sequence < 0, sequence + self.config.vocab_size, sequence)[:, 1:]
        logits = self(sequence[:, :-1], draws=self.dropout_draws(generator))  # (b, p + n - 1, vocab)
        logits = logits.flatten(0, 1).float()
        loss = F.cross_entropy(logits, targets.flatten(), label_smoothing=self.config.label_smoothing)
        with torch.no_grad():
            last = logits.view(*targets.shape, -1)[:, -tokens.shape[1] :]  # (b, n, vocab)
            parts = {"accuracy": (last.argmax(-1) == tokens).float().mean()}
        return loss, parts


# ---------------------------------------------------------------------------------------------------------------------
# The condition as a prefix


class PrefixMagvit(Magvit):
    """Masked modelling of [class, tokens of the context frames, separator, tokens of the clip].

    Masking of the clip's own tokens ignores the condition. The sequence is longer: 1024 tokens and one latent context
    frame take 1282 positions.
    """

    def __init__(self, config: MagvitConfig, condition_frames: int = 1) -> None:
        if config.task_token or condition_frames < 1:
            raise UserError(
                "Prefix conditioning is for one task without a task token, with at least one context frame."
            )
        super().__init__(config)
        self.condition_frames = condition_frames
        _, h, w = config.latent_shape
        num_positions = self.position_embedding.num_embeddings + condition_frames * h * w + 1
        self.position_embedding = nn.Embedding(num_positions, config.hidden_size)
        nn.init.trunc_normal_(self.position_embedding.weight, std=WEIGHT_STD, a=-WEIGHT_CUT, b=WEIGHT_CUT)

    def prefix_logits(
        self,
        tokens: Int[Tensor, "b t h w"],
        condition_tokens: Int[Tensor, "b t h w"],
        label: Tensor | None,
        draws: Draws | None = None,
    ) -> Float[Tensor, "b t h w k"]:
        """Logits over the codes for every position of the clip. `tokens` holds codes, or MASK_TOKEN where hidden."""
        context = condition_tokens[:, : self.condition_frames].to(self.device).flatten(1)  # (b, c)
        classes = self.prefix("class-conditional", label, len(tokens))  # (b, 1)
        ids = torch.cat([classes, context, torch.full_like(classes, SEPARATOR), tokens.flatten(1)], dim=1)
        x = self.hidden(ids, draws)[:, -self.config.num_tokens :]  # (b, n, d)
        return self.head(x, self.token_embedding.weight, slice(self.config.codebook_size)).view(*tokens.shape, -1)

    def loss(self, batch: MagvitBatch, generator: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """`Magvit.loss` without refinement; raises UserError without condition tokens."""
        tokens, condition_tokens = batch["tokens"].to(self.device), batch.get("condition_tokens")
        if condition_tokens is None:
            raise UserError(f"Prefix conditioning needs condition_tokens in the batch; found keys {sorted(batch)}.")
        # One mask ratio for the whole batch, as in `Magvit.loss`.
        progress = rand(of_batch(generator)).to(self.device)  # ()
        scores = rand(generator, *tokens.shape).to(self.device)
        masked = mask_tokens(tokens, scores, cosine_mask_ratio(progress))
        draws = self.dropout_draws(generator)
        logits = self.prefix_logits(masked.inputs, condition_tokens, batch.get("label"), draws)
        return self.loss_from(logits, tokens, masked)


@dataclass(frozen=True)
class ConditionedPrefixMagvit:
    """A `PrefixMagvit` with the condition of its clips, as a network that `MaskedSampler` can decode."""

    model: PrefixMagvit
    condition_tokens: Int[Tensor, "b t h w"]

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.model.latent_shape

    @property
    def device(self) -> torch.device:
        return self.model.device

    def logits(
        self, tokens: Tensor, task: str, label: Tensor | None = None, unconditional: bool = False
    ) -> Float[Tensor, "b t h w k"]:
        return self.model.prefix_logits(tokens, self.condition_tokens, None if unconditional else label)
