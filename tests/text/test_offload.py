"""The encoder that is in memory only while it encodes."""

import weakref
from pathlib import Path

import pytest
import torch

from mutoscope.errors import UserError
from mutoscope.hub import write_json
from mutoscope.text import TextEncoder, load_text_encoder, offload
from mutoscope.text.offload import OffloadedTextEncoder
from mutoscope.text.words import word_config

CPU = torch.device("cpu")


@pytest.fixture
def words(tmp_path: Path) -> Path:
    write_json(tmp_path / "config.json", word_config(["a red circle", "a blue square"]))
    return tmp_path


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[TextEncoder]]:
    """Weak references to all encoders that were loaded; None for those no longer in memory."""
    found = []

    def load(folder: Path, device: torch.device, dtype: torch.dtype) -> TextEncoder:
        encoder = load_text_encoder(folder, device, dtype)
        found.append(weakref.ref(encoder))
        return encoder

    monkeypatch.setattr(offload, "load_text_encoder", load)
    return found


def test_features_are_those_of_the_encoder_and_only_new_prompts_load_it(words: Path, loaded: list):
    encoder, plain = OffloadedTextEncoder(words, CPU, torch.float32), load_text_encoder(words, CPU, torch.float32)
    assert not loaded
    for prompts, loads in (
        (["a red circle", "", "a red circle"], 1),
        (["", "a red circle"], 1),
        (["blue", "a red circle"], 2),
        (["blue"], 2),
    ):
        ours, theirs = encoder.encode(prompts, 5), plain.encode(prompts, 5)
        assert torch.equal(ours.features, theirs.features) and torch.equal(ours.mask, theirs.mask)
        assert len(loaded) == loads
    assert [reference() for reference in loaded] == [None, None]
    assert encoder.encode(["blue"], 3).features.shape == (1, 3, encoder.feature_size(words))


def test_unknown_words_are_reported_without_loading_again(words: Path, loaded: list):
    encoder = OffloadedTextEncoder(words, CPU, torch.float32)
    for _ in range(2):
        encoder.encode(["a purple circle"], 5)
        assert encoder.unknown("a purple circle") == ["purple"]
    assert len(loaded) == 1
    assert encoder.unknown("huge") == ["huge"]


def test_features_of_the_oldest_prompts_are_dropped(words: Path, loaded: list, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(offload, "MAX_PROMPTS", 2)
    encoder = OffloadedTextEncoder(words, CPU, torch.float32)
    together = encoder.encode(["a", "red", "circle"], 2)
    assert together.mask.sum(1).tolist() == [1, 1, 1]  # more than are kept
    encoder.encode(["circle", "red"], 2)
    assert len(loaded) == 1
    encoder.encode(["a"], 2)
    assert len(loaded) == 2


def test_the_network_is_freed_and_its_features_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("transformers")
    from mutoscope.text.phi import PhiTextEncoder
    from text.test_phi import save_tiny_phi

    networks = []
    hidden = PhiTextEncoder._hidden

    def seen(self: PhiTextEncoder, tokens: torch.Tensor) -> torch.Tensor:
        networks.append(weakref.ref(self.network))
        assert isinstance(self.network, torch.nn.Module)
        assert next(self.network.parameters()).dtype == torch.bfloat16
        return hidden(self, tokens)

    monkeypatch.setattr(PhiTextEncoder, "_hidden", seen)
    encoder = OffloadedTextEncoder(save_tiny_phi(tmp_path), CPU, torch.bfloat16)
    first = encoder.encode(["a red circle", ""], 6)
    assert len(networks) == 1 and networks[0]() is None
    assert torch.equal(encoder.encode(["a red circle"], 6).features[0], first.features[0])
    assert len(networks) == 1 and first.mask.sum(1).tolist() == [3, 0]
    assert torch.equal(
        encoder.encode(["blue", "a red circle"], 6).features[1], first.features[0]
    )  # whatever the other prompts


def test_a_folder_without_an_encoder_is_refused_at_the_first_prompt(tmp_path: Path):
    encoder = OffloadedTextEncoder(tmp_path / "nothing", CPU, torch.float32)
    with pytest.raises(UserError, match="no text encoder"):
        encoder.encode(["a"], 3)
