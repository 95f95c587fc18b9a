"""Words of every script, and names that look alike."""

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mutoscope.text.letters import MAX_WORDS, folded, split_words, symbols


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A red circle, 2 times!", ["a", "red", "circle", "2", "times"]),
        ("don't a_b", ["don", "t", "a", "b"]),
        ("Красный  круг.", ["красный", "круг"]),
        ("ΚΎΚΛΟΣ κύκλος", ["κύκλοσ", "κύκλοσ"]),
        ("ein grüner Kreis — größer", ["ein", "grüner", "kreis", "grösser"]),
        ("gru\u0308n GRÜN", ["grün", "grün"]),
        ("लाल वृत्त", ["लाल", "वृत्त"]),
        ("红色的圆", ["红", "色", "的", "圆"]),
        ("赤いサークルA1", ["赤", "い", "サ", "ー", "ク", "ル", "a1"]),
        ("빨간 원", ["빨간", "원"]),
        ("สีแดง", ["สี", "แ", "ด", "ง"]),
        ("דג אדום", ["דג", "אדום"]),
        ("می\u200cروم", ["میروم"]),
        ("ﬁsh １２", ["fish", "12"]),
        ("\ufeffa red ❤️ circle", ["a", "red", "circle"]),
        ("🔴!?", []),
        ("\u0301\u0308", []),
    ],
)
def test_words_of_every_script(text: str, words: list[str]):
    assert split_words(text) == words


@given(st.text(st.characters(max_codepoint=127), max_size=80))
def test_words_of_ascii_text_are_those_of_earlier_versions(text: str):
    assert split_words(text) == re.findall(r"[a-z0-9]+", text.lower())


@given(st.text(max_size=40))
def test_no_letter_is_lost_and_words_hold_nothing_else(text: str):
    words = split_words(text)
    assert all(unicodedata.category(c)[0] in "LNM" for word in words for c in word)
    kept = [c for c in folded(text) if unicodedata.category(c)[0] in "LN"]
    assert [c for word in words for c in word if unicodedata.category(c)[0] in "LN"] == kept
    assert [split_words(word) for word in words if word.isascii()] == [[word] for word in words if word.isascii()]


def test_words_have_a_limit():
    assert len(split_words("a " * 3000)) == len(split_words("圆" * 3000)) == MAX_WORDS


def test_symbols_are_found_apart_from_words():
    assert symbols("a ❤️ and 👍🏽, 3 → +5 $") == ["❤", "👍"]


@given(st.text(max_size=30))
def test_folding_twice_changes_nothing_more(text: str):
    assert folded(folded(text)) == folded(text)
    assert folded(unicodedata.normalize("NFD", text)) == folded(unicodedata.normalize("NFC", text))
