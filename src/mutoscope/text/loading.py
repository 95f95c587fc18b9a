"""Loads tokenizers and networks of text encoders from local folders in Hugging Face's layout; executes none of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

import torch
from torch import Tensor

from mutoscope.errors import UserError, reason
from mutoscope.json_config import read_json
from mutoscope.meta_device import on_meta_device

if TYPE_CHECKING:
    from types import ModuleType

NO_TRANSFORMERS = "Text encoders need transformers: install mutoscope with the extra [text]."
TOKENIZER, CONFIG = "tokenizer.json", "config.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")  # whole, or in shards


class Encoding(Protocol):
    """One prompt, tokenized."""

    @property
    def ids(self) -> list[int]: ...

    @property
    def attention_mask(self) -> list[int]: ...


class PromptTokenizer(Protocol):
    """The parts of a `tokenizers.Tokenizer` that the encoders call."""

    def encode(self, sequence: str) -> Encoding: ...

    def encode_batch(self, input: list[str]) -> Sequence[Encoding]: ...

    def enable_truncation(self, max_length: int) -> None: ...

    def enable_padding(self, *, pad_id: int) -> None: ...

    def no_padding(self) -> None: ...

    def get_vocab_size(self) -> int: ...

    def token_to_id(self, token: str) -> int | None: ...


class NetworkConfig(Protocol):
    """The settings that the encoders read."""

    vocab_size: int
    hidden_size: int


class NetworkOutput(Protocol):
    """Result of a network of transformers."""

    last_hidden_state: Tensor


class TextNetwork(Protocol):
    """The parts of a network of transformers that the encoders call."""

    @property
    def config(self) -> NetworkConfig: ...

    def to(self, device: torch.device) -> Self: ...

    def __call__(self, *, input_ids: Tensor, attention_mask: Tensor | None = None) -> NetworkOutput: ...


def load_tokenizer(path: Path, otherwise: str = "") -> PromptTokenizer:
    """A `tokenizers.Tokenizer` from a tokenizer.json. `otherwise` ends the message about a missing file.

    Raises UserError for a missing or damaged file and without transformers.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise UserError(NO_TRANSFORMERS) from None
    if not path.is_file():
        raise UserError(f"{path} is missing: the text encoder needs it. Copy it from the published model{otherwise}.")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain exceptions
        raise UserError(f"{path} is no tokenizer: {reason(error)}.") from None


def _check_size(folder: Path, transformers: "ModuleType", class_name: str) -> None:
    """Raises UserError for a configuration of a network that no machine can hold, before anything is allocated."""
    kind = getattr(transformers, class_name)
    read_json(folder / CONFIG)  # refuses deep nesting and settings of megabytes
    try:
        with on_meta_device():
            kind(kind.config_class.from_pretrained(folder, local_files_only=True))
    except Exception as error:  # wrong settings fail in many ways
        raise UserError(f"{folder / CONFIG} describes no {class_name}: {reason(error)}.") from None


def load_network(folder: Path, class_name: str, dtype: torch.dtype) -> TextNetwork:
    """A network of transformers with the weights of a folder, in evaluation mode.

    Raises UserError for missing or damaged weights and without transformers.
    """
    if not any((folder / name).is_file() for name in WEIGHTS):
        found = " (.bin files are not read: save the model again as safetensors)" if [*folder.glob("*.bin")] else ""
        raise UserError(f"{folder / WEIGHTS[0]} is missing: the text encoder needs its weights{found}.")
    try:
        import transformers
    except ImportError:
        raise UserError(NO_TRANSFORMERS) from None
    _check_size(folder, transformers, class_name)
    try:
        network, problems = getattr(transformers, class_name).from_pretrained(
            folder, dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # a damaged or incomplete folder fails in many ways
        raise UserError(f"The text encoder in {folder} cannot be loaded: {reason(error)}.") from None
    if missing := sorted(problems["missing_keys"]):  # transformers would draw them at random
        raise UserError(f"{folder}: the text encoder's tensor {missing[0]!r} is missing.")
    return network.eval()
