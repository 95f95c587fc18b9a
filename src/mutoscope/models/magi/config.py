"""Configuration of MAGI (arXiv 2501.12389): sizes, conditions, teacher forcing and noise."""

import math
from dataclasses import dataclass, field, replace
from typing import Literal, Self

from mutoscope.checks import COUNT, DEPTH, NOT_NEGATIVE, SHARE, SIDE, WIDTH, Range, check_fields
from mutoscope.errors import UserError
from mutoscope.layers.gaussian_diffusion import LearnedVariance
from mutoscope.layers.shortcut import Shortcut
from mutoscope.models.base import ClipFacts, ModelConfig, TextShape

MAX_INTERVAL = 25  # source frames from one frame to the next, at most (arXiv 2501.12389, dynamic intervals)

# MAR's sizes (arXiv 2406.11838, §5), two small ones added: width, layers, heads, layers and width of the diffusion head
PAPER_SIZES = {
    "tiny": (64, 2, 4, 2, 64),
    "small": (128, 4, 4, 3, 128),
    "B": (768, 12, 12, 6, 1024),
    "L": (1024, 16, 16, 8, 1280),
    "H": (1280, 20, 16, 12, 1536),
}

RANGES = {
    "hidden_size": WIDTH,
    "num_layers": DEPTH,
    "num_heads": WIDTH,
    "head_layers": DEPTH,
    "head_size": WIDTH,
    "latent_channels": WIDTH,
    "latent_shape": SIDE,
    "patch_size": COUNT,
    "codebook_parts": WIDTH,
    "num_classes": Range(0, WIDTH.high),
    "text_size": WIDTH,
    "text_length": COUNT,
    "action_size": WIDTH,
    "window": COUNT,
    "noise_levels": Range(0, 1000),  # an embedding for each
    "noise_step": NOT_NEGATIVE,
    "token_mask_ratio": SHARE,
    "condition_dropout": SHARE,
    "history_dropout": SHARE,
    "dropout": SHARE,
    "loss_repeat": COUNT,
}


@dataclass(frozen=True)
class MAGIConfig(ModelConfig):
    """Defaults: the size B on the latents of 16 frames of 256×256 through Stable Diffusion's autoencoder.

    `teacher_forcing`: "complete", or "masked", the baseline. `codebook_parts`: for discrete tokens, the sizes of the
    digits of an id, lowest first: (1024,), or (512, 512) for large vocabularies.
    Conditions: `num_classes` classes (0: the row "no class" alone), `text_length` rows of `text_size` text features,
    actions of `action_size` numbers per frame.

    `noise_levels` and `noise_step`: training adds noise of standard deviation `noise_step` · l to the history, with l
    drawn from 0 to `noise_levels` (dynamic noise injection); 0 levels: no noise. `noise_mode`: the level as a position
    of its own ("token"), or mixed into every channel. `clean_first_frame`: the first frame gets no noise, as an anchor
    against drift. `window`: number of frames in attention over time, None for as many as a clip has. `num_given`:
    context frames at the start of the clip without a masked copy. `condition_dropout` and `history_dropout`: shares of
    clips, in [0, 1], whose conditions or whose history are hidden for guidance. `drop_actions`: actions count as a
    condition here; if not, clips with known actions teach nothing about clips without. `token_mask_ratio`: smallest
    share of masked tokens. `dropout`: of attention weights, attention outputs and the MLP. `loss_repeat`: independent
    noise draws per masked token and step. `predicts_change` (our choice, for worlds in which most of a frame stays as
    it was): masked copies read the token at their position in the frame before, and the head predicts the difference
    to it.

    `diffusion`: how tokens are drawn by the head: MAR's learned variance, or in few steps (`layers.shortcut`).

    `time_positions`: features of a frame's number, or ("relative", our choice) a vector per head and distance in time
    that is added to keys (arXiv 1803.02155), so that what is cached of a frame stays valid when the window moves on.
    `keeps_first`: the first frame stays visible behind the window, at a distance of its own (as the attention sinks of
    arXiv 2309.17453); for relative positions.
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
    time_positions: Literal["absolute", "relative"] = "absolute"
    keeps_first: bool = False
    num_given: int = 0
    noise_levels: int = 5
    noise_step: float = 0.14  # 0.7 at level 5: the largest noise of GameNGen (arXiv 2408.14837)
    noise_mode: Literal["token", "channel"] = "token"
    clean_first_frame: bool = False
    token_mask_ratio: float = 0.7
    condition_dropout: float = 0.1
    drop_actions: bool = True
    history_dropout: float = 0.0
    dropout: float = 0.1
    loss_repeat: int = 4
    predicts_change: bool = False
    diffusion: LearnedVariance | Shortcut = field(default_factory=LearnedVariance)

    def __post_init__(self) -> None:
        object.__setattr__(self, "latent_shape", tuple(self.latent_shape))  # JSON has no tuples
        if self.codebook_parts is not None:
            object.__setattr__(self, "codebook_parts", tuple(self.codebook_parts))
        check_fields(self, RANGES)
        self._check_sizes()

    def _check_sizes(self) -> None:
        frames, rows, columns = self.latent_shape
        if self.hidden_size % self.num_heads or self.hidden_size % 4:
            raise UserError(f"A width of {self.hidden_size} does not split into {self.num_heads} heads and 4 parts.")
        if rows % self.patch_size or columns % self.patch_size:
            raise UserError(f"Rows and columns of {self.latent_shape} must be multiples of patch_size.")
        Range(0, frames - 1).check("num_given", self.num_given)
        if self.keeps_first and not self.is_relative:
            raise UserError("keeps_first is for time_positions relative: absolute positions know no sink.")
        fits = self.teacher_forcing == "complete" and not self.is_discrete and self.diffusion.prediction == "sample"
        if self.predicts_change and not fits:
            raise UserError(
                "predicts_change is for continuous tokens, complete teacher forcing and diffusion.prediction sample."
            )

    @classmethod
    def paper(cls, size: str, **overrides: object) -> "MAGIConfig":
        """A size of MAR's, by default on 16 frames of 256×256 through Stable Diffusion's autoencoder."""
        if size not in PAPER_SIZES:
            raise UserError(f"There is no MAGI size {size!r}; sizes: {', '.join(PAPER_SIZES)}.")
        width, layers, heads, head_layers, head_size = PAPER_SIZES[size]
        sized = cls(hidden_size=width, num_layers=layers, num_heads=heads, head_layers=head_layers, head_size=head_size)
        return replace(sized, **overrides)

    def fitted(self, clips: ClipFacts) -> Self:
        parts = None if clips.codebook_size is None else (clips.codebook_size,)
        return replace(
            self,
            latent_shape=clips.latent_shape,
            latent_channels=clips.latent_channels or self.latent_channels,
            codebook_parts=self.codebook_parts if self.codebook_size == clips.codebook_size else parts,
            num_classes=clips.num_classes or None,
            text_size=clips.text and clips.text.size,
            text_length=clips.text.length if clips.text else self.text_length,
            action_size=clips.action_size,
            num_given=min(self.num_given, clips.latent_shape[0] - 1),
        )

    def continuing(self, old: Self) -> Self:
        """Of the classes of `old`, clips without any keep the row "no class"; its captions stay."""
        classes = 0 if self.num_classes is None and old.num_classes is not None else self.num_classes
        if self.text_size is None:
            return replace(self, num_classes=classes, text_size=old.text_size, text_length=old.text_length)
        return replace(self, num_classes=classes)

    @property
    def grid_multiple(self) -> int:
        return self.patch_size

    @property
    def token_grid(self) -> tuple[int, int]:
        return self.grid

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the tokens of a frame."""
        return self.latent_shape[1] // self.patch_size, self.latent_shape[2] // self.patch_size

    @property
    def num_tokens(self) -> int:
        """Tokens of a frame."""
        return self.grid[0] * self.grid[1]

    @property
    def token_size(self) -> int:
        """Length of a token vector."""
        return self.patch_size**2 * self.latent_channels

    @property
    def is_relative(self) -> bool:
        return self.time_positions == "relative"

    @property
    def reach(self) -> int:
        """Frames that see each other in attention over time, a first frame that is kept aside."""
        return self.window or self.latent_shape[0]

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
        """Conditions that samples can start from: frames always, the others if the model reads them."""
        read = {"class": self.num_classes, "text": self.text_size, "action": self.action_size}
        named = tuple(f"{name}-conditional" for name, size in read.items() if size)
        both = ("class-conditional-frame-prediction",) if self.num_classes else ()
        return ("unconditional", "frame-prediction", *named, *both)
