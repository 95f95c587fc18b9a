"""The encoder of T5, such as flan-t5-xl, from a local folder in Hugging Face's layout."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from mutoscope.errors import UserError
from mutoscope.json_config import read_json
from mutoscope.text.base import TextEncoder, TextFeatures
from mutoscope.text.loading import TOKENIZER, PromptTokenizer, load_network, load_tokenizer

CONFIG = "config.json"


class T5TextEncoder(TextEncoder):
    """Hidden states of the last layer (2048 channels for flan-t5-xl); every prompt ends with the token </s>.

    The folder contains config.json, tokenizer.json and the weights as safetensors, whole or in shards, of the encoder
    alone or of the whole T5. Nothing is downloaded and no code in the folder is executed.
    """

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        """Raises UserError for a missing or damaged file and for a machine without transformers."""
        super().__init__(folder, device, dtype)
        self.tokenizer = _load_tokenizer(folder)
        self.network = load_network(folder, "T5EncoderModel", dtype).to(device)
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
        # Padded to the longest prompt only: attention masks padding, so its length changes no feature.
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

    def unknown(self, prompt: str) -> list[str]:
        """Words that hold a part which the tokenizer replaces by its token for unknown text."""
        unknown, words = self.tokenizer.token_to_id("<unk>"), dict.fromkeys(prompt.split())
        return [word for word in words if unknown is not None and unknown in self.tokenizer.encode(word).ids]


def _load_tokenizer(folder: Path) -> PromptTokenizer:
    path = folder / TOKENIZER
    tokenizer = load_tokenizer(path, "; if only spiece.model is published, save the tokenizer again with transformers")
    if not tokenizer.encode("").ids:
        raise UserError(f"{path} does not end its texts with </s>: it is not the tokenizer of a T5.")
    return tokenizer
