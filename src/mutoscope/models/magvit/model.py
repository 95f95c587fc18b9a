"""MAGVIT: a bidirectional transformer over all tokens of a clip, trained by conditional masked modelling (COMMIT).

arXiv 2212.05199: §3.2 (COMMIT), appendix B (architecture, training). Where the paper and the released code differ,
this follows the code (floor for the number of masked tokens, task tokens shared by related tasks).

Top to bottom: one training example (`mask_tokens`), the model, its loss.
"""

import math
from dataclasses import dataclass
from typing import NotRequired, TypedDict

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mutoscope.errors import UserError
from mutoscope.layers.condition_regions import check_task
from mutoscope.layers.draws import Draws, dropout, of_batch, rand
from mutoscope.layers.token_masking import MASK_TOKEN, cosine_mask_ratio, num_masked_tokens, select_lowest
from mutoscope.models.base import VideoModel
from mutoscope.models.magvit.config import ConditionMode, LossGroup, MagvitConfig
from mutoscope.models.magvit.network import Block, Head

WEIGHT_STD = 0.02  # of the normal that weights start from, before it is cut (appendix B.2, as in BERT)
WEIGHT_CUT = 2 * WEIGHT_STD  # the released code cuts at two sigma and leaves the lost variance uncorrected
WEIGHT_SUM_EPS = 1e-8  # released code: keeps the loss of a sample without any weight at 0

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
        """Positions of one group of the loss."""
        return {"mask": self.is_masked, "refine": self.is_refined, "recons": self.is_reconstructed}[name]


def mask_tokens(
    tokens: Int[Tensor, "b t h w"],
    scores: Float[Tensor, "b t h w"],
    mask_ratio: Float[Tensor, ""],
    condition_tokens: Int[Tensor, "b t h w"] | None = None,
    condition_mask: Bool[Tensor, "*b t h w"] | None = None,
    condition_mode: ConditionMode = "cond->input",
) -> MaskedTokens:
    """Mask a batch (arXiv 2212.05199 eq. 3): the tokens with the lowest `scores` are selected.

    "cond->input", the method of the paper: selected positions inside the condition region show the condition token,
    the other selected ones [MASK], the rest the clean token. Being in the condition region does not protect a position
    from being selected. The two baselines never select condition positions: "input->input" shows the clean token
    there, "cond->cond" the condition token, and neither puts a loss on them.
    `mask_ratio`: share of selected tokens in [0, 1]. `condition_mask`: True inside the condition region, None for none.
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
    """Weighted mean per sample, then mean over samples (a sample without any weight counts 0); and the terms.

    `label_smoothing`: probability mass in [0, 1) shared by all codes.
    """
    terms = F.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), reduction="none", label_smoothing=label_smoothing
    ).view_as(weights)  # (b, n)
    per_sample = (terms * weights).sum(-1) / (weights.sum(-1) + WEIGHT_SUM_EPS)  # (b,)
    return per_sample.mean(), terms


class MagvitBatch(TypedDict):
    """Training batch of `Magvit` and of its baselines."""

    tokens: Int[Tensor, "b t h w"]
    """Codes of the clips, in [0, codebook_size)."""
    task: str
    """One of the configuration's tasks, for the whole batch."""
    label: NotRequired[Int[Tensor, " b"]]
    """Class of every clip, in [0, num_classes]; num_classes means "no class"."""
    condition_tokens: NotRequired[Int[Tensor, "b t h w"]]
    """Tokens of the condition video; required by every task but class-conditional."""
    condition_mask: NotRequired[Bool[Tensor, "*b t h w"]]
    """True inside the condition region; by default the region of the task."""


class Magvit(VideoModel[MagvitConfig, MagvitBatch]):
    """Sequence [task?, class, tokens in (time, row, column) order] in, logits for every position out."""

    def __init__(self, config: MagvitConfig) -> None:
        super().__init__()
        self.config = config
        d = config.hidden_size
        self.token_embedding = nn.Embedding(config.vocab_size, d)
        self.position_embedding = nn.Embedding(config.prefix_length + config.num_tokens, d)
        self.embedding_norm = nn.LayerNorm(d, eps=config.layer_norm_eps)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.head = Head(config)
        self.initialize_weights()

    def initialize_weights(self, generator: torch.Generator | None = None) -> None:
        """Appendix B.2: every matrix and embedding from one truncated normal; the network starts near zero logits."""
        for module in self.modules():
            # Matrices and embeddings: N(0, 0.02²) cut at two sigma.
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.trunc_normal_(module.weight, std=WEIGHT_STD, a=-WEIGHT_CUT, b=WEIGHT_CUT, generator=generator)
            # Biases: 0.
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
            # Layer norms: identity.
            if isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
        # Bias per vocabulary row: 0.
        nn.init.zeros_(self.head.bias)

    # ---------------------------------------------------------------------------------------------------- network

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.config.latent_shape

    def prefix(
        self, task: str, label: Int[Tensor, " b"] | None, batch_size: int, unconditional: bool = False
    ) -> Int[Tensor, "b p"]:
        """[task?, class]. The class slot holds "no class" unless the task is class-conditional and has a label.

        `unconditional` selects the prefix of guidance's unconditional pass: no class, and the task token of full
        generation if the model was trained for that task.
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
        # A label beyond "no class" would silently select a special token. Labels on an accelerator are not checked:
        # reading them would stall it.
        if label.device.type == "cpu" and bool(((label < 0) | (label > self.config.num_classes)).any()):
            raise UserError(f"Class labels must lie in 0 ... {self.config.num_classes - 1}; found {label.tolist()}.")

    def hidden(self, ids: Int[Tensor, "b n"], draws: Draws | None = None) -> Float[Tensor, "b n d"]:
        """Outputs of the last block for a sequence of ids; negative ids count from the vocabulary's end.

        `draws`: of dropout; None for none.
        """
        ids = torch.where(ids < 0, ids + self.config.vocab_size, ids)
        positions = self.position_embedding.weight[: ids.shape[1]]  # (n, d)
        x = self.embedding_norm(self.token_embedding(ids) + positions)  # (b, n, d)
        x = dropout(x, self.config.dropout, draws)
        for block in self.blocks:
            x = block(x, draws)
        return x

    def forward(self, ids: Int[Tensor, "b n"]) -> Float[Tensor, "b n vocab"]:
        """Logits over the whole vocabulary for every position of a sequence of ids (see `hidden`)."""
        return self.head(self.hidden(ids), self.token_embedding.weight, slice(None))

    def logits(
        self,
        tokens: Int[Tensor, "b t h w"],
        task: str,
        label: Int[Tensor, " b"] | None = None,
        unconditional: bool = False,
        draws: Draws | None = None,
    ) -> Float[Tensor, "b t h w k"]:
        """Logits over the codes for every token position.

        `tokens` holds codes, or MASK_TOKEN where hidden. `unconditional`: see `prefix`. `draws`: of dropout; None for
        none. Raises UserError for another latent shape, an unknown task or a label out of range.
        """
        b, t, h, w = tokens.shape
        if (t, h, w) != self.config.latent_shape:
            raise UserError(f"The model expects tokens of shape {self.config.latent_shape}, found {(t, h, w)}.")
        return self.logits_after(self.prefix(task, label, b, unconditional), tokens, draws)

    def logits_after(
        self, prefix: Int[Tensor, "b p"], tokens: Int[Tensor, "b t h w"], draws: Draws | None = None
    ) -> Float[Tensor, "b t h w k"]:
        """`logits` with a prefix that is at hand; depends on tensors alone."""
        b, t, h, w = tokens.shape
        x = self.hidden(torch.cat([prefix, tokens.flatten(1)], dim=1), draws)  # (b, p + n, d)
        # Softmax and loss see the codes only, so the other vocabulary rows are never multiplied.
        rows = slice(self.config.codebook_size)
        return self.head(x[:, prefix.shape[1] :], self.token_embedding.weight, rows).view(b, t, h, w, -1)

    def class_logits(
        self, condition_tokens: Int[Tensor, "b t h w"], draws: Draws | None = None
    ) -> Float[Tensor, "b classes"]:
        """Logits over the classes from the context frames of frame prediction alone; trained if `class_loss` is not 0.

        The sequence ends after the context tokens: [task?, "no class", tokens of the first latent frames].
        """
        context = condition_tokens[:, : self.config.latent_context_frames].to(self.device).flatten(1)  # (b, c)
        prefix = self.prefix("frame-prediction", None, len(context))  # (b, p)
        x = self.hidden(torch.cat([prefix, context], dim=1), draws)[:, prefix.shape[1] - 1]  # (b, d), the class slot
        rows = slice(self.config.codebook_size, self.config.unconditional_class_id)
        return self.head(x, self.token_embedding.weight, rows)

    # ------------------------------------------------------------------------------------------------------- loss

    def loss(self, batch: MagvitBatch, generator: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """COMMIT objective (arXiv 2212.05199 eq. 4).

        Raises UserError for an unknown task or missing condition tokens.
        """
        task = check_task(batch["task"], self.config.tasks)
        tokens = batch["tokens"].to(self.device)
        condition_tokens, condition_mask = self._condition(batch, task)
        # One mask ratio for the whole batch, as in the released code.
        progress = rand(of_batch(generator)).to(self.device)  # ()
        scores = rand(generator, *tokens.shape).to(self.device)
        masked = mask_tokens(
            tokens, scores, cosine_mask_ratio(progress), condition_tokens, condition_mask, self.config.condition_mode
        )
        label, draws = batch.get("label"), self.dropout_draws(generator)
        loss, parts = self.loss_of(tokens, masked, task, self._drop_labels(label, generator), draws)
        predicts = task.endswith("frame-prediction") and "frame-prediction" in self.config.tasks
        if self.config.class_loss and predicts and condition_tokens is not None:
            if label is None:
                raise UserError(f"class_loss needs the label of every clip in the batch; found keys {sorted(batch)}.")
            logits = self.class_logits(condition_tokens, draws).float()  # (b, classes)
            class_loss = F.cross_entropy(logits, label.to(self.device))
            loss, parts["class_loss"] = loss + self.config.class_loss * class_loss, class_loss.detach()
        return loss, parts

    def _condition(self, batch: MagvitBatch, task: str) -> tuple[Tensor | None, Tensor | None]:
        """Tokens of the condition video and the condition region; None and None for class-conditional training."""
        if task == "class-conditional":
            return None, None
        condition_tokens, condition_mask = batch.get("condition_tokens"), batch.get("condition_mask")
        if condition_tokens is None:
            raise UserError(f"The task {task!r} needs condition_tokens in the batch; found keys {sorted(batch)}.")
        mask = self.config.condition_mask(task) if condition_mask is None else condition_mask
        return condition_tokens.to(self.device), mask

    def _drop_labels(self, label: Int[Tensor, " b"] | None, generator: Draws) -> Int[Tensor, " b"] | None:
        """Replaces some labels by the one after the last class, whose vocabulary row means "no class"."""
        if label is None or self.config.label_dropout == 0:
            return label
        draws = rand(generator, len(label)).to(label.device)
        return label.masked_fill(draws < self.config.label_dropout, self.config.num_classes)

    def loss_of(
        self,
        tokens: Int[Tensor, "b t h w"],
        masked: MaskedTokens,
        task: str,
        label: Int[Tensor, " b"] | None,
        draws: Draws | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Network pass over one training example, then `loss_from` its logits. `draws`: of dropout; None for none."""
        return self.loss_from(self.logits(masked.inputs, task, label, draws=draws), tokens, masked)

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
