"""The contract of text encoders, and the left padding of LlamaGen's captions."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class TextFeatures(NamedTuple):
    """Features of prompts, one row per token."""

    features: Float[Tensor, "b p c"]
    """Zeros on rows without a token."""
    mask: Bool[Tensor, "b p"]
    """True on rows of real tokens."""


class TextEncoder(ABC):
    """Encodes prompts to features on one device and in one dtype. `text.KINDS` lists all kinds.

    The families clean prompts and rearrange features (left padding, tables in place of padding) themselves.
    """

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        self.folder, self.device, self.dtype = folder, device, dtype

    @staticmethod
    @abstractmethod
    def feature_size(folder: Path) -> int:
        """Channels of the features, from the folder's configuration alone."""

    @staticmethod
    def words(folder: Path) -> tuple[str, ...] | None:
        """The vocabulary of an encoder with one feature per word, from the folder's configuration; else None."""
        return None

    @abstractmethod
    def encode(self, prompts: Sequence[str], length: int) -> TextFeatures:
        """Features of the first `length` tokens of each prompt; rows of real tokens come first."""

    def unknown(self, prompt: str) -> list[str]:
        """Words of a prompt that are not in the encoder's vocabulary."""
        return []


def left_padded(text: TextFeatures) -> TextFeatures:
    """The same features with the rows of real tokens last, as in LlamaGen's captions (arXiv 2406.06525, §2.2)."""
    count, length = text.mask.shape
    shift = length - text.mask.sum(1)  # (b,)
    source = (torch.arange(length, device=text.mask.device) - shift[:, None]) % length  # (b, p)
    rows = torch.arange(count, device=text.mask.device)[:, None]
    return TextFeatures(text.features[rows, source], text.mask[rows, source])
