"""Prompts cleaned by the published rules."""

import pytest

from mutoscope.errors import UserError
from mutoscope.text.cleaning import MAX_PROMPT, clean_prompt


@pytest.mark.parametrize(
    "prompt, expected",
    [
        ("A Blue   Porsche 356, parked.", "a blue porsche 356, parked."),
        ("  ", ""),
        ("", ""),
        ("a <person> waving", "a person waving"),
        ("see https://pictures.com/cat now", "see now"),
        ("from @someone with love", "from with love"),
        ("a “quoted” — ‘it’ b", "a \"quoted\" - 'it' b"),
        ("this-is-my-cute-cat", "this is my cute cat"),
        ("a well-known two-seater", "a well-known two-seater"),
        ("<b>bold</b> &amp; <i>italic</i><script>x()</script><!-- note -->", "bold italic"),
        ("a cat &lt;3", "a cat <3"),
        ("holiday/beach.jpg 1024x768 #12 jc6640", ""),
        ("(brackets) [gone] {all}", "brackets gone all"),
        ("日本 cat", "cat"),
        ("free shipping of cats", "of cats"),
        ("50%25+off", "50% off"),
        ("a < b", "a < b"),
        ("cafe\u0301", "caf\u00e9"),
    ],
)
def test_prompts_are_cleaned_like_training_captions(prompt: str, expected: str):
    assert clean_prompt(prompt) == expected


def test_a_very_long_prompt_is_cleaned_and_a_longer_one_refused():
    assert clean_prompt("a red circle " * 800) == ("a red circle " * 800).strip()
    with pytest.raises(UserError, match="20,000 characters"):
        clean_prompt("x" * (MAX_PROMPT + 1))
