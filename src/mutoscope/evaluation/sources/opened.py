"""The source of an evaluation, opened once: a folder or listing of videos, a model, or a tokenizer."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from mutoscope import hub
from mutoscope.evaluation.sources.windows import ClipListing
from mutoscope.pipeline import VideoPipeline
from mutoscope.tokenizers.base import VideoTokenizer

SourceLike = str | os.PathLike[str] | ClipListing | VideoPipeline | VideoTokenizer


@dataclass(frozen=True)
class FolderSource:
    """Videos below a folder."""

    folder: Path


@dataclass(frozen=True)
class ListedSource:
    """Videos that are listed already."""

    listing: ClipListing


@dataclass(frozen=True)
class ModelSource:
    """A model that generates."""

    pipeline: VideoPipeline


@dataclass(frozen=True)
class TokenizerSource:
    """A tokenizer alone; `index` describes the folder it was loaded from."""

    tokenizer: VideoTokenizer
    index: hub.ModelIndex | None = None


Source = FolderSource | ListedSource | ModelSource | TokenizerSource


def open_source(source: SourceLike, device: torch.device | str = "cpu") -> Source:
    """Load a bundled name or a model folder, or wrap what is loaded already. Raises UserError for an unknown name."""
    if isinstance(source, str | os.PathLike):
        folder = Path(source).expanduser()
        if folder.is_dir() and not (folder / hub.INDEX).is_file():
            return FolderSource(folder)
        return of_pipeline(VideoPipeline.from_pretrained(source, device=device))
    if isinstance(source, ClipListing):
        return ListedSource(source)
    if isinstance(source, VideoTokenizer):
        return TokenizerSource(source)
    return of_pipeline(source)


def of_pipeline(pipeline: VideoPipeline) -> ModelSource | TokenizerSource:
    """A pipeline may hold a tokenizer alone."""
    return TokenizerSource(pipeline.tokenizer, pipeline.index) if pipeline.model is None else ModelSource(pipeline)


def name_of(source: SourceLike) -> str:
    """Name of the source in a report."""
    return os.fspath(source) if isinstance(source, str | os.PathLike) else type(source).__name__
