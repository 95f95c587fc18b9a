"""Strict configurations: what JSON can say comes back as the dataclass, everything else is told by its key."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from mutoscope.errors import UserError
from mutoscope.json_config import dataclass_from_dict, nearest, read_json


@dataclass(frozen=True)
class Inner:
    size: int
    rate: float = 0.5

    def __post_init__(self) -> None:
        if self.size < 0:
            raise UserError("size must not be negative.")
        if self.size == 99:
            raise ZeroDivisionError("division by zero")


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner
    flags: tuple[bool, ...] = ()
    pair: tuple[int, float] = (1, 2.0)
    limit: float | None = None
    either: int | str = 0
    mode: Literal["none", "bf16"] = "none"
    weights: dict[str, float] = field(default_factory=dict)
    free: dict[str, Any] = field(default_factory=dict)
    on: bool = False


FULL = Outer("x", Inner(3, 1.5), (True, False), (4, 5.0), 0.9, "s", "bf16", {"a": 1.0}, {"k": [1, None]}, True)


def build(**changes: Any) -> Outer:
    return dataclass_from_dict(Outer, {"name": "x", "inner": {"size": 3}, **changes}, "config.json")


def test_a_configuration_survives_a_json_file():
    assert dataclass_from_dict(Outer, json.loads(json.dumps(asdict(FULL))), "config.json") == FULL


def test_what_is_left_out_takes_its_default():
    assert build() == Outer("x", Inner(3))


def test_whole_numbers_become_floats_wherever_floats_are_meant():
    outer = build(inner={"size": 1, "rate": 2}, pair=[1, 2], limit=3, weights={"a": 4})
    assert all(type(x) is float for x in (outer.inner.rate, outer.pair[1], outer.limit, outer.weights["a"]))


def test_none_is_accepted_where_optional_and_any_member_of_a_union():
    assert build(limit=None).limit is None
    assert (build(either=7).either, build(either="seven").either) == (7, "seven")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nam": "y"}, "unknown key 'nam': did you mean 'name'"),
        ({"inner": {"size": 1, "rat": 2}}, "unknown key 'inner.rat': did you mean 'rate'"),
        ({"inner": {}}, "key 'inner.size' is missing"),
        ({"inner": 3}, "inner must be an object with the keys of Inner, found 3"),
        ({"inner": {"size": "many"}}, "'inner.size' must be int, found 'many'"),
        ({"inner": {"size": True}}, "'inner.size' must be int, found True"),
        ({"inner": {"size": 1.0}}, "'inner.size' must be int, found 1.0"),
        ({"inner": {"size": None}}, "'inner.size' must be int, found None"),
        ({"inner": {"size": 1, "rate": True}}, "'inner.rate' must be float, found True"),
        ({"inner": {"size": -1}}, "inner.size must not be negative"),
        ({"inner": {"size": 99}}, "values of inner do not make a Inner: division by zero"),
        ({"limit": 10**400}, "'limit' must be float"),
        ({"name": 3}, "'name' must be str, found 3"),
        ({"flags": [True, 0]}, r"'flags\[1\]' must be bool, found 0"),
        ({"flags": True}, "'flags' must be tuple"),
        ({"pair": [1]}, "'pair' must hold 2 values, found 1"),
        ({"limit": "x"}, "'limit' must be float, found 'x'"),
        ({"either": 1.5}, r"'either' must be int \| str, found 1.5"),
        ({"mode": "fp4"}, "'mode' must be .*bf16.*, found 'fp4'"),
        ({"mode": ["none"]}, "'mode' must be"),
        ({"weights": {"a": "b"}}, "'weights.a' must be float, found 'b'"),
        ({"weights": [1]}, "'weights' must be dict"),
        ({"on": 1}, "'on' must be bool, found 1"),
    ],
)
def test_a_wrong_value_is_told_by_its_key(changes: dict[str, Any], message: str):
    with pytest.raises(UserError, match=f"^config.json: .*{message}"):
        build(**changes)


def test_a_word_close_to_none_lists_what_is_known():
    assert nearest("zzz", ["alpha", "beta"]) == "known: alpha, beta."
    assert nearest("Alpa", ["alpha", "beta"]) == "did you mean 'alpha'? Known: alpha, beta."
    assert nearest("x", []) == "none are installed."


@pytest.mark.parametrize("text", ["", "[1, 2]", "{", "\xff", "[" * 100_000])
def test_damaged_json_is_an_error(tmp_path: Path, text: str):
    path = tmp_path / "config.json"
    path.write_bytes(text.encode("latin1"))
    with pytest.raises(UserError, match="JSON"):
        read_json(path)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(UserError, match="config.json is missing"):
        read_json(tmp_path / "config.json")


@dataclass(frozen=True)
class Round:
    radius: float
    color: str = "red"


@dataclass(frozen=True)
class Square:
    side: float
    color: str = "red"


@dataclass(frozen=True)
class Drawing:
    shape: Round | Square


def test_of_several_configurations_the_one_with_these_keys_is_built():
    for shape in (Round(1.0), Square(2.0, "blue")):
        assert dataclass_from_dict(Drawing, {"shape": asdict(shape)}, "x") == Drawing(shape)
    with pytest.raises(UserError, match=r"unknown key 'shape.sied': did you mean 'side'"):
        dataclass_from_dict(Drawing, {"shape": {"side": 1.0, "sied": 2.0}}, "x")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_json_of_every_editor_is_read(tmp_path, encoding):
    (tmp_path / "a.json").write_bytes('{"größe": "红"}'.encode(encoding))
    assert read_json(tmp_path / "a.json") == {"größe": "红"}


def test_json_in_another_encoding_is_refused_by_name(tmp_path):
    (tmp_path / "a.json").write_bytes('{"größe": 1}'.encode("latin-1"))
    with pytest.raises(UserError, match=r"a\.json is not readable JSON"):
        read_json(tmp_path / "a.json")
