"""The contract of every model: what its configuration tells, and its training loss."""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class TextShape(NamedTuple):
    """Shape of the text features that a model reads for one caption: (length, size)."""

    length: int
    """Rows, one per text token."""
    size: int
    """Channels of a row."""


class ModelConfig(ABC):
    """What the rest of the code may ask of the configuration of any model.

    A configuration is a frozen dataclass that subclasses this and overrides, by a field or a property, what differs.
    Nobody else asks which family a model belongs to.
    """

    @property
    @abstractmethod
    def latent_shape(self) -> tuple[int, int, int]:
        """Frames, rows and columns of the tokens or latents of a training clip."""

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
        """Channels of the latents of a continuous model; of no meaning if the tokens are discrete."""
        return None

    @property
    def num_classes(self) -> int | None:
        """Classes the model can be conditioned on; None or 0 without classes."""
        return None

    @property
    def text(self) -> TextShape | None:
        """Text features that the model reads for each caption; None for a model without text."""
        return None

    @property
    def action_size(self) -> int | None:
        """Numbers in the action of one frame; None for a model without actions."""
        return None

    @property
    def context_frames(self) -> int:
        """Pixel frames that tasks which start from frames show during training."""
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
        """Whether every task trains on the tokens of its own condition video (arXiv 2212.05199 §3.2)."""
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


class VideoModel(nn.Module, ABC):
    """A network with its training loss. It never samples; samplers live in `mutoscope.sampling`."""

    config: Any
    """Frozen dataclass that is enough to build the model again."""

    @abstractmethod
    def loss(self, batch: dict[str, Any], generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar to minimise, and named detached parts for the log.

        Random draws of the objective come from `generator`; dropout alone uses the global generator. The scalar is a
        mean over samples, so that accumulating equal micro-batches equals one large batch.
        """

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device
