"""A text encoder of whole words, without weights or downloads."""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path

import torch

from mutoscope.errors import UserError
from mutoscope.json_config import read_json
from mutoscope.text.base import TextEncoder, TextFeatures

CONFIG = "config.json"
MAX_WORDS = 2_000  # more than any model reads


class WordTextEncoder(TextEncoder):
    """One-hot vectors of a word and of its two neighbours on each side, concatenated.

    Every text-conditional model begins with a linear map, which of these features is a sum of learned word vectors. The
    neighbours connect adjectives with their nouns without positions. Words outside the vocabulary are zeros.
    """

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        """Raises UserError for a folder without a vocabulary."""
        super().__init__(folder, device, dtype)
        self.vocabulary = {word: i for i, word in enumerate(_vocabulary(folder))}

    @staticmethod
    def feature_size(folder: Path) -> int:
        return len(OFFSETS) * len(_vocabulary(folder))

    @staticmethod
    def words(folder: Path) -> tuple[str, ...]:
        return tuple(_vocabulary(folder))

    def encode(self, prompts: Sequence[str], length: int) -> TextFeatures:
        size = len(self.vocabulary)
        features = torch.zeros(len(prompts), length, len(OFFSETS) * size)
        mask = torch.zeros(len(prompts), length, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            words = split_words(prompt)
            known = [self.vocabulary.get(word) for word in words]
            for position in range(min(len(words), length)):
                mask[row, position] = True
                for slot, offset in enumerate(OFFSETS):
                    near = position + offset
                    if 0 <= near < len(known) and (word := known[near]) is not None:
                        features[row, position, slot * size + word] = 1.0
        return TextFeatures(features.to(self.device, self.dtype), mask.to(self.device))

    def unknown(self, prompt: str) -> list[str]:
        """Words of a prompt that are not in the vocabulary."""
        return [word for word in dict.fromkeys(split_words(prompt)) if word not in self.vocabulary]


OFFSETS = (0, -1, 1, -2, 2)  # a word, then its neighbours from near to far


def split_words(text: str) -> list[str]:
    """Lower-case words without punctuation, the first `MAX_WORDS` of them."""
    return [found[0] for found in itertools.islice(re.finditer(r"[a-z0-9]+", text.lower()), MAX_WORDS)]


def word_config(captions: Sequence[str]) -> dict[str, str | list[str]]:
    """Content of `config.json` for an encoder of these captions."""
    return {"kind": "words", "vocabulary": sorted({word for caption in captions for word in split_words(caption)})}


def _vocabulary(folder: Path) -> list[str]:
    path = folder / CONFIG
    words = read_json(path).get("vocabulary")
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        raise UserError(f"{path} must hold a list of words under 'vocabulary'.")
    return words
