"""Captions of a run: their encoder, which may be built from their own words, and the shape of their features."""

from collections.abc import Sequence
from pathlib import Path

import torch

from mutoscope import hub
from mutoscope.data.base import DataConfig
from mutoscope.data.sources.tokens import TokensData
from mutoscope.models.base import TextShape
from mutoscope.text import TextEncoder, encoder_kind, load_text_encoder
from mutoscope.text.words import OFFSETS, split_words, word_config
from mutoscope.training.config import ModelRecipe
from mutoscope.training.distributed import Process, barrier

WORDS = "words"  # a text encoder without weights, built from the captions' own words
MAX_WORDS = 64  # rows of text features that a caption gets at most


def caption_shape(data: DataConfig, encoder: str, published: TextShape | None) -> TextShape:
    """Shape of the features of these captions: as long as the longest caption in words, up to 64.

    encoder: a folder, or "words". published: the shape that the recipe's model has, whose length stays for an encoder
    in a folder.
    """
    if isinstance(data, TokensData) and (stored := data.cache().info.caption_shape) is not None:
        return TextShape(*stored)
    if encoder != WORDS:
        folder = Path(encoder).expanduser()
        return TextShape(published.length if published else MAX_WORDS, encoder_kind(folder).feature_size(folder))
    captions = data.captions()
    size = len(OFFSETS) * len(word_config(captions)["vocabulary"])
    return TextShape(min(caption_length(captions), MAX_WORDS), size)


def caption_length(captions: Sequence[str]) -> int:
    """Words of the longest caption, at least 1."""
    return max((len(split_words(caption)) for caption in captions), default=1) or 1


def open_text_encoder(recipe: ModelRecipe, out: Path, process: Process) -> TextEncoder | None:
    """The recipe's encoder of captions; "words" leaves one in `out` that knows the words of all captions."""
    if recipe.text_encoder is None:
        return None
    folder = Path(recipe.text_encoder).expanduser()
    if recipe.text_encoder == WORDS and isinstance(recipe.data, TokensData):
        folder = recipe.data.cache().text_encoder or folder
    elif recipe.text_encoder == WORDS:
        folder = out / "text_encoder"
        if process.is_main and not (folder / hub.CONFIG).is_file():
            captions = recipe.data.captions()
            folder.mkdir(parents=True, exist_ok=True)
            hub.write_json(folder / hub.CONFIG, word_config(captions))
        barrier(process)
    return load_text_encoder(folder, process.device, torch.float32)
