"""Configuration of FAR (arXiv 2503.19325): sizes, short and long context, conditions, and noise of training."""

from dataclasses import dataclass, field, replace
from typing import Literal, Self

from mutoscope.checks import COUNT, DEPTH, NOT_NEGATIVE, SHARE, SIDE, WIDTH, Range, check_fields
from mutoscope.errors import UserError
from mutoscope.layers.diffusion import FlowMatching
from mutoscope.models.base import ClipFacts, ModelConfig

# The published sizes (class names of the released code): width, layers, whether distant frames are coarse.
PAPER_SIZES = {
    "B": (768, 12, False),
    "M": (1024, 12, False),
    "L": (1024, 24, False),
    "XL": (1152, 28, False),
    "B-long": (768, 12, True),
    "M-long": (1024, 12, True),
}
PAPER_WINDOW = 16  # frames with loss; in long models, frames in fine patches
PAPER_COARSE_PATCH = 4
PAPER_LONG_FRAMES = 300  # of a clip in DMLab and Minecraft

RANGES = {
    "hidden_size": WIDTH,
    "num_layers": DEPTH,
    "latent_channels": WIDTH,
    "latent_shape": SIDE,
    "patch_size": COUNT,
    "coarse_patch_size": COUNT,
    "rotary_channels": Range(2, WIDTH.high),
    "window": COUNT,
    "num_classes": Range(0, WIDTH.high),
    "action_size": WIDTH,
    "clean_share": SHARE,
    "condition_dropout": SHARE,
    "slope": NOT_NEGATIVE,
}


@dataclass(frozen=True)
class FARConfig(ModelConfig):
    """Defaults: the size B on 16 frames of 64×64 pixels through DC-AE with stride 8.

    `rotary_channels`: channels of a head that rotate by frame, row and column, all even; their sum is the size of a
    head. `window`: the number of last frames of a clip that have a loss; in long models also the number of frames in
    fine patches, the generated one among them. `coarse_patch_size`: patch of all earlier frames; None: a short model,
    whose frames are all fine.

    Conditions: `num_classes` classes, actions of `action_size` numbers per frame. `one_action`: exactly one of the
    numbers of an action is 1, as in the published models; a row of zeros is then an unknown action, and several ones
    have the mean of their effects. `condition_dropout`: share of clips whose class, and share of frames whose action,
    is hidden for guidance.

    `clean_share`: share of frames without noise in training (stochastic clean context); None: none, and the last
    frames of a clip never show what clean context is. `time_distribution`: of the noise levels.
    `diffusion`: flow matching, with the shift 1 in all published settings.
    `slope`: subtracted from attention logits per frame of distance; 0 in all published settings.
    `rounds_positions` and `rounds_times`: frame numbers and noise times rounded to bfloat16, as the published models
    were trained; they matter for clips of more than 256 frames.
    """

    hidden_size: int = 768
    num_layers: int = 12
    latent_channels: int = 32
    latent_shape: tuple[int, int, int] = (PAPER_WINDOW, 8, 8)
    patch_size: int = 1
    coarse_patch_size: int | None = None
    rotary_channels: tuple[int, int, int] = (16, 24, 24)
    window: int = PAPER_WINDOW
    num_classes: int | None = None
    action_size: int | None = None
    one_action: bool = False
    clean_share: float | None = 0.1
    condition_dropout: float = 0.1
    time_distribution: Literal["logit_normal", "uniform"] = "logit_normal"
    diffusion: FlowMatching = field(default_factory=FlowMatching)
    slope: float = 0.0
    rounds_positions: bool = False
    rounds_times: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "latent_shape", tuple(self.latent_shape))  # JSON has no tuples
        object.__setattr__(self, "rotary_channels", tuple(self.rotary_channels))
        check_fields(self, RANGES)
        self._check_sizes()

    def _check_sizes(self) -> None:
        if self.hidden_size % self.head_size or any(channels % 2 for channels in self.rotary_channels):
            raise UserError(
                f"rotary_channels must be even and their sum must divide hidden_size {self.hidden_size}, found "
                f"{self.rotary_channels}."
            )
        _, rows, columns = self.latent_shape
        if rows % self.grid_multiple or columns % self.grid_multiple:
            raise UserError(
                f"Rows and columns of {self.latent_shape} must be multiples of the patch size {self.grid_multiple}."
            )
        if self.coarse_patch_size is not None and self.coarse_patch_size % self.patch_size:
            raise UserError(
                f"coarse_patch_size must be a multiple of patch_size {self.patch_size}, found {self.coarse_patch_size}."
            )

    @classmethod
    def paper(cls, size: str, **overrides: object) -> "FARConfig":
        """A published size; long ones on 300 frames with actions."""
        if size not in PAPER_SIZES:
            raise UserError(f"There is no FAR size {size!r}; sizes: {', '.join(PAPER_SIZES)}.")
        width, layers, is_long = PAPER_SIZES[size]
        sized = cls(hidden_size=width, num_layers=layers)
        if is_long:
            shape = (PAPER_LONG_FRAMES, *sized.latent_shape[1:])
            sized = replace(sized, coarse_patch_size=PAPER_COARSE_PATCH, latent_shape=shape)
        return replace(sized, **overrides)

    def fitted(self, clips: ClipFacts) -> Self:
        return replace(
            self,
            latent_shape=clips.latent_shape,
            latent_channels=clips.channels(),
            window=min(self.window, clips.latent_shape[0]) if self.is_long else clips.latent_shape[0],
            num_classes=clips.num_classes or None,
            action_size=clips.action_size,
        )

    @property
    def is_long(self) -> bool:
        """Whether distant frames are coarse."""
        return self.coarse_patch_size is not None

    @property
    def num_fine_frames(self) -> int | None:
        """Frames in fine patches, the generated one among them; None: all of them."""
        return self.window if self.is_long else None

    @property
    def head_size(self) -> int:
        return sum(self.rotary_channels)

    @property
    def num_heads(self) -> int:
        return self.hidden_size // self.head_size

    @property
    def grid_multiple(self) -> int:
        return self.coarse_patch_size or self.patch_size

    @property
    def token_grid(self) -> tuple[int, int]:
        return self.latent_shape[1] // self.patch_size, self.latent_shape[2] // self.patch_size

    @property
    def is_conditional(self) -> bool:
        """Whether frames have a class or an action."""
        return bool(self.num_classes) or self.action_size is not None

    @property
    def clip_fields(self) -> tuple[str, ...]:
        return ("label", *(("actions",) if self.action_size is not None else ()), "history")

    @property
    def tasks(self) -> tuple[str, ...]:
        """Conditions that samples can start from: frames always, the others if the model reads them."""
        read = {"class": self.num_classes, "action": self.action_size}
        named = tuple(f"{name}-conditional" for name, size in read.items() if size)
        both = ("class-conditional-frame-prediction",) if self.num_classes else ()
        return ("unconditional", "frame-prediction", *named, *both)
