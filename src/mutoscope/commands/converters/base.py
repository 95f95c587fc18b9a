"""What every converter of published checkpoints shares."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import NamedTuple

from torch import nn

from mutoscope import hub
from mutoscope.commands.converters.options import ConvertOptions
from mutoscope.errors import UserError
from mutoscope.tokenizers.base import TokenizerSpec, VideoTokenizer


class Converted(NamedTuple):
    """The network that was written, and the family its folder names."""

    network: nn.Module
    family: str


class Converter(ABC):
    """One kind of published checkpoint."""

    reads_folder: bool = False
    """Whether the source is a folder or a name on the hub; otherwise it is a file."""
    takes_text_encoder: bool = False

    @abstractmethod
    def convert(self, source: str, target: Path, options: ConvertOptions) -> Converted:
        """Write the model folder `target`. Raises UserError if the checkpoint is of another kind or does not fit."""


def named_tokenizer(tokenizer: str | None) -> VideoTokenizer:
    """The tokenizer whose tokens a transformer reads. Raises UserError if none is named."""
    if tokenizer is None:
        raise UserError("A transformer's weights say nothing about its tokenizer: name one with --tokenizer FOLDER.")
    return hub.load_tokenizer(tokenizer)


def check_clip(spec: TokenizerSpec, options: ConvertOptions) -> None:
    """Raise UserError unless the strides of the tokenizer divide the clips."""
    t, s = spec.temporal_stride, spec.spatial_stride
    if options.num_frames % t or options.height % s or options.width % s:
        raise UserError(
            f"This tokenizer takes frames in multiples of {t} and sizes in multiples of {s}, found "
            f"{options.num_frames} frames of {options.height}×{options.width}: say --num-frames, --height and --width."
        )
