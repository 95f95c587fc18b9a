"""Which environment a model's scenarios were recorded from."""

import pytest

from mutoscope.model_index import ModelIndex
from mutoscope.playground.real import environment_name


@pytest.mark.parametrize(
    ("classes", "recorded", "label", "expected"),
    [
        (("basic", "mine"), ["basic", "mine"], "basic", "doom-basic"),
        (("basic", "mine"), ["basic", "mine"], 0, "doom-basic"),
        (("basic", "mine"), ["basic", "mine"], "mine", None),
        (("basic", "mine"), ["basic", "mine"], None, None),
        (None, ["health-gathering"], None, "doom-health-gathering"),
        (None, ["health-gathering"], "", "doom-health-gathering"),
        (None, ["basic", "health-gathering"], None, None),
        (None, None, None, None),
        (None, [3], None, None),
    ],
)
def test_the_environment_of_a_class_or_of_a_single_scenario(classes, recorded, label, expected) -> None:
    index = ModelIndex("magi", 16, 72, 96, class_names=classes, data={"class_names": recorded})
    assert environment_name(label, index) == expected
