"""MAGVIT: a bidirectional transformer over all tokens of a clip, trained by conditional masked modelling (COMMIT).

arXiv 2212.05199: §3.2 (COMMIT), appendix B (architecture, training). Where the paper and the released code differ, the
code is followed (floor for the number of masked tokens, task tokens shared by related tasks).

Read from top to bottom: configuration, one training example (`mask_tokens`), the loss, the network.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mutoscope.errors import UserError
from mutoscope.layers.attention import attention
from mutoscope.layers.condition_regions import TASKS, check_task, condition_region, touched_tokens
from mutoscope.layers.token_masking import MASK_TOKEN, cosine_mask_ratio, num_masked_tokens, select_lowest
from mutoscope.models.base import ModelConfig, VideoModel

ConditionMode = Literal["cond->input", "input->input", "cond->cond"]
LossGroup = Literal["mask", "refine", "recons"]

TASK_TOKENS = {
    "class-conditional": -3,
    "frame-prediction": -4,
    "class-conditional-frame-prediction": -4,
    "frame-interpolation": -5,
    "outpaint-central": -6,
    "outpaint-vertical": -6,
    "outpaint-horizontal": -6,
    "outpaint-dynamic": -6,
    "inpaint-central": -6,
    "inpaint-dynamic": -6,
}
"""Special token that opens the sequence, counted from the end of the vocabulary (-1 is [MASK])."""

SEPARATE_INPAINTING_TOKEN = -7

# layers, hidden, MLP, heads
PAPER_SIZES = {
    "Ti": (12, 192, 768, 3),
    "S": (12, 384, 1536, 6),
    "B": (12, 768, 3072, 12),
    "L": (24, 1024, 4096, 16),
    "H": (32, 1280, 5120, 16),
}


@dataclass(frozen=True)
class MagvitConfig(ModelConfig):
    """Size, vocabulary and objective.

    Vocabulary rows: `codebook_size` codes, `num_classes` labels, one row "no class", then `num_special_tokens`. Single
    task models of the paper have 1 special token and no task token, multi-task models 16 and a task token.
    `condition_clip_shape` decides which tokens are condition: None, by the released rule on the latent grid; the
    clips' shape in pixels, by the paper's rule, every token whose supervoxel holds a given pixel.
    `context_frames` are given in training at the start of the clip (or at both ends), which are
    `latent_context_frames` rows of latents: 1 and 1, but 5 and 2 for Kinetics-600.
    `label_dropout` is the probability that training replaces a label by "no class", which guidance needs; the paper
    and the released code never do.
    `class_loss` weighs one more cross-entropy, which neither has: from the given frames alone, the slot of the class is
    to name the label, so that sampling may draw it first.
    """

    num_layers: int
    hidden_size: int
    num_heads: int
    mlp_size: int
    codebook_size: int = 1024
    num_classes: int = 0
    num_special_tokens: int = 1
    latent_shape: tuple[int, int, int] = (4, 16, 16)  # frames, rows, columns
    task_token: bool = False
    tasks: tuple[str, ...] = TASKS
    separate_inpainting_token: bool = False
    dropout: float = 0.1
    layer_norm_eps: float = 1e-12
    label_smoothing: float = 1e-4
    loss_groups: tuple[LossGroup, ...] = ("mask", "refine", "recons")
    condition_mode: ConditionMode = "cond->input"
    condition_clip_shape: tuple[int, int, int] | None = None
    context_frames: int = 1
    latent_context_frames: int = 1
    label_dropout: float = 0.0
    class_loss: float = 0.0

    def __post_init__(self) -> None:
        # JSON has no tuples.
        for name in ("latent_shape", "tasks", "loss_groups", "condition_clip_shape"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(getattr(self, name)))
        clip = self.condition_clip_shape or self.latent_shape
        if any(size % cells for size, cells in zip(clip, self.latent_shape, strict=True)):
            raise UserError(f"condition_clip_shape {clip} is no multiple of latent_shape {self.latent_shape}.")
        if self.hidden_size % self.num_heads:
            raise UserError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}.")
        for task in self.tasks:
            check_task(task)
        needed = max((-self.task_token_id(task) for task in self.tasks), default=1) if self.task_token else 1
        if self.num_special_tokens < needed:
            raise UserError(f"num_special_tokens is {self.num_special_tokens}, but these tasks need {needed}.")
        unknown = set(self.loss_groups) - {"mask", "refine", "recons"}
        if unknown or not self.loss_groups:
            raise UserError(f"loss_groups must name some of mask, refine, recons; found {self.loss_groups}.")
        if not 0 <= self.label_dropout < 1:
            raise UserError(f"label_dropout must lie in [0, 1), found {self.label_dropout}.")
        if not 0 <= self.class_loss < math.inf or (self.class_loss and not self.num_classes):
            raise UserError(f"class_loss is {self.class_loss}; it must be finite and not negative, 0 without classes.")
        if not 1 <= self.latent_context_frames <= min(self.context_frames, self.latent_shape[0]):
            frames = f"{self.latent_context_frames} latent frames for {self.context_frames} context frames"
            raise UserError(f"{frames} of {self.latent_shape[0]} in all: latent_context_frames does not fit.")
        if self.condition_mode not in ("cond->input", "input->input", "cond->cond"):
            raise UserError(f"condition_mode {self.condition_mode!r} is none of cond->input, input->input, cond->cond.")

    @classmethod
    def paper(cls, size: Literal["Ti", "S", "B", "L", "H"], **overrides: Any) -> "MagvitConfig":
        """The published size, by default for one task, no classes and a 4x16x16 latent grid."""
        if size not in PAPER_SIZES:
            raise UserError(f"There is no MAGVIT size {size!r}; sizes: {', '.join(PAPER_SIZES)}.")
        layers, hidden, mlp, heads = PAPER_SIZES[size]
        return cls(num_layers=layers, hidden_size=hidden, num_heads=heads, mlp_size=mlp, **overrides)

    @property
    def num_tokens(self) -> int:
        return math.prod(self.latent_shape)

    @property
    def vocab_size(self) -> int:
        return self.codebook_size + self.num_classes + 1 + self.num_special_tokens

    @property
    def prefix_length(self) -> int:
        return 1 + int(self.task_token)

    @property
    def unconditional_class_id(self) -> int:
        return self.codebook_size + self.num_classes

    def condition_mask(
        self, task: str, context_frames: int | None = None, temporal_stride: int = 1
    ) -> Bool[Tensor, "t h w"]:
        """Which token positions `task` is given, when `context_frames` frames are given at the start (or both ends).

        Without a number, as many as in training.
        """
        if self.condition_clip_shape is not None:
            frames = context_frames or self.context_frames
            return touched_tokens(condition_region(task, self.condition_clip_shape, frames, frames), self.latent_shape)
        frames = math.ceil(context_frames / temporal_stride) if context_frames else self.latent_context_frames
        return condition_region(task, self.latent_shape, frames, frames)

    @property
    def reads_condition_videos(self) -> bool:
        return True

    def needs_label(self, task: str) -> bool:
        """With a class loss, frame prediction learns to name the class too."""
        return task.startswith("class-conditional") or (self.class_loss > 0 and task == "frame-prediction")

    def task_token_id(self, task: str) -> int:
        if self.separate_inpainting_token and task.startswith("inpaint"):
            return SEPARATE_INPAINTING_TOKEN
        return TASK_TOKENS[task]


# ---------------------------------------------------------------------------------------------------------------------
# One training example


@dataclass(frozen=True)
class MaskedTokens:
    """Input of one training step. The three groups are disjoint; positions in none of them carry no loss."""

    inputs: Int[Tensor, "b t h w"]
    """Codes, or MASK_TOKEN."""
    is_masked: Bool[Tensor, "b t h w"]
    """Input is [MASK]."""
    is_refined: Bool[Tensor, "b t h w"]
    """Input is the token of the condition video."""
    is_reconstructed: Bool[Tensor, "b t h w"]
    """Input is the target token itself."""

    def group(self, name: LossGroup) -> Bool[Tensor, "b t h w"]:
        return {"mask": self.is_masked, "refine": self.is_refined, "recons": self.is_reconstructed}[name]


def mask_tokens(
    tokens: Int[Tensor, "b t h w"],
    scores: Float[Tensor, "b t h w"],
    mask_ratio: Float[Tensor, ""],
    condition_tokens: Int[Tensor, "b t h w"] | None = None,
    condition_mask: Bool[Tensor, "*b t h w"] | None = None,
    condition_mode: ConditionMode = "cond->input",
) -> MaskedTokens:
    """Corrupt a batch (arXiv 2212.05199 eq. 3): the tokens with the lowest scores are selected.

    "cond->input", the method of the paper: selected positions inside the condition region show the condition token,
    the other selected ones [MASK], the rest the clean token. Being in the condition region does not protect a position
    from being selected. The two baselines never select condition positions: "input->input" shows the clean token
    there, "cond->cond" the condition token, and neither puts a loss on them.
    """
    b = tokens.shape[0]
    if condition_mask is None:
        in_condition = torch.zeros_like(tokens, dtype=torch.bool)
    else:
        in_condition = condition_mask.to(tokens.device).expand_as(tokens)
    protected = torch.zeros_like(in_condition) if condition_mode == "cond->input" else in_condition
    scores = scores.masked_fill(protected, math.inf)
    num_candidates = (~protected).flatten(1).sum(-1)  # (b,)
    count = num_masked_tokens(mask_ratio.expand(b), num_candidates).minimum(num_candidates)
    selected = select_lowest(scores.flatten(1), count).view_as(tokens) & ~protected
    is_refined = selected & in_condition
    is_masked = selected & ~in_condition
    inputs = tokens.masked_fill(is_masked, MASK_TOKEN)
    shows_condition = protected if condition_mode == "cond->cond" else is_refined
    if condition_tokens is not None:
        inputs = torch.where(shows_condition, condition_tokens, inputs)
    return MaskedTokens(inputs, is_masked, is_refined, ~selected & ~protected)


def masked_cross_entropy(
    logits: Float[Tensor, "b n k"],
    targets: Int[Tensor, "b n"],
    weights: Float[Tensor, "b n"],
    label_smoothing: float,
) -> tuple[Float[Tensor, ""], Float[Tensor, "b n"]]:
    """Weighted mean per sample, then mean over samples (a sample without any weight counts 0); and the terms."""
    terms = F.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), reduction="none", label_smoothing=label_smoothing
    ).view_as(weights)  # (b, n)
    per_sample = (terms * weights).sum(-1) / (weights.sum(-1) + 1e-8)  # (b,)
    return per_sample.mean(), terms


# ---------------------------------------------------------------------------------------------------------------------
# The network


class SelfAttention(nn.Module):
    """Multi-head attention in both directions; every position attends to every position."""

    def __init__(self, config: MagvitConfig):
        super().__init__()
        self.num_heads = config.num_heads
        self.dropout = config.dropout
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.output = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        q, k, v = rearrange(self.qkv(x), "b n (three heads d) -> three b heads n d", three=3, heads=self.num_heads)
        a = attention(q, k, v, mask=None, dropout_p=self.dropout if self.training else 0.0)
        return self.output(rearrange(a, "b heads n d -> b n (heads d)"))


class Block(nn.Module):
    """BERT block: the norm comes after the residual sum (post-norm)."""

    def __init__(self, config: MagvitConfig):
        super().__init__()
        d, eps = config.hidden_size, config.layer_norm_eps
        self.attention = SelfAttention(config)
        self.attention_norm = nn.LayerNorm(d, eps=eps)
        self.mlp_in = nn.Linear(d, config.mlp_size)
        self.mlp_out = nn.Linear(config.mlp_size, d)
        self.mlp_norm = nn.LayerNorm(d, eps=eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        x = self.attention_norm(x + self.dropout(self.attention(x)))
        h = F.gelu(self.mlp_in(x), approximate="tanh")  # (b, n, mlp)
        return self.mlp_norm(x + self.dropout(self.mlp_out(h)))


class Head(nn.Module):
    """Dense, GELU, norm; then the product with the word embeddings (tied) plus a bias per vocabulary row."""

    def __init__(self, config: MagvitConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(
        self, x: Float[Tensor, "*b d"], embeddings: Float[Tensor, "vocab d"], rows: slice
    ) -> Float[Tensor, "*b rows"]:
        x = self.norm(F.gelu(self.dense(x), approximate="tanh"))
        return F.linear(x, embeddings[rows], self.bias[rows])


class Magvit(VideoModel):
    """Sequence [task?, class, tokens in (time, row, column) order] in, logits for every position out."""

    def __init__(self, config: MagvitConfig):
        super().__init__()
        self.config = config
        d = config.hidden_size
        self.token_embedding = nn.Embedding(config.vocab_size, d)
        self.position_embedding = nn.Embedding(config.prefix_length + config.num_tokens, d)
        self.embedding_norm = nn.LayerNorm(d, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.head = Head(config)
        self.initialize_weights()

    def initialize_weights(self, generator: torch.Generator | None = None) -> None:
        """Appendix B.2: every matrix and embedding from one truncated normal; the network starts near zero logits."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                # 0.02 times a normal cut at two sigma; the loss of variance by the cut is not corrected for.
                nn.init.trunc_normal_(module.weight, std=0.02, a=-0.04, b=0.04, generator=generator)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
            if isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.zeros_(self.head.bias)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.config.latent_shape

    def prefix(
        self, task: str, label: Int[Tensor, " b"] | None, batch_size: int, unconditional: bool = False
    ) -> Int[Tensor, "b p"]:
        """[task?, class]. The class slot holds "no class" unless the task is class-conditional and a label is given.

        `unconditional` asks for the prefix of the unconditional pass of guidance: no class, and the task token of full
        generation if that task is part of the model's mix.
        """
        check_task(task, self.config.tasks)
        class_ids = torch.full((batch_size, 1), self.config.unconditional_class_id, device=self.device)
        if label is not None and task.startswith("class-conditional") and not unconditional:
            self._check_label(label)
            class_ids = self.config.codebook_size + label.to(self.device).long()[:, None]
        if not self.config.task_token:
            return class_ids  # (b, 1)
        if unconditional and "class-conditional" in self.config.tasks:
            task = "class-conditional"
        task_ids = torch.full_like(class_ids, self.config.task_token_id(task))
        return torch.cat([task_ids, class_ids], dim=1)  # (b, 2)

    def _check_label(self, label: Int[Tensor, " b"]) -> None:
        # A label beyond "no class" would silently address a special token. Labels already on an accelerator are
        # not looked at: reading them would stall it.
        if label.device.type == "cpu" and bool(((label < 0) | (label > self.config.num_classes)).any()):
            raise UserError(f"Class labels must lie in 0 ... {self.config.num_classes - 1}; found {label.tolist()}.")

    def hidden(self, ids: Int[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
        ids = torch.where(ids < 0, ids + self.config.vocab_size, ids)
        positions = self.position_embedding.weight[: ids.shape[1]]  # (n, d)
        x = self.dropout(self.embedding_norm(self.token_embedding(ids) + positions))  # (b, n, d)
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, ids: Int[Tensor, "b n"]) -> Float[Tensor, "b n vocab"]:
        """Logits over the whole vocabulary for a sequence of ids; negative ids count from the vocabulary's end."""
        return self.head(self.hidden(ids), self.token_embedding.weight, slice(None))

    def logits(
        self,
        tokens: Int[Tensor, "b t h w"],
        task: str,
        label: Int[Tensor, " b"] | None = None,
        unconditional: bool = False,
    ) -> Float[Tensor, "b t h w k"]:
        """Logits over the codes for every token position. `tokens` holds codes, or MASK_TOKEN where hidden."""
        b, t, h, w = tokens.shape
        if (t, h, w) != self.config.latent_shape:
            raise UserError(f"The model expects tokens of shape {self.config.latent_shape}, found {(t, h, w)}.")
        prefix = self.prefix(task, label, b, unconditional)  # (b, p)
        x = self.hidden(torch.cat([prefix, tokens.flatten(1)], dim=1))  # (b, p + n, d)
        # Softmax and loss see the codes only, so the other vocabulary rows are never multiplied.
        rows = slice(self.config.codebook_size)
        return self.head(x[:, prefix.shape[1] :], self.token_embedding.weight, rows).view(b, t, h, w, -1)

    def class_logits(self, condition_tokens: Int[Tensor, "b t h w"]) -> Float[Tensor, "b classes"]:
        """Logits over the classes from the given frames of frame prediction alone; trained if `class_loss` is not 0.

        The sequence ends behind the given tokens: [task?, "no class", tokens of the first latent frames].
        """
        given = condition_tokens[:, : self.config.latent_context_frames].to(self.device).flatten(1)
        prefix = self.prefix("frame-prediction", None, len(given))  # (b, p)
        x = self.hidden(torch.cat([prefix, given], dim=1))[:, prefix.shape[1] - 1]  # (b, d)
        rows = slice(self.config.codebook_size, self.config.unconditional_class_id)
        return self.head(x, self.token_embedding.weight, rows)

    def loss(self, batch: dict[str, Any], generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """COMMIT objective (arXiv 2212.05199 eq. 4).

        Batch: `tokens` (b, t, h, w); `task`, one name for the whole batch; `label` (b,), used by class-conditional
        tasks; `condition_tokens` (b, t, h, w), tokens of the condition video, for every task but class-conditional;
        `condition_mask` (t, h, w) or (b, t, h, w), by default that of the configuration. Raises UserError for an
        unknown task or missing condition tokens.
        """
        task = check_task(batch["task"], self.config.tasks)
        tokens = batch["tokens"].to(self.device)
        condition_tokens, condition_mask = batch.get("condition_tokens"), batch.get("condition_mask")
        if task == "class-conditional":
            condition_tokens = condition_mask = None
        elif condition_tokens is None:
            raise UserError(f"The task {task!r} needs condition_tokens in the batch; found keys {sorted(batch)}.")
        else:
            condition_tokens = condition_tokens.to(self.device)
            if condition_mask is None:
                condition_mask = self.config.condition_mask(task)
        progress = torch.rand((), generator=generator, device=generator.device).to(self.device)  # one for the batch
        scores = torch.rand(tokens.shape, generator=generator, device=generator.device).to(self.device)
        masked = mask_tokens(
            tokens, scores, cosine_mask_ratio(progress), condition_tokens, condition_mask, self.config.condition_mode
        )
        loss, parts = self.loss_of(tokens, masked, task, self._drop_labels(batch.get("label"), generator))
        predicts = task.endswith("frame-prediction") and "frame-prediction" in self.config.tasks
        if self.config.class_loss and predicts and condition_tokens is not None:
            named = F.cross_entropy(self.class_logits(condition_tokens).float(), batch["label"].to(self.device))
            loss, parts["class_loss"] = loss + self.config.class_loss * named, named.detach()
        return loss, parts

    def _drop_labels(self, label: Int[Tensor, " b"] | None, generator: torch.Generator) -> Int[Tensor, " b"] | None:
        """Some labels replaced by the one behind the last class, whose vocabulary row means "no class"."""
        if label is None or self.config.label_dropout == 0:
            return label
        draws = torch.rand(label.shape, generator=generator, device=generator.device).to(label.device)
        return label.masked_fill(draws < self.config.label_dropout, self.config.num_classes)

    def loss_of(
        self, tokens: Int[Tensor, "b t h w"], masked: MaskedTokens, task: str, label: Int[Tensor, " b"] | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`loss_from` the logits of one training example."""
        return self.loss_from(self.logits(masked.inputs, task, label), tokens, masked)

    def loss_from(
        self, logits: Float[Tensor, "b t h w k"], tokens: Int[Tensor, "b t h w"], masked: MaskedTokens
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, its mean over each group of positions (0 where empty), and accuracy on [MASK] positions."""
        logits, targets = logits.flatten(1, 3), tokens.flatten(1)  # (b, n, k), (b, n)
        groups = {name: masked.group(name).flatten(1).float() for name in ("mask", "refine", "recons")}
        weights = torch.stack([groups[name] for name in self.config.loss_groups]).sum(0)  # (b, n)
        loss, terms = masked_cross_entropy(logits, targets, weights, self.config.label_smoothing)
        terms, hits = terms.detach(), (logits.detach().argmax(-1) == targets).float()
        parts = {f"{name}_loss": (terms * group).sum() / group.sum().clamp(min=1) for name, group in groups.items()}
        parts["accuracy"] = (hits * groups["mask"]).sum() / groups["mask"].sum().clamp(min=1)
        return loss, parts
