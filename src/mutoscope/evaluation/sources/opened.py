"""The source of an evaluation, opened once: a folder or listing of videos, a model, or a tokenizer."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from mutoscope import hub
from mutoscope.evaluation.sources.model_clips import model_hash
from mutoscope.evaluation.sources.windows import ClipListing
from mutoscope.pipeline import VideoPipeline
from mutoscope.tokenizers.base import VideoTokenizer

SourceLike = str | os.PathLike[str] | ClipListing | VideoPipeline | VideoTokenizer


@dataclass(frozen=True)
class FolderSource:
    """Videos below a folder."""

    folder: Path

    @property
    def index(self) -> None:
        """Videos have no model_index.json."""

    def described(self) -> dict[str, object]:
        """What the clips of the source depend on, as JSON."""
        return {"folder": str(self.folder)}


@dataclass(frozen=True)
class ListedSource:
    """Videos that are listed already."""

    listing: ClipListing

    @property
    def index(self) -> None:
        """Videos have no model_index.json."""

    def described(self) -> dict[str, object]:
        """What the clips of the source depend on, as JSON."""
        files = self.listing.files
        rows = [[str(file.name), file.path.stat().st_size if file.path.exists() else 0] for file in files]
        return {"files_sha256": hashlib.sha256(json.dumps(rows).encode()).hexdigest()}


@dataclass(frozen=True)
class ModelSource:
    """A model that generates."""

    pipeline: VideoPipeline

    @property
    def index(self) -> hub.ModelIndex:
        return self.pipeline.index

    def described(self) -> dict[str, object]:
        """What the clips of the source depend on, as JSON; folders of its parts are no part of it."""
        return {
            "model_sha256": model_hash(self.pipeline),
            "index": asdict(replace(self.index, tokenizer="", model=None, text_encoder=None)),
        }


@dataclass(frozen=True)
class TokenizerSource:
    """A tokenizer alone; `index` describes the folder it was loaded from."""

    tokenizer: VideoTokenizer
    index: hub.ModelIndex | None = None

    def described(self) -> dict[str, object]:
        """What the clips of the source depend on, as JSON."""
        return {"tokenizer_sha256": hub.weights_hash(self.tokenizer)}


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
