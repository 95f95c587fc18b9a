"""A text encoder that takes no memory while nothing is read: encoders can be several times as large as the model."""

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

MAX_PROMPTS = 256  # of Phi-2 about 100 kB for a prompt of 20 words in half precision


@dataclass(frozen=True)
class _Read:
    """What is kept of a prompt: the features of its own rows, on the CPU, and its unknown words."""

    features: Float[Tensor, "n c"]
    unknown: list[str]


class OffloadedTextEncoder(TextEncoder):
    """Loads the encoder of a folder when a new prompt comes and drops it from memory when that is read.

    Prompts are read one by one, so that one has the same features in any company; those of the last `MAX_PROMPTS`
    prompts are kept, and reading them again loads nothing.
    """

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(folder, device, dtype)
        self._reads: OrderedDict[tuple[str, int], _Read] = OrderedDict()
        self._unknown: dict[str, list[str]] = {}

    @staticmethod
    def feature_size(folder: Path) -> int:
        return encoder_kind(folder).feature_size(folder)

    def encode(self, prompts: Sequence[str], length: int) -> TextFeatures:
        """Raises UserError for whatever is missing or damaged in the folder, as far as it has to be read."""
        distinct = dict.fromkeys(prompts)
        found = {prompt: self._reads[prompt, length] for prompt in distinct if (prompt, length) in self._reads}
        found |= self._read([prompt for prompt in distinct if prompt not in found], length)
        self._remember(found, length)
        counts = torch.tensor([len(found[prompt].features) for prompt in prompts])
        size = next(iter(found.values())).features.shape[1]
        features = torch.zeros(len(prompts), length, size, dtype=self.dtype)
        for row, prompt in enumerate(prompts):
            features[row, : counts[row]] = found[prompt].features
        mask = torch.arange(length) < counts[:, None]
        return TextFeatures(features.to(self.device), mask.to(self.device))

    def unknown(self, prompt: str) -> list[str]:
        """Known without loading anything for the prompts that were encoded last."""
        if prompt not in self._unknown:
            self._unknown[prompt] = load_text_encoder(self.folder, self.device, self.dtype).unknown(prompt)
        return self._unknown[prompt]

    def _read(self, prompts: list[str], length: int) -> dict[str, _Read]:
        if not prompts:
            return {}
        encoder, reads = load_text_encoder(self.folder, self.device, self.dtype), {}
        for prompt in prompts:
            features, mask = encoder.encode([prompt], length)
            # A copy: a view would keep the rows of padding alive.
            reads[prompt] = _Read(features[0, : int(mask.sum())].cpu().clone(), encoder.unknown(prompt))
        del encoder
        gc.collect()  # networks of transformers refer to themselves
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return reads

    def _remember(self, found: dict[str, _Read], length: int) -> None:
        self._unknown = {prompt: read.unknown for prompt, read in found.items()}
        for prompt, read in found.items():
            self._reads[prompt, length] = read
            self._reads.move_to_end((prompt, length))
        while len(self._reads) > MAX_PROMPTS:
            self._reads.popitem(last=False)
