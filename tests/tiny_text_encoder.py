"""A T5 folder with random weights and a tokenizer of a few words, in the layout of published ones."""

from pathlib import Path
from typing import Any

import torch

WORDS = ("<pad>", "</s>", "<unk>", "a", "red", "blue", "circle", "square")


def save_tiny_t5(folder: Path, **changes: Any) -> Path:
    """Two layers, features of six channels. Needs transformers."""
    from transformers import T5Config, T5EncoderModel

    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    sizes = {"d_model": 6, "d_kv": 3, "d_ff": 8, "num_layers": 2, "num_heads": 2, "feed_forward_proj": "gated-gelu"}
    torch.manual_seed(0)
    network = T5EncoderModel(T5Config(vocab_size=len(WORDS), initializer_factor=5.0, **{**sizes, **changes}))
    network.save_pretrained(folder)
    words = {word: i for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
