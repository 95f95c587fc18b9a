"""Configuration of MAGVIT (arXiv 2212.05199): sizes, vocabulary, tasks and objective."""

import math
from dataclasses import dataclass, replace
from typing import Literal, Self

from jaxtyping import Bool
from torch import Tensor

from mutoscope.checks import COUNT, DEPTH, NOT_NEGATIVE, POSITIVE, SHARE, SIDE, WIDTH, Range, check_fields
from mutoscope.errors import UserError
from mutoscope.layers.condition_regions import TASKS, Rectangle, check_task, condition_region, touched_tokens
from mutoscope.models.base import ClipFacts, ModelConfig

ConditionMode = Literal["cond->input", "input->input", "cond->cond"]
LossGroup = Literal["mask", "refine", "recons"]
PaperSize = Literal["Ti", "S", "B", "L", "H"]

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
MAX_CONDITION_PIXELS = 2**27  # 128 frames of 1024×1024

# Layers, hidden size, MLP size, heads (arXiv 2212.05199, appendix B; Ti and S: released configurations).
PAPER_SIZES: dict[str, tuple[int, int, int, int]] = {
    "Ti": (12, 192, 768, 3),
    "S": (12, 384, 1536, 6),
    "B": (12, 768, 3072, 12),
    "L": (24, 1024, 4096, 16),
    "H": (32, 1280, 5120, 16),
}

RANGES = {
    "num_layers": DEPTH,
    "hidden_size": WIDTH,
    "num_heads": WIDTH,
    "mlp_size": WIDTH,
    "codebook_size": WIDTH,
    "num_classes": Range(0, WIDTH.high),
    "num_special_tokens": COUNT,
    "latent_shape": SIDE,
    "dropout": SHARE,
    "layer_norm_eps": POSITIVE,
    "label_smoothing": SHARE,
    "condition_clip_shape": SIDE,
    "context_frames": SIDE,
    "latent_context_frames": SIDE,
    "label_dropout": Range(0, below=1),
    "class_loss": NOT_NEGATIVE,
}


def paper_size(size: str) -> tuple[int, int, int, int]:
    """Layers, hidden size, MLP size and heads of a published size. Raises UserError for an unknown one."""
    if size not in PAPER_SIZES:
        raise UserError(f"There is no MAGVIT size {size!r}; sizes: {', '.join(PAPER_SIZES)}.")
    return PAPER_SIZES[size]


@dataclass(frozen=True)
class MagvitConfig(ModelConfig):
    """Size, vocabulary and objective.

    Vocabulary rows: `codebook_size` codes, `num_classes` labels, one row "no class", then `num_special_tokens`.
    Single-task models of the paper have 1 special token and no task token, multi-task models 16 and a task token.
    `condition_clip_shape` selects the rule for the condition region. None: the released rule on the latent grid. The
    clips' shape in pixels: the paper's rule, every token whose supervoxel contains a context pixel.
    `context_frames`: context frames of training at the start of the clip (or at both ends), which are
    `latent_context_frames` rows of latents: 1 and 1, but 5 and 2 for Kinetics-600.
    `label_dropout`: probability that training replaces a label by "no class", which guidance needs; the paper and the
    released code never do.
    `class_loss`: weight of an additional cross-entropy that neither the paper nor the code has. It trains the class
    slot to predict the label from the context frames alone, so that sampling may draw the class first.
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
    layer_norm_eps: float = 1e-12  # BERT's
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
        check_fields(self, RANGES)
        self._check_sizes()
        self._check_tasks()
        self._check_objective()

    def _check_sizes(self) -> None:
        clip = self.condition_clip_shape or self.latent_shape
        if math.prod(clip) > MAX_CONDITION_PIXELS:  # a mask of all of them is computed
            what = "condition_clip_shape" if self.condition_clip_shape else "latent_shape"
            cells = f"{math.prod(clip):,} cells, at most {MAX_CONDITION_PIXELS:,} are possible"
            raise UserError(f"{what} {clip} has {cells}.")
        if any(size % cells for size, cells in zip(clip, self.latent_shape, strict=True)):
            raise UserError(f"condition_clip_shape {clip} is no multiple of latent_shape {self.latent_shape}.")
        if self.hidden_size % self.num_heads:
            raise UserError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}.")
        if not 1 <= self.latent_context_frames <= min(self.context_frames, self.latent_shape[0]):
            frames = f"{self.latent_context_frames} latent frames for {self.context_frames} context frames"
            raise UserError(f"{frames} of {self.latent_shape[0]} in all: latent_context_frames does not fit.")

    def _check_tasks(self) -> None:
        for task in self.tasks:
            check_task(task)
        needed = max((-self.task_token_id(task) for task in self.tasks), default=1) if self.task_token else 1
        if self.num_special_tokens < needed:
            raise UserError(f"num_special_tokens is {self.num_special_tokens}, but these tasks need {needed}.")

    def _check_objective(self) -> None:
        unknown = set(self.loss_groups) - {"mask", "refine", "recons"}
        if unknown or not self.loss_groups:
            raise UserError(f"loss_groups must name some of mask, refine, recons; found {self.loss_groups}.")
        if self.class_loss and not self.num_classes:
            raise UserError(f"class_loss is {self.class_loss}, but there are no classes: set it to 0.")
        if self.condition_mode not in ("cond->input", "input->input", "cond->cond"):
            raise UserError(f"condition_mode {self.condition_mode!r} is none of cond->input, input->input, cond->cond.")

    @classmethod
    def paper(cls, size: PaperSize, **overrides: object) -> "MagvitConfig":
        """The published size, by default for one task, no classes and a 4x16x16 latent grid."""
        layers, hidden, mlp, heads = paper_size(size)
        return replace(cls(num_layers=layers, hidden_size=hidden, num_heads=heads, mlp_size=mlp), **overrides)

    def fitted(self, clips: ClipFacts) -> Self:
        """Without classes the tasks that need one are removed. The condition region follows the rule of the grid."""
        tasks = tuple(task for task in self.tasks if clips.num_classes or not task.startswith("class-conditional"))
        if not tasks:
            raise UserError(
                "The tasks of this model need classes, the clips have none: sort the videos into one folder per class, "
                "or name other --model.tasks."
            )
        return replace(
            self,
            latent_shape=clips.latent_shape,
            codebook_size=clips.codes(),
            num_classes=clips.num_classes,
            tasks=tasks,
            class_loss=self.class_loss if clips.num_classes else 0.0,
            condition_clip_shape=self.condition_clip_shape if clips.latent_shape == self.latent_shape else None,
            latent_context_frames=min(self.latent_context_frames, clips.latent_shape[0]),
        )

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
        self,
        task: str,
        context_frames: int | None = None,
        temporal_stride: int = 1,
        rectangle: Rectangle | None = None,
    ) -> Bool[Tensor, "t h w"]:
        """True at the token positions that belong to the condition of `task`.

        `context_frames`: pixel frames of context at the start (or at both ends) of the clip; None for the number of
        training. `rectangle`: see `condition_region`.
        """
        if self.condition_clip_shape is not None:
            frames = context_frames or self.context_frames
            return touched_tokens(
                condition_region(task, self.condition_clip_shape, frames, frames, rectangle), self.latent_shape
            )
        frames = math.ceil(context_frames / temporal_stride) if context_frames else self.latent_context_frames
        return condition_region(task, self.latent_shape, frames, frames, rectangle)

    @property
    def reads_condition_videos(self) -> bool:
        return True

    def needs_label(self, task: str) -> bool:
        """With a class loss, frame prediction is trained to predict the class too."""
        return task.startswith("class-conditional") or (self.class_loss > 0 and task == "frame-prediction")

    def task_token_id(self, task: str) -> int:
        if self.separate_inpainting_token and task.startswith("inpaint"):
            return SEPARATE_INPAINTING_TOKEN
        return TASK_TOKENS[task]
