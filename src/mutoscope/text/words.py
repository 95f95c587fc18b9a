"""Captions as words: an encoder without weights and without anything to download."""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mutoscope.errors import UserError
from mutoscope.json_config import read_json
from mutoscope.text.base import TextEncoder, TextFeatures

CONFIG = "config.json"
MAX_WORDS = 2_000  # more than any model reads


class WordTextEncoder(TextEncoder):
    """A word and its two neighbours on each side, each as a vector with a one at its place in the vocabulary.

    A linear map of such a feature, which every text-conditional model begins with, is a sum of learned word vectors;
    the neighbours tell which adjective belongs to which noun without positions. Words outside the vocabulary are zeros.
    """

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        """Raises UserError for a folder without a vocabulary."""
        super().__init__(folder, device, dtype)
        self.vocabulary = {word: i for i, word in enumerate(_vocabulary(folder))}

    @staticmethod
    def feature_size(folder: Path) -> int:
        return len(OFFSETS) * len(_vocabulary(folder))

    def encode(self, prompts: Sequence[str], length: int) -> TextFeatures:
        size = len(self.vocabulary)
        features = torch.zeros(len(prompts), length, len(OFFSETS) * size)
        mask = torch.zeros(len(prompts), length, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            words = split_words(prompt)
            known = [self.vocabulary.get(word) for word in words]
            for place in range(min(len(words), length)):
                mask[row, place] = True
                for slot, offset in enumerate(OFFSETS):
                    near = place + offset
                    if 0 <= near < len(known) and (word := known[near]) is not None:
                        features[row, place, slot * size + word] = 1.0
        return TextFeatures(features.to(self.device, self.dtype), mask.to(self.device))

    def unknown(self, prompt: str) -> list[str]:
        """The words of a prompt that mean nothing to this encoder."""
        return [word for word in dict.fromkeys(split_words(prompt)) if word not in self.vocabulary]


OFFSETS = (0, -1, 1, -2, 2)


def split_words(text: str) -> list[str]:
    """Lower-case words without punctuation, the first `MAX_WORDS` of them."""
    return [found[0] for found in itertools.islice(re.finditer(r"[a-z0-9]+", text.lower()), MAX_WORDS)]


def word_config(captions: Sequence[str]) -> dict[str, Any]:
    """What `config.json` of an encoder for these captions holds."""
    return {"kind": "words", "vocabulary": sorted({word for caption in captions for word in split_words(caption)})}


def _vocabulary(folder: Path) -> list[str]:
    path = folder / CONFIG
    words = read_json(path).get("vocabulary")
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        raise UserError(f"{path} must hold a list of words under 'vocabulary'.")
    return words
