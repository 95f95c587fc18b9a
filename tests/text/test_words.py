import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mutoscope import hub
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


def encoder_of(folder: Path, vocabulary: list[str]) -> WordTextEncoder:
    folder.mkdir()
    write_json(folder / "config.json", {"kind": "words", "vocabulary": vocabulary})
    loaded = load_text_encoder(folder, CPU, torch.float32)
    assert isinstance(loaded, WordTextEncoder)
    return loaded


def test_words_of_every_script_are_learned(tmp_path: Path):
    captions = ["красный круг", "ein grüner Kreis", "红色的圆"]
    vocabulary = word_config(captions)["vocabulary"]
    assert set(vocabulary) == {"красный", "круг", "ein", "grüner", "kreis", *"红色的圆"}
    encoder = encoder_of(tmp_path / "words", list(vocabulary))
    text = encoder.encode(["Красный КРУГ", "GRÜNER"], 4)
    assert text.mask.sum(1).tolist() == [2, 1]
    assert words_of(encoder, text.features[0, 0]) == ["красный", None, "круг", None, None]
    assert [encoder.unknown(caption) for caption in captions] == [[], [], []]


@pytest.mark.parametrize(
    ("prompt", "unknown"),
    [
        ("красный круг", ["красный", "круг"]),
        ("红圆", ["红", "圆"]),
        ("a red круг", ["круг"]),
        ("!!! ", ["!!!"]),
        ("🔴", ["🔴"]),
        ("a red 🔴", ["🔴"]),
        ("a réd circle", ["réd"]),
        ("", []),
        ("a red circle!", []),
    ],
)
def test_whatever_an_encoder_drops_is_reported(encoder: WordTextEncoder, prompt: str, unknown: list[str]):
    assert encoder.unknown(prompt) == unknown


@given(st.text(max_size=40))
def test_a_vocabulary_of_an_earlier_version_gives_the_same_features(text: str):
    encoder = WordTextEncoder.__new__(WordTextEncoder)
    encoder.vocabulary, encoder.latin = {"a": 0, "gr": 1, "n": 2}, True
    encoder.device, encoder.dtype = CPU, torch.float32
    earlier = re.findall(r"[a-z0-9]+", text.lower())
    found = encoder.encode([text], 50)
    assert int(found.mask.sum()) == len(earlier)
    assert [encoder.vocabulary.get(w) for w in earlier] == [
        int(row[:3].argmax()) if row[:3].any() else None for row in found.features[0, : len(earlier)]
    ]


def test_parts_of_words_that_an_earlier_version_learned_are_known(tmp_path: Path):
    encoder = encoder_of(tmp_path / "words", ["gr", "kreis", "n"])
    assert encoder.latin and encoder.unknown("grün Kreis rot") == ["rot"]


def test_the_bundled_model_reads_as_before():
    folder = hub.open_folder("nova-shapes").text_encoder_path
    assert folder is not None
    encoder = load_text_encoder(folder, CPU, torch.float32)
    assert isinstance(encoder, WordTextEncoder) and encoder.latin
    assert encoder.encode(["a red círcle"], 8).mask.sum() == 4  # "c" and "rcle"
