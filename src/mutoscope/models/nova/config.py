"""Configuration of NOVA (arXiv 2412.14169): sizes of its four networks."""

from dataclasses import dataclass, field, replace
from typing import Literal, Self

from mutoscope.checks import COUNT, DEPTH, SHARE, SIDE, WIDTH, Range, check_fields
from mutoscope.errors import UserError
from mutoscope.layers.diffusion import Diffusion, FlowMatching
from mutoscope.layers.shortcut import Shortcut
from mutoscope.models.base import ClipFacts, ModelConfig, TextShape

NUM_TEXT_ROWS = 512  # rows of the published table that replaces the words a caption lacks

# Text-to-image models at 1024 pixels (arXiv 2412.14169, Tab. 1): width, heads, layers and width of the diffusion head
IMAGE_SIZES = {"0.3B": (768, 12, 6, 768), "0.6B": (1024, 16, 6, 1024), "1.4B": (1536, 16, 6, 1536)}

RANGES = {
    "hidden_size": WIDTH,
    "temporal_layers": DEPTH,
    "temporal_heads": WIDTH,
    "spatial_layers": DEPTH,
    "spatial_heads": WIDTH,
    "head_layers": DEPTH,
    "head_size": WIDTH,
    "latent_channels": WIDTH,
    "latent_shape": SIDE,
    "num_time_slots": SIDE,
    "patch_size": COUNT,
    "mixer_rank": Range(-1, WIDTH.high),
    "text_size": WIDTH,
    "num_classes": WIDTH,
    "condition_dropout": SHARE,
    "loss_repeat": COUNT,
}


def rope_pairs(head_size: int) -> tuple[int, int, int]:
    """Channel pairs of a head rotated by time, row and column: an eighth of the channels by time (official code).

    (0, 0, 0) if the channels cannot be divided that way.
    """
    time = head_size // 8
    if time % 2 or (head_size - time) % 4:
        return 0, 0, 0
    return time // 2, (head_size - time) // 4, (head_size - time) // 4


@dataclass(frozen=True)
class NOVAConfig(ModelConfig):
    """Sizes of the four networks. Defaults: the published text-to-video model for 480×768 pixels.

    `latent_shape`: frames, rows and columns of the latents of training; absolute positions in time are stretched to
    `num_time_slots` frames (None: the frames of `latent_shape`). `mixer_rank`: rank of scaling and shift, −1 for a
    full matrix, None for no mixer. A text condition is `text_length` rows of `text_size` features; without `text_size`
    the model is conditioned on `num_classes` classes. `norm_position`: layer norms after a sub-layer, as published, or
    before it. `condition_dropout`: probability in [0, 1] that training drops the condition of a clip, for guidance.
    `loss_repeat`: independent noise draws per token and step.
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
    diffusion: Diffusion | Shortcut = field(default_factory=FlowMatching)

    def __post_init__(self) -> None:
        object.__setattr__(self, "latent_shape", tuple(self.latent_shape))  # JSON has no tuples
        check_fields(self, RANGES)
        coarse = self.grid_multiple
        if self.latent_shape[1] % coarse or self.latent_shape[2] % coarse:
            raise UserError(f"Rows and columns of latents must be multiples of {coarse}, found {self.latent_shape}.")
        if (self.text_size is None) == (self.num_classes is None):
            raise UserError("A NOVA reads either text or classes: set one of text_size and num_classes.")
        if self.text_size is not None and not 1 <= self.text_length <= NUM_TEXT_ROWS:
            raise UserError(f"text_length must be between 1 and {NUM_TEXT_ROWS}, found {self.text_length}.")
        if self.mixer_rank == 0:
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

    def fitted(self, clips: ClipFacts) -> Self:
        """Clips with captions are conditioned on these; others on their classes, or on one class for all."""
        return replace(
            self,
            latent_shape=clips.latent_shape,
            latent_channels=clips.channels(),
            text_size=clips.text and clips.text.size,
            text_length=min(clips.text.length, NUM_TEXT_ROWS) if clips.text else self.text_length,
            num_classes=None if clips.text else max(clips.num_classes, 1),
        )

    def continuing(self, old: Self) -> Self:
        """Positions in time stay stretched as in `old`. Clips without captions and classes have the null text."""
        slots = old.time_length if old.is_video else None
        unconditioned = self.text_size is None and self.num_classes == 1
        if old.text_size is None or not (self.text_size or unconditioned):
            return replace(self, num_time_slots=slots)
        return replace(
            self,
            num_time_slots=slots,
            text_size=self.text_size or old.text_size,
            text_length=old.text_length,
            num_classes=None,
        )

    @property
    def grid_multiple(self) -> int:
        return 2 * self.patch_size  # the temporal encoder joins four tokens

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
