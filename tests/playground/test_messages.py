"""Messages of the page are read strictly."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mutoscope.errors import UserError
from mutoscope.playground.messages import Act, Rewind, Start, read_message


def test_messages_become_what_they_ask_for():
    assert read_message('{"type": "rewind", "frame": 3}') == Rewind(3)
    assert read_message('{"type": "action", "id": 2, "action": {"left": 1}}') == Act(2, {"left": 1})
    start = read_message('{"type": "start", "model": "m", "class_label": "basic", "seed": 4}')
    assert isinstance(start, Start) and (start.class_label, start.seed, start.image) == ("basic", 4, "webp")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "JSON object"),
        ("[1]", "JSON object"),
        ("{" * 5000, "JSON object"),
        ('{"frame": 1}', "no message of type"),
        ('{"type": "rewnd", "frame": 1}', "did you mean 'rewind'"),
        ('{"type": ["rewind"]}', "no message of type"),
        ('{"type": "rewind"}', "'frame' is missing"),
        ('{"type": "rewind", "frame": "x"}', "frame"),
        ('{"type": "pause", "now": true}', "unknown key 'now'"),
        (json.dumps({"type": "start", "model": "m" * 70_000}), "characters"),
    ],
)
def test_anything_else_is_a_sentence(text: str, said: str):
    with pytest.raises(UserError, match=said):
        read_message(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["type", "frame", "id", "action", "model", "fps", "x"]), json_values))
def test_no_json_object_does_more_than_raise_a_sentence(value: dict[str, object]):
    try:
        read_message(json.dumps(value))
    except UserError as error:
        assert str(error)
