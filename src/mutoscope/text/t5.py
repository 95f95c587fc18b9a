"""The encoder half of T5, such as flan-t5-xl, from a local folder in the layout of Hugging Face."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mutoscope.errors import UserError
from mutoscope.json_config import read_json
from mutoscope.text.base import TextEncoder, TextFeatures

NO_TRANSFORMERS = "Text encoders need transformers: install mutoscope with the extra [text]."
CONFIG, TOKENIZER = "config.json", "tokenizer.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")  # whole, or in shards


class T5TextEncoder(TextEncoder):
    """Hidden states of the last layer (2048 channels for flan-t5-xl); every prompt ends with the token </s>.

    The folder holds config.json, tokenizer.json and the weights as safetensors, whole or in shards, of the encoder
    alone or of the whole T5. Nothing is downloaded and no code in the folder is run.
    """

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        """Raises UserError for a missing or damaged file and for a machine without transformers."""
        super().__init__(folder, device, dtype)
        self.tokenizer = _load_tokenizer(folder)
        self.network = _load_network(folder, dtype).to(device).eval()
        if self.tokenizer.get_vocab_size() > self.network.config.vocab_size:
            raise UserError(
                f"{folder / TOKENIZER} has more tokens than {folder / CONFIG}: they do not belong together."
            )

    @staticmethod
    def feature_size(folder: Path) -> int:
        return read_json(folder / CONFIG).get("d_model", 0)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], length: int) -> TextFeatures:
        self.tokenizer.enable_truncation(length)
        # As long as the longest prompt: rows of padding are never looked at, so shorter batches change nothing.
        self.tokenizer.enable_padding(pad_id=0)
        encoded = self.tokenizer.encode_batch(list(prompts))
        tokens, mask = (torch.tensor([getattr(e, name) for e in encoded]) for name in ("ids", "attention_mask"))
        tokens, mask = tokens.to(self.device), mask.to(self.device)  # (b, longest)
        features: Tensor = self.network(input_ids=tokens, attention_mask=mask).last_hidden_state * mask[..., None]
        rest = length - mask.shape[1]
        return TextFeatures(
            torch.nn.functional.pad(features.to(self.dtype), (0, 0, 0, rest)),
            torch.nn.functional.pad(mask.bool(), (0, rest)),
        )


def _load_tokenizer(folder: Path) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise UserError(NO_TRANSFORMERS) from None
    path = folder / TOKENIZER
    if not path.is_file():
        raise UserError(
            f"{path} is missing: the text encoder needs it. Copy it from the published model; "
            "where only spiece.model is published, save the tokenizer once more with transformers."
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain exceptions
        raise UserError(f"{path} is no tokenizer: {error}.") from None
    if not tokenizer.encode("").ids:
        raise UserError(f"{path} does not end its texts with </s>: it is not the tokenizer of a T5.")
    return tokenizer


def _load_network(folder: Path, dtype: torch.dtype) -> Any:
    if not any((folder / name).is_file() for name in WEIGHTS):
        found = " (a .bin file is not read: save the model once more as safetensors)" if [*folder.glob("*.bin")] else ""
        raise UserError(f"{folder / WEIGHTS[0]} is missing: the text encoder needs its weights{found}.")
    try:
        from transformers import T5EncoderModel
    except ImportError:
        raise UserError(NO_TRANSFORMERS) from None
    try:
        loaded: Any = T5EncoderModel.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # a damaged or incomplete folder fails in many ways
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"The text encoder in {folder} cannot be loaded: {reason}") from None
    network, problems = loaded
    if missing := sorted(problems["missing_keys"]):  # transformers would fill them with random numbers
        raise UserError(f"{folder}: the text encoder's tensor {missing[0]!r} is missing.")
    return network
