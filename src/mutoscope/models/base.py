"""The contract of every model: the properties of its configuration, and its training loss."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, NamedTuple, Never, Self, TypeVar

import torch
from torch import Tensor, nn

from mutoscope.errors import UserError
from mutoscope.layers.draws import Draws


class TextShape(NamedTuple):
    """Shape of the text features that a model reads for one caption: (length, size)."""

    length: int
    """Rows, one per text token."""
    size: int
    """Channels of a row."""


@dataclass(frozen=True)
class ClipFacts:
    """Properties of the clips that a model is to be trained on, as far as its configuration depends on them."""

    latent_shape: tuple[int, int, int]
    """Frames, rows and columns of the tokens or latents of a clip."""
    latent_channels: int | None = None
    """Channels of continuous latents; None for codes."""
    codebook_size: int | None = None
    """Number of codes; None for continuous latents."""
    num_classes: int = 0
    """Classes of the clips; 0 without classes."""
    text: TextShape | None = None
    """Shape of the features of a caption; None without captions."""
    action_size: int | None = None
    """Numbers in the action of one frame; None without actions."""

    def codes(self) -> int:
        """Number of codes. Raises UserError for continuous latents."""
        if self.codebook_size is None:
            raise UserError("This model reads codes, the tokenizer gives continuous latents: use another --tokenizer.")
        return self.codebook_size

    def channels(self) -> int:
        """Channels of the latents. Raises UserError for codes."""
        if self.latent_channels is None:
            raise UserError("This model reads continuous latents, the tokenizer gives codes: use another --tokenizer.")
        return self.latent_channels


class ModelConfig(ABC):
    """Properties that every model's configuration has, whatever its family.

    A configuration is a frozen dataclass that subclasses this and overrides some of these properties, by a field or a
    property. Code outside the families reads these properties instead of testing for a family.
    """

    @property
    @abstractmethod
    def latent_shape(self) -> tuple[int, int, int]:
        """Frames, rows and columns of the tokens or latents of a training clip."""

    def fitted(self, clips: ClipFacts) -> Self:
        """This configuration for other clips: grid, vocabulary and conditions follow from them, sizes stay.

        Conditions that the clips have not are removed, and those that the model cannot read are ignored. Raises
        UserError for clips that models of this class cannot be trained on.
        """
        raise UserError(f"{type(self).__name__} has a recipe for one dataset only: omit --data.")

    def continuing(self, old: Self) -> Self:
        """This configuration, fitted to other clips, for the weights of `old`.

        Conditions that `old` reads and the clips lack stay where the model can do without: a missing condition is then
        what the weights know, instead of another input.
        """
        return self

    @property
    def grid_multiple(self) -> int:
        """Rows and columns of latents must be multiples of this."""
        return 1

    @property
    def token_grid(self) -> tuple[int, int]:
        """Rows and columns of the tokens of a frame; fewer than those of latents if a token is a patch of them."""
        return self.latent_shape[1:]

    @property
    def codebook_size(self) -> int | None:
        """Number of codes of a discrete model; None if the tokens are continuous latents."""
        return None

    @property
    def latent_channels(self) -> int | None:
        """Channels of the latents of a continuous model; None, and without effect, if the tokens are discrete."""
        return None

    @property
    def num_classes(self) -> int | None:
        """Classes the model can be conditioned on; None or 0 without classes."""
        return None

    @property
    def text(self) -> TextShape | None:
        """Shape of the text features that the model reads for each caption; None for a model without text."""
        return None

    @property
    def action_size(self) -> int | None:
        """Numbers in the action of one frame; None for a model without actions."""
        return None

    @property
    def context_frames(self) -> int:
        """Pixel frames that tasks with context frames receive during training."""
        return 1

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks the model can be trained for."""
        return ("class-conditional",) if self.text is None else ("text-conditional",)

    @property
    def clip_fields(self) -> tuple[str, ...]:
        """Per-clip fields of a data source that the loss reads beside tokens and captions, where a source has them."""
        return ("label",)

    @property
    def reads_condition_videos(self) -> bool:
        """Whether training reads the tokens of a condition video, one per task (arXiv 2212.05199 §3.2)."""
        return False

    def needs_label(self, task: str) -> bool:
        """Whether training on `task` needs the class of every clip."""
        return task.startswith("class-conditional")

    @property
    def is_continuous(self) -> bool:
        """Whether tokens are vectors instead of codes."""
        return self.codebook_size is None

    @property
    def clip_shape(self) -> tuple[int, ...]:
        """Shape of one encoded training clip: (t, h, w) of codes, or (c, t, h, w) of latents."""
        channels = self.latent_channels if self.is_continuous else None
        return self.latent_shape if channels is None else (channels, *self.latent_shape)


Config_co = TypeVar("Config_co", bound=ModelConfig, covariant=True)
Batch_contra = TypeVar("Batch_contra", contravariant=True)


class VideoModel(nn.Module, ABC, Generic[Config_co, Batch_contra]):
    """A network with its training loss. It never samples; samplers are in `mutoscope.sampling`.

    Generic in its configuration and in its training batch, a TypedDict that each model declares beside its loss.
    """

    config: Config_co
    """Frozen dataclass that is enough to build the model again."""

    @abstractmethod
    def loss(self, batch: Batch_contra, generator: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar to minimise, and named detached parts for the log.

        All random draws, those of dropout too, come from `generator`. The scalar is a mean over clips with equal
        weights, so that equal parts of a batch average to the loss of the batch; with a generator for each clip they
        also draw what the whole batch draws.
        """

    def dropout_draws(self, draws: Draws) -> Draws | None:
        """What the network's dropout draws from: nothing in evaluation mode."""
        return draws if self.training else None

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device


AnyModel = VideoModel[ModelConfig, Never]
"""A model of any family, as code that never trains it sees it."""
