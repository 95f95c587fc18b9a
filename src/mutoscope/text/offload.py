"""A text encoder that is in memory only while it encodes: encoders can be several times as large as the model."""

import gc
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from mutoscope.text import encoder_kind, load_text_encoder
from mutoscope.text.base import TextEncoder, TextFeatures

MAX_PROMPTS = 256  # a prompt of 20 words takes about 100 kB for Phi-2 in half precision


@dataclass(frozen=True)
class _EncodedPrompt:
    """Features of a prompt's real tokens, on the CPU, and its unknown words."""

    features: Float[Tensor, "n c"]
    unknown: list[str]


class OffloadedTextEncoder(TextEncoder):
    """Loads the encoder of a folder for every call with new prompts, and frees its memory afterwards.

    Prompts are encoded one by one, so that the features of a prompt never depend on the others. Features of the last
    `MAX_PROMPTS` prompts are kept, and encoding these again loads nothing.
    """

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(folder, device, dtype)
        self._encoded: OrderedDict[tuple[str, int], _EncodedPrompt] = OrderedDict()
        self._unknown: dict[str, list[str]] = {}

    @staticmethod
    def feature_size(folder: Path) -> int:
        return encoder_kind(folder).feature_size(folder)

    def encode(self, prompts: Sequence[str], length: int) -> TextFeatures:
        """Raises UserError for missing or damaged files, once a new prompt needs them."""
        distinct = dict.fromkeys(prompts)
        found = {prompt: self._encoded[prompt, length] for prompt in distinct if (prompt, length) in self._encoded}
        found |= self._encode_new([prompt for prompt in distinct if prompt not in found], length)
        self._remember(found, length)
        counts = torch.tensor([len(found[prompt].features) for prompt in prompts])
        size = next(iter(found.values())).features.shape[1]
        features = torch.zeros(len(prompts), length, size, dtype=self.dtype)
        for row, prompt in enumerate(prompts):
            features[row, : counts[row]] = found[prompt].features
        mask = torch.arange(length) < counts[:, None]
        return TextFeatures(features.to(self.device), mask.to(self.device))

    def unknown(self, prompt: str) -> list[str]:
        """Loads nothing for the prompts of the last `encode`."""
        if prompt not in self._unknown:
            self._unknown[prompt] = load_text_encoder(self.folder, self.device, self.dtype).unknown(prompt)
        return self._unknown[prompt]

    def _encode_new(self, prompts: list[str], length: int) -> dict[str, _EncodedPrompt]:
        if not prompts:
            return {}
        encoder, encoded = load_text_encoder(self.folder, self.device, self.dtype), {}
        for prompt in prompts:
            features, mask = encoder.encode([prompt], length)
            # A copy: a view would keep the rows of padding in memory.
            encoded[prompt] = _EncodedPrompt(features[0, : int(mask.sum())].cpu().clone(), encoder.unknown(prompt))
        del encoder
        gc.collect()  # networks of transformers contain reference cycles
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return encoded

    def _remember(self, found: dict[str, _EncodedPrompt], length: int) -> None:
        self._unknown = {prompt: encoded.unknown for prompt, encoded in found.items()}
        for prompt, encoded in found.items():
            self._encoded[prompt, length] = encoded
            self._encoded.move_to_end((prompt, length))
        while len(self._encoded) > MAX_PROMPTS:
            self._encoded.popitem(last=False)
