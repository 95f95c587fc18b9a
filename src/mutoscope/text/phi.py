"""Phi as NOVA's text encoder (arXiv 2412.14169 §4.1), from a published folder in Hugging Face's layout."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mutoscope.errors import UserError
from mutoscope.json_config import read_json
from mutoscope.text.base import TextEncoder, TextFeatures
from mutoscope.text.loading import TOKENIZER, load_network, load_tokenizer


class PhiTextEncoder(TextEncoder):
    """Hidden states of the last layer (2560 channels for Phi-2), after its final norm.

    Attention is causal, so padding on the right never changes the features of a prompt, and only its own tokens are
    encoded. The tokenizer is in the folder or, as published, in `tokenizer` beside it. The output layer is not loaded.
    """

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        """Raises UserError for a missing or damaged file and for a machine without transformers."""
        super().__init__(folder, device, dtype)
        published = folder.parent / "tokenizer" / TOKENIZER
        self.tokenizer = load_tokenizer(published if published.is_file() else folder / TOKENIZER)
        self.network = load_network(folder, "PhiModel", dtype).to(device)
        if self.tokenizer.get_vocab_size() > self.network.config.vocab_size:
            raise UserError(f"The tokenizer of {folder} has more tokens than its network: they do not belong together.")

    @staticmethod
    def feature_size(folder: Path) -> int:
        return read_json(folder / "config.json").get("hidden_size", 0)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], length: int) -> TextFeatures:
        """Features of the first `length` tokens of each prompt; an empty prompt has none."""
        self.tokenizer.enable_truncation(length)
        self.tokenizer.no_padding()
        ids = [encoding.ids for encoding in self.tokenizer.encode_batch(list(prompts))]
        counts = torch.tensor([len(row) for row in ids], device=self.device)
        mask = torch.arange(length, device=self.device) < counts[:, None]  # (b, p)
        features = torch.zeros(*mask.shape, self.network.config.hidden_size, dtype=self.dtype, device=self.device)
        longest = int(counts.max())
        if longest:
            tokens = torch.tensor([row + [0] * (longest - len(row)) for row in ids], device=self.device)
            features[:, :longest] = self._hidden(tokens)
        return TextFeatures(features * mask[..., None], mask)

    def _hidden(self, tokens: Int[Tensor, "b p"]) -> Float[Tensor, "b p c"]:
        return self.network(input_ids=tokens).last_hidden_state.to(self.dtype)
