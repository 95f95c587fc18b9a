"""What a token cache stores beside tokens and labels, so that the models it is meant for can be trained on it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mutoscope import hub
from mutoscope.data.base import ClipBatch, ClipSource, DataConfig
from mutoscope.data.sources.tokens import partial_folder, text_encoder_folder
from mutoscope.families import FAMILIES
from mutoscope.runs.text import MAX_WORDS, caption_length
from mutoscope.runs.tokenize import CaptionReader
from mutoscope.sampling.tasks import TASKS
from mutoscope.text import load_text_encoder
from mutoscope.text.words import word_config


@dataclass(frozen=True)
class Contents:
    """Conditions of a token cache. tasks: those whose condition videos are encoded too."""

    tasks: tuple[str, ...]
    context_frames: int
    fields: tuple[str, ...]
    text: CaptionReader | None


def contents_for(
    folder: hub.ModelFolder,
    data: DataConfig,
    source: ClipSource[ClipBatch],
    out: Path,
    tasks: Sequence[str] | None = None,
) -> Contents:
    """Everything that the model in `folder` reads, or that any model on the tokens of a tokenizer alone may read.

    tasks: None for all tasks of the model; of a tokenizer alone for all ten where it gives codes, which MAGVIT reads,
    and for none where it gives latents. A tokenizer alone gets captions through an encoder of their own words, which
    is stored in the cache. `out`: the folder of the cache.
    """
    if folder.index.model is None:
        codes = folder.load_tokenizer().spec.vocab_size is not None
        chosen = tuple(tasks) if tasks is not None else TASKS if codes else ()
        return Contents(chosen, 1, tuple(source.fields), _words(data, out))
    config, family = folder.load_config(), FAMILIES[folder.index.family]
    every = folder.index.tasks or config.tasks
    chosen = tuple(tasks) if tasks is not None else every if config.reads_condition_videos else ()
    encoder = folder.text_encoder_path if config.text and data.survey().has_captions else None
    text = None
    if encoder is not None and config.text is not None:
        reader = load_text_encoder(encoder, torch.device("cpu"), torch.float32)
        text = CaptionReader(reader, config.text.length, family.clean_caption)
    return Contents(chosen, config.context_frames, config.clip_fields, text)


def _words(data: DataConfig, out: Path) -> CaptionReader | None:
    """An encoder of the captions' own words, left in the cache that is about to be written; None without captions."""
    if not data.survey().has_captions:
        return None
    captions = data.captions()
    folder = text_encoder_folder(out if out.exists() else partial_folder(out))
    if not folder.is_dir():
        folder.mkdir(parents=True)
        hub.write_json(folder / hub.CONFIG, word_config(captions))
    encoder = load_text_encoder(folder, torch.device("cpu"), torch.float32)
    return CaptionReader(encoder, min(caption_length(captions), MAX_WORDS))
