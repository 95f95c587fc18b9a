"""Captions of a run: their encoder, which may be built from their own words, and the shape of their features."""

from collections.abc import Sequence
from pathlib import Path

import torch

from mutoscope import hub
from mutoscope.data.sources.tokens import TokensData
from mutoscope.errors import UserError
from mutoscope.models.base import TextShape
from mutoscope.text import TextEncoder, encoder_kind, load_text_encoder
from mutoscope.text.words import OFFSETS, split_words, word_config
from mutoscope.training.config import ModelRecipe
from mutoscope.training.distributed import Process, barrier
from mutoscope.writing import new_folder

WORDS = "words"  # a text encoder without weights, built from the captions' own words
MAX_WORDS = 64  # rows of text features that a caption gets at most


def caption_shape(recipe: ModelRecipe, encoder: str) -> TextShape:
    """Shape of the features of the recipe's captions: as long as the longest caption in words, up to 64.

    encoder: a folder, or "words". For an encoder in a folder the length of the recipe's model stays.
    """
    data, published = recipe.data, recipe.model.text
    if isinstance(data, TokensData) and (stored := data.cache().info.caption_shape) is not None:
        return TextShape(*stored)
    if encoder != WORDS:
        folder = Path(encoder).expanduser()
        return TextShape(published.length if published else MAX_WORDS, encoder_kind(folder).feature_size(folder))
    size = len(OFFSETS) * len(run_vocabulary(recipe))
    return TextShape(min(caption_length(data.captions()), MAX_WORDS), size)


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
            words = run_vocabulary(recipe)
            if not words:
                raise UserError(
                    f"None of the {len(recipe.data.captions())} captions of "
                    f"{recipe.data.origin()['path'] or recipe.data.kind} holds a word, and a model of text learns from "
                    "words: write captions, or train one without text_encoder."
                )
            hub.write_json(new_folder(folder) / hub.CONFIG, {"kind": WORDS, "vocabulary": words})
        barrier(process)
    return load_text_encoder(folder, process.device, torch.float32)


def run_vocabulary(recipe: ModelRecipe) -> list[str]:
    """Words of the encoder "words" of a run: those of the model it starts from, then the others of its captions.

    The features in a token cache have the columns of the cache's own encoder.
    """
    if isinstance(recipe.data, TokensData):
        folder = recipe.data.cache().text_encoder
        return [] if folder is None else list(encoder_kind(folder).words(folder) or ())
    known = [] if recipe.start_from is None else start_vocabulary(recipe.start_from)
    found = word_config(recipe.data.captions())["vocabulary"]
    return [*known, *(word for word in found if word not in set(known))]


def start_vocabulary(name_or_folder: str) -> list[str]:
    """Words that a saved model knows; empty for a model without text or with a published encoder."""
    folder = hub.open_folder(name_or_folder).text_encoder_path
    return list(encoder_kind(folder).words(folder) or ()) if folder is not None and folder.is_dir() else []
