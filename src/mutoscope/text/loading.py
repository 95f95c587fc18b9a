"""Tokenizers and networks of text encoders from local folders in the layout of Hugging Face, nothing executed."""

from pathlib import Path
from typing import Any

import torch

from mutoscope.errors import UserError

NO_TRANSFORMERS = "Text encoders need transformers: install mutoscope with the extra [text]."
TOKENIZER = "tokenizer.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")  # whole, or in shards


def load_tokenizer(path: Path, otherwise: str = "") -> Any:
    """A `tokenizers.Tokenizer`. `otherwise` ends the message about a missing file."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise UserError(NO_TRANSFORMERS) from None
    if not path.is_file():
        raise UserError(f"{path} is missing: the text encoder needs it. Copy it from the published model{otherwise}.")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain exceptions
        raise UserError(f"{path} is no tokenizer: {error}.") from None


def load_network(folder: Path, class_name: str, dtype: torch.dtype) -> Any:
    """A network of transformers with the weights of a folder, all of which must be there."""
    if not any((folder / name).is_file() for name in WEIGHTS):
        found = " (a .bin file is not read: save the model once more as safetensors)" if [*folder.glob("*.bin")] else ""
        raise UserError(f"{folder / WEIGHTS[0]} is missing: the text encoder needs its weights{found}.")
    try:
        import transformers
    except ImportError:
        raise UserError(NO_TRANSFORMERS) from None
    try:
        network, problems = getattr(transformers, class_name).from_pretrained(
            folder, dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # a damaged or incomplete folder fails in many ways
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"The text encoder in {folder} cannot be loaded: {reason}") from None
    if missing := sorted(problems["missing_keys"]):  # transformers would fill them with random numbers
        raise UserError(f"{folder}: the text encoder's tensor {missing[0]!r} is missing.")
    return network.eval()
