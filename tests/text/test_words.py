from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mutoscope.errors import UserError
from mutoscope.hub import write_json
from mutoscope.text import load_text_encoder
from mutoscope.text.words import OFFSETS, WordTextEncoder, split_words, word_config

CPU = torch.device("cpu")
CAPTIONS = ["a red circle", "a blue square in front of a red cross"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> WordTextEncoder:
    folder = tmp_path_factory.mktemp("words")
    write_json(folder / "config.json", word_config(CAPTIONS))
    loaded = load_text_encoder(folder, CPU, torch.float32)
    assert isinstance(loaded, WordTextEncoder)
    return loaded


def words_of(encoder: WordTextEncoder, feature: torch.Tensor) -> list[str | None]:
    """The word that a feature holds at each offset."""
    names = list(encoder.vocabulary)
    slots = feature.view(len(OFFSETS), -1)
    return [names[int(slot.argmax())] if slot.any() else None for slot in slots]


def test_a_feature_holds_a_word_and_its_neighbours(encoder: WordTextEncoder):
    text = encoder.encode(["a red circle"], 5)
    assert text.mask.tolist() == [[True, True, True, False, False]]
    assert words_of(encoder, text.features[0, 1]) == ["red", "a", "circle", None, None]
    assert words_of(encoder, text.features[0, 2]) == ["circle", "red", None, "a", None]
    assert text.features.shape[2] == encoder.feature_size(encoder.folder)


def test_colours_stay_with_their_shapes(encoder: WordTextEncoder):
    one, other = (encoder.encode([t], 9).features for t in ("a red square and blue", "a blue square and red"))
    assert not torch.equal(one, other)


def test_unknown_words_are_zeros_and_are_reported(encoder: WordTextEncoder):
    text = encoder.encode(["a purple circle"], 4)
    assert words_of(encoder, text.features[0, 1]) == [None, "a", "circle", None, None]
    assert encoder.unknown("a purple circle, purple") == ["purple"]


@given(st.text(max_size=60))
def test_any_text_can_be_encoded(text: str):
    encoder = WordTextEncoder.__new__(WordTextEncoder)
    encoder.vocabulary, encoder.device, encoder.dtype = {"a": 0, "b": 1}, CPU, torch.float32
    found = encoder.encode([text], 3)
    assert int(found.mask.sum()) == min(len(split_words(text)), 3)


def test_a_folder_without_a_vocabulary_is_refused(tmp_path: Path):
    write_json(tmp_path / "config.json", {"kind": "words", "vocabulary": [1]})
    with pytest.raises(UserError, match="list of words"):
        load_text_encoder(tmp_path, CPU, torch.float32)
