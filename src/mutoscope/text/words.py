"""A text encoder of whole words, without weights or downloads."""

import re
from collections.abc import Sequence
from pathlib import Path

import torch

from mutoscope.errors import UserError
from mutoscope.json_config import read_json
from mutoscope.text.base import TextEncoder, TextFeatures
from mutoscope.text.letters import MAX_WORDS, split_words, symbols

CONFIG = "config.json"


class WordTextEncoder(TextEncoder):
    """One-hot vectors of a word and of its two neighbours on each side, concatenated.

    Every text-conditional model begins with a linear map, which of these features is a sum of learned word vectors. The
    neighbours connect adjectives with their nouns without positions. Words outside the vocabulary are zeros.

    A vocabulary without any other letter than a to z splits prompts at all other letters, as earlier versions did: the
    features of a saved model never change.
    """

    latin = False
    """Whether words are those of earlier versions."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        """Raises UserError for a folder without a vocabulary."""
        super().__init__(folder, device, dtype)
        self.vocabulary = {word: i for i, word in enumerate(_vocabulary(folder))}
        self.latin = all(word.isascii() for word in self.vocabulary)

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
            words = _latin_words(prompt) if self.latin else split_words(prompt)
            known = [self.vocabulary.get(word) for word in words]
            for position in range(min(len(words), length)):
                mask[row, position] = True
                for slot, offset in enumerate(OFFSETS):
                    near = position + offset
                    if 0 <= near < len(known) and (word := known[near]) is not None:
                        features[row, position, slot * size + word] = 1.0
        return TextFeatures(features.to(self.device, self.dtype), mask.to(self.device))

    def unknown(self, prompt: str) -> list[str]:
        """Words and symbols of a prompt that are not in the vocabulary; the whole of a prompt without any word."""
        words = split_words(prompt)
        if not words and prompt.strip():
            return [prompt.strip()]
        return [word for word in dict.fromkeys([*words, *symbols(prompt)]) if not self._knows(word)]

    def _knows(self, word: str) -> bool:
        parts = _latin_words(word) if self.latin else []  # an earlier vocabulary holds "gr" and "n" of "grün"
        return word in self.vocabulary or (bool(parts) and all(part in self.vocabulary for part in parts))


OFFSETS = (0, -1, 1, -2, 2)  # a word, then its neighbours from near to far


def word_config(captions: Sequence[str]) -> dict[str, str | list[str]]:
    """Content of `config.json` for an encoder of these captions."""
    return {"kind": "words", "vocabulary": sorted({word for caption in captions for word in split_words(caption)})}


def _latin_words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())[:MAX_WORDS]


def _vocabulary(folder: Path) -> list[str]:
    path = folder / CONFIG
    words = read_json(path).get("vocabulary")
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        raise UserError(f"{path} must hold a list of words under 'vocabulary'.")
    return words
