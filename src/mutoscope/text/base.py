"""The contract of text encoders, and the left padding of LlamaGen's captions."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class TextFeatures(NamedTuple):
    """One row per token of each prompt. mask: which rows are real; the others are zeros."""

    features: Float[Tensor, "b p c"]
    mask: Bool[Tensor, "b p"]


class TextEncoder(ABC):
    """Prompts to features, on one device and in one number format. A second kind is one more entry of `text.KINDS`.

    What a family does to its prompts (cleaning) and features (left padding, tables in place of padding) is the
    family's own and happens outside.
    """

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        self.folder, self.device, self.dtype = folder, device, dtype

    @staticmethod
    @abstractmethod
    def feature_size(folder: Path) -> int:
        """Channels of the features, read without loading the network."""

    @abstractmethod
    def encode(self, prompts: Sequence[str], length: int) -> TextFeatures:
        """Features of the first `length` tokens of each prompt, real rows first."""

    def unknown(self, prompt: str) -> list[str]:
        """The words of a prompt that mean nothing to this encoder."""
        return []


def left_padded(text: TextFeatures) -> TextFeatures:
    """The same features with the real rows last, as LlamaGen's captions have them (arXiv 2406.06525, §2.2)."""
    count, length = text.mask.shape
    shift = length - text.mask.sum(1)  # (b,)
    source = (torch.arange(length, device=text.mask.device) - shift[:, None]) % length  # (b, p)
    rows = torch.arange(count, device=text.mask.device)[:, None]
    return TextFeatures(text.features[rows, source], text.mask[rows, source])
