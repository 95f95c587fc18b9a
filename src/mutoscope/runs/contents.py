"""What a token cache stores beside tokens and labels, so that the models it is meant for can be trained on it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mutoscope import hub
from mutoscope.data.base import ClipBatch, ClipSource, DataConfig
from mutoscope.families import FAMILIES
from mutoscope.runs.text import MAX_WORDS, caption_length
from mutoscope.runs.tokenize import CaptionReader
from mutoscope.sampling.tasks import TASKS
from mutoscope.text import load_text_encoder
from mutoscope.text.words import word_config
from mutoscope.writing import workspace


@dataclass(frozen=True)
class Contents:
    """Conditions of a token cache. tasks: those whose condition videos are encoded too."""

    tasks: tuple[str, ...]
    context_frames: int
    fields: tuple[str, ...]
    text: CaptionReader | None
    words: Mapping[str, object] | None = None
    """Configuration of an encoder of the captions' own words, which the cache keeps; None for a model's encoder."""


def contents_for(
    folder: hub.ModelFolder,
    data: DataConfig,
    source: ClipSource[ClipBatch],
    tasks: Sequence[str] | None = None,
) -> Contents:
    """Everything that the model in `folder` reads, or that any model on the tokens of a tokenizer alone may read.

    tasks: None for all tasks of the model; of a tokenizer alone for all ten where it gives codes, which MAGVIT reads,
    and for none where it gives latents. A tokenizer alone gets captions through an encoder of their own words, which
    the cache keeps.
    """
    if folder.index.model is None:
        codes = folder.load_tokenizer().spec.vocab_size is not None
        chosen = tuple(tasks) if tasks is not None else TASKS if codes else ()
        words = word_config(data.captions()) if data.survey().has_captions else {}
        if not words.get("vocabulary"):
            return Contents(chosen, 1, tuple(source.fields), None)
        return Contents(chosen, 1, tuple(source.fields), _reader(words, data), words)
    config, family = folder.load_config(), FAMILIES[folder.index.family]
    every = folder.index.tasks or config.tasks
    chosen = tuple(tasks) if tasks is not None else every if config.reads_condition_videos else ()
    encoder = folder.text_encoder_path if config.text and data.survey().has_captions else None
    text = None
    if encoder is not None and config.text is not None:
        reader = load_text_encoder(encoder, torch.device("cpu"), torch.float32)
        text = CaptionReader(reader, config.text.length, family.clean_caption)
    return Contents(chosen, config.context_frames, config.clip_fields, text)


def _reader(words: Mapping[str, object], data: DataConfig) -> CaptionReader:
    """An encoder of these words, as long as the longest caption."""
    with workspace("mutoscope-words-") as folder:
        hub.write_json(Path(folder) / hub.CONFIG, words)
        encoder = load_text_encoder(Path(folder), torch.device("cpu"), torch.float32)
    return CaptionReader(encoder, min(caption_length(data.captions()), MAX_WORDS))
