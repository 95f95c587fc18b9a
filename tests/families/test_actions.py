"""Actions by name: the text, dicts, files, and what is said of names and numbers that do not fit."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mutoscope.actions import ActionSpec
from mutoscope.errors import UserError
from mutoscope.families.actions import (
    action_row,
    find_name,
    format_actions,
    parse_actions,
    read_actions,
    scaled_tensor,
    spec_of,
    unnamed,
)

GAME = ActionSpec(
    ("right", "left", "attack", "dx", "turn left"),
    "continuous",
    (0, 0, 0, 3, 0),
    (1, 1, 1, 2, 1),
    ("max", "max", "max", "sum", "sum"),
)
NAMES = st.lists(st.text(st.characters(codec="utf-8"), max_size=6), min_size=1, max_size=5, unique=True)


def test_the_text_of_the_manual() -> None:
    rows = parse_actions("right*8 attack*2 left+attack*8 dx=-2.5*4", GAME)
    right, attack, both, dx = [1, 0, 0, 0, 0], [0, 0, 1, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, -2.5, 0]
    assert rows.tolist() == [right] * 8 + [attack] * 2 + [both] * 8 + [dx] * 4
    assert rows.dtype == np.float32


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("RIG", [[1, 0, 0, 0, 0]]),  # a part is enough, without regard to case
        ("left", [[0, 1, 0, 0, 0]]),  # the exact name wins over "turn left"
        ('"turn left"=0.5+dx=1e+2', [[0, 0, 0, 100, 0.5]]),
        ("turn=-.5*2", [[0, 0, 0, 0, -0.5]] * 2),
        ("right=0 right=1", [[0, 0, 0, 0, 0], [1, 0, 0, 0, 0]]),
        (".*2 none", [[0, 0, 0, 0, 0]] * 3),
        ("\n right \t left\n", [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0]]),
    ],
)
def test_names_parts_values_and_pauses(text: str, rows: list) -> None:
    assert parse_actions(text, GAME).tolist() == rows


def test_an_unknown_action_is_a_row_of_nan() -> None:
    rows = parse_actions("right ?*2", GAME)
    assert np.isnan(rows).all(axis=1).tolist() == [False, True, True]


def test_a_button_called_none_is_that_button() -> None:
    assert parse_actions("none .", ActionSpec.plain(("NONE", "fire"), "buttons")).tolist() == [[1, 0], [0, 0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rigth", "no action 'rigth'. Did you mean 'right'. Known: right, left, attack, dx, turn left."),
        ("zzz", "no action 'zzz'. Known: right"),
        ("t", "'t' may be one of several actions: right, left, attack, turn left"),
        ("left+LEFT", "name 'left' twice"),
        ("attack=2", "'attack' is a button and must be 0 or 1, found 2"),
        ("dx=1e999", "must be a finite number"),
        ("dx=nan", "Cannot read 'dx=nan'"),
        ("dx=-2,5", "Cannot read 'dx=-2,5'"),
        ("right * 8", r"Cannot read '\*'"),
        ("right+", r"Cannot read 'right\+'"),
        ("right*0", "at least 1"),
        ("right*999999999", "more than 100000 frames"),
        ("right*" + "9" * 5000, "Cannot read"),
        ("  ", "no actions"),
        ("moves.csv", "no file of actions 'moves.csv'"),
    ],
)
def test_what_cannot_be_read_is_named(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_actions(text, GAME)


@given(NAMES, st.data())
def test_what_is_written_is_read_again(names: list[str], data: st.DataObject) -> None:
    if len({name.lower() for name in names}) < len(names):
        return
    spec = ActionSpec.plain(names, data.draw(st.sampled_from(["buttons", "continuous"])))
    values = st.sampled_from([0.0, 1.0]) if spec.kind == "buttons" else st.floats(width=32, allow_nan=False)
    values = values.filter(np.isfinite)
    row = st.one_of(st.just([np.nan] * spec.size), st.lists(values, min_size=spec.size, max_size=spec.size))
    rows = np.array(data.draw(st.lists(row, min_size=1, max_size=4)), np.float32)
    rows = rows.repeat(data.draw(st.integers(1, 3)), axis=0)
    np.testing.assert_array_equal(parse_actions(format_actions(rows, spec), spec), rows)


def test_repeated_rows_are_written_with_a_count() -> None:
    rows = parse_actions("right*3 . . ? dx=0.1", GAME)
    assert format_actions(rows, GAME) == "right*3 .*2 ? dx=0.1"


def test_every_form_of_the_same_actions_gives_the_same_rows(tmp_path: Path) -> None:
    expected = [[1, 0, 0, 0, 0], [0, 0, 1, 2.5, 0]]
    (tmp_path / "a.csv").write_text("DX,attack,right,left,turn left\n0,0,1,0,0\n2.5,1,0,0,0\n")
    forms = (
        "right attack+dx=2.5",
        [{"right": True}, {"att": 1, "dx": 2.5}],
        expected,
        np.array(expected),
        torch.tensor(expected),
        [np.array(row) for row in expected],
        tmp_path / "a.csv",
        str(tmp_path / "a.csv"),
    )
    for form in forms:
        read = read_actions(form, GAME)
        assert not read.is_listed and not read.warnings
        [rows] = read.clips
        assert rows.tolist() == expected


def test_a_file_wins_over_a_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(read_actions("right*3", GAME).clips[0]) == 3
    (tmp_path / "right*3").write_text("1,0,0,0,0\n")
    assert len(read_actions("right*3", GAME).clips[0]) == 1


@pytest.mark.parametrize(
    "listed",
    [
        ["right*2", "left*2"],
        [[{"right": 1}] * 2, [None, {"left": 1}]],
        [[[0] * 5] * 2] * 2,
        np.zeros((2, 2, 5)),
        [np.zeros((2, 5))] * 2,
        torch.zeros(2, 2, 5),
    ],
    ids=["texts", "dicts", "lists", "array", "arrays", "tensor"],
)
def test_rows_of_every_sample_are_told_from_rows_of_one(listed: object) -> None:
    read = read_actions(listed, GAME)  # type: ignore[arg-type]
    assert read.is_listed and [clip.shape for clip in read.clips] == [(2, 5)] * 2


def test_absent_columns_of_a_file_are_zero_and_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("dx,right\n2,1\n?,?\n")
    read = read_actions(tmp_path / "a.csv", GAME)
    assert read.clips[0][0].tolist() == [1, 0, 0, 2, 0] and np.isnan(read.clips[0][1]).all()
    assert "has no left, attack, turn left: 0 in every frame" in read.warnings[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dx,time\n1,2\n", "no action 'time'. Known: right, left, attack, dx, turn left"),
        ("dx,DX\n1,2\n", "names a column twice"),
        ("rig\n1\n", "no action 'rig'"),  # a part of a name is not enough for a column
        ("1,2\n", "rows of 5 numbers are needed"),
        ("right,left,attack,dx,turn left\n0,0,0,0,0\n0,0.5,0,0,0\n", r"row 2 of 2, column 2 \('left'\) is a button"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        read_actions(tmp_path / "a.csv", GAME)


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (5, "rows of 5 numbers"),
        ([], "rows of 5 numbers"),
        ([1, 2, 3], "rows of 5 numbers"),
        ([[1, 2]], "rows of 5 numbers"),
        ([[1, 2], [3]], "all of one length"),
        ([["left", "up"]], "must be rows of numbers"),
        ({"right": 1}, "put the actions of all frames into a list"),
        ([{"rihgt": 1}], "Did you mean 'right'"),
        ([{"right": 1, "RIG": 0}], "name it once"),
        ([{"dx": float("nan")}], "Use None"),
        ([{"dx": 10**400}], "must be rows of numbers"),
        ([[0, 0, 0, 0, 0], [0, 0, 0, np.nan, 0]], r"row 2 of 2, column 4 \('dx'\) must be a finite number"),
        ([[0.5, 0, 0, 0, 0]], "'right' is a button"),
        (["right*2", "left"], "same number of actions, found 1 to 2"),
        (Path("right"), "no file of actions 'right'"),
    ],
)
def test_python_values_that_do_not_fit_are_refused(actions: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_actions(actions, GAME)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("action", "row"),
    [
        ({"right": 1, "dx": -1}, [1, 0, 0, -1, 0]),
        ({}, [0, 0, 0, 0, 0]),
        ((1, 0, 0, -1, 0), [1, 0, 0, -1, 0]),
        (np.array([1, 0, 0, -1, 0]), [1, 0, 0, -1, 0]),
        ("right+dx=-1", [1, 0, 0, -1, 0]),
    ],
)
def test_one_action(action: object, row: list) -> None:
    assert action_row(action, GAME).tolist() == row  # type: ignore[arg-type]


def test_one_action_is_not_several() -> None:
    with pytest.raises(UserError, match="2 actions, one is needed"):
        action_row("right*2", GAME)


@given(st.sampled_from(GAME.names))
def test_every_name_is_found_by_itself(name: str) -> None:
    assert find_name(name, GAME) == find_name(name.upper(), GAME) == GAME.names.index(name)


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=5, max_size=5))
def test_batches_and_rows_are_scaled_to_the_same_numbers(row: list[float]) -> None:
    rows = np.array([row, [np.nan] * 5], np.float32)
    np.testing.assert_array_equal(scaled_tensor(torch.from_numpy(rows), GAME).numpy(), GAME.scaled(rows))


def test_models_without_a_specification_have_numbered_actions() -> None:
    assert spec_of(None, 2) == unnamed(2) and unnamed(2).names == ("action_0", "action_1")
    assert spec_of(None, None) is None
    with pytest.raises(UserError, match="names 5 numbers of action, the network reads 2"):
        spec_of(GAME, 2)
