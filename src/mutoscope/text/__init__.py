"""Text encoders: features of prompts for text-conditional models."""

from importlib import import_module
from pathlib import Path

import torch

from mutoscope.errors import UserError
from mutoscope.json_config import nearest, read_json
from mutoscope.text.base import TextEncoder as TextEncoder
from mutoscope.text.base import TextFeatures as TextFeatures

# kind in the encoder's config.json -> (module, class)
KINDS = {
    "t5": ("mutoscope.text.t5", "T5TextEncoder"),
    "phi": ("mutoscope.text.phi", "PhiTextEncoder"),
    "words": ("mutoscope.text.words", "WordTextEncoder"),
}


def encoder_kind(folder: Path) -> type[TextEncoder]:
    """Class of the text encoder in a folder, by `kind` in its config.json, or by transformers' `model_type`.

    Raises UserError for a missing folder and for an unknown kind.
    """
    if not folder.is_dir():
        raise UserError(f"There is no text encoder in {str(folder)!r}: name a folder with its config.json.")
    config = read_json(folder / "config.json")
    kind = str(config.get("kind", config.get("model_type")))
    if kind not in KINDS:
        raise UserError(f"{folder / 'config.json'} names the text encoder {kind!r}: {nearest(kind, KINDS)}")
    module, name = KINDS[kind]
    return getattr(import_module(module), name)


def load_text_encoder(folder: Path, device: torch.device, dtype: torch.dtype) -> TextEncoder:
    """The encoder of a folder, ready to encode. Raises UserError for missing or damaged files."""
    return encoder_kind(folder)(folder, device, dtype)
