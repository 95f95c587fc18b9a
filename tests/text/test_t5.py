"""The T5 encoder from a local folder: features, masks, and folders that cannot be used."""

import json
import sys
from pathlib import Path

import pytest
import torch

from mutoscope.errors import UserError
from mutoscope.text import load_text_encoder
from tiny_text_encoder import save_tiny_t5

pytest.importorskip("transformers")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_t5(tmp_path_factory.mktemp("encoders") / "t5")


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A copy of the folder that a test may damage."""
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_features_are_those_of_transformers_at_full_length(folder: Path):
    from transformers import T5EncoderModel

    encoder = load_text_encoder(folder, CPU, torch.float32)
    features, mask = encoder.encode(["a red circle", "", "a"], 7)
    assert mask.sum(1).tolist() == [4, 1, 2]  # with </s>
    tokens = torch.tensor([[3, 4, 6, 1, 0, 0, 0], [1] + [0] * 6, [3, 1] + [0] * 5])
    network = T5EncoderModel.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = network(input_ids=tokens, attention_mask=mask.long()).last_hidden_state * mask[..., None]
    torch.testing.assert_close(features, expected)
    assert features.shape == (3, 7, encoder.feature_size(folder)) and features[~mask].abs().max() == 0


def test_a_long_prompt_is_cut_and_keeps_its_end_token(folder: Path):
    encoder = load_text_encoder(folder, CPU, torch.float32)
    features, mask = encoder.encode(["circle " * 1430], 5)
    assert mask.all() and features.shape == (1, 5, 6)
    again, _ = encoder.encode(["circle circle circle circle"], 5)
    torch.testing.assert_close(features, again)
    unlimited, _ = encoder.encode(["circle circle circle circle circle"], 6)
    assert not torch.allclose(features, unlimited[:, :5])


def test_half_precision_halves_the_memory_and_stays_close(folder: Path):
    full = load_text_encoder(folder, CPU, torch.float32).encode(["a red circle"], 5).features
    half = load_text_encoder(folder, CPU, torch.bfloat16).encode(["a red circle"], 5).features
    assert half.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(half.float().flatten(), full.flatten(), dim=0) > 0.99


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named(copy: Path, name: str):
    (copy / name).unlink()
    with pytest.raises(UserError, match=name):
        load_text_encoder(copy, CPU, torch.float32)


def test_damaged_and_foreign_files_are_refused(copy: Path):
    weights = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(UserError, match="cannot be loaded"):
        load_text_encoder(copy, CPU, torch.float32)
    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(UserError, match="save the model again as safetensors"):
        load_text_encoder(copy, CPU, torch.float32)
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="no tokenizer"):
        load_text_encoder(copy, CPU, torch.float32)


def test_missing_weights_are_refused_and_never_drawn_at_random(copy: Path):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"num_layers": 3}))
    with pytest.raises(UserError, match=r"encoder.block.2.* is missing"):
        load_text_encoder(copy, CPU, torch.float32)


def test_without_transformers_the_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("transformers", "tokenizers"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(UserError, match=r"extra \[text\]"):
            load_text_encoder(folder, CPU, torch.float32)


def test_words_that_the_tokenizer_does_not_know_are_named(folder: Path):
    encoder = load_text_encoder(folder, CPU, torch.float32)
    assert encoder.unknown("a red круг circle 圆 круг") == ["круг", "圆"]
    encoder.encode(["a red circle", "a"], 3)  # padding and truncation of a batch change nothing
    assert encoder.unknown("a red circle") == []
