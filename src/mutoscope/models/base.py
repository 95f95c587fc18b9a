"""What the trainer may expect of every model."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn


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
