from pathlib import Path

import pytest
import torch

from mutoscope.errors import UserError
from mutoscope.text import load_text_encoder

pytest.importorskip("transformers")
CPU = torch.device("cpu")
WORDS = ("a", "red", "blue", "circle", "square", "<unk>")


def save_tiny_phi(folder: Path, beside: bool = True) -> Path:
    """A network of two layers, with its tokenizer beside the folder or inside it."""
    from transformers import PhiConfig, PhiForCausalLM

    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(0)
    config = PhiConfig(
        vocab_size=len(WORDS),
        initializer_range=1.0,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    network = PhiForCausalLM(config)
    network.save_pretrained(folder / "text_encoder")
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    target = folder / "tokenizer" if beside else folder / "text_encoder"
    target.mkdir(exist_ok=True)
    tokenizer.save(str(target / "tokenizer.json"))
    return folder / "text_encoder"


@pytest.mark.parametrize("beside", [True, False])
def test_features_of_a_prompt_do_not_depend_on_other_prompts(tmp_path: Path, beside: bool):
    encoder = load_text_encoder(save_tiny_phi(tmp_path, beside), CPU, torch.float32)
    together = encoder.encode(["a red circle", "", "blue"], 6)
    assert together.mask.sum(1).tolist() == [3, 0, 1] and together.features.shape == (3, 6, 16)
    alone = encoder.encode(["blue"], 6)
    torch.testing.assert_close(together.features[2], alone.features[0])
    assert not together.features[~together.mask].any()
    assert encoder.feature_size(encoder.folder) == 16


def test_long_prompts_are_cut_and_empty_ones_need_no_network(tmp_path: Path):
    encoder = load_text_encoder(save_tiny_phi(tmp_path), CPU, torch.float32)
    assert encoder.encode(["red " * 10_000], 6).mask.all()
    assert not encoder.encode(["", ""], 6).mask.any()


@pytest.mark.parametrize("path", ["tokenizer/tokenizer.json", "text_encoder/model.safetensors"])
def test_a_missing_file_is_named(tmp_path: Path, path: str):
    folder = save_tiny_phi(tmp_path)
    (tmp_path / path).unlink()
    with pytest.raises(UserError, match=Path(path).name):
        load_text_encoder(folder, CPU, torch.float32)
