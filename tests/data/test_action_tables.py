"""Files of actions: with and without names, and what is said of cells that are no numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mutoscope.data.action_tables import read_action_table
from mutoscope.errors import UserError

NUMBERS = st.floats(-1e6, 1e6, width=32)


@pytest.mark.parametrize("suffix", ["csv", "json", "npy"])
@given(rows=st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=6))
def test_numbers_come_back_as_written(tmp_path_factory: pytest.TempPathFactory, suffix: str, rows: list) -> None:
    file = tmp_path_factory.mktemp("rows") / f"x.{suffix}"
    if suffix == "npy":
        np.save(file, np.array(rows))
    else:
        file.write_text(json.dumps(rows) if suffix == "json" else "\n".join(f"{a}, {b}" for a, b in rows))
    table = read_action_table(file)
    np.testing.assert_array_equal(table.rows, np.array(rows, np.float32))
    assert table.names is None


@pytest.mark.parametrize(
    ("name", "text", "names", "rows"),
    [
        ("a.csv", "left,dx\n1,0.5\n\n0,-2\n", ("left", "dx"), [[1, 0.5], [0, -2]]),
        ("bom.csv", "\ufeffleft,dx\r\n1,0.5\r\n", ("left", "dx"), [[1, 0.5]]),
        ("semicolons.csv", '"turn, left";dx\n1;0.5\n', ("turn, left", "dx"), [[1, 0.5]]),
        ("tabs.tsv", "left\tdx\n1\t0.5\n", ("left", "dx"), [[1, 0.5]]),
        ("numpy.csv", "# left,dx\n1,0.5\n# a comment\n0,1\n", ("left", "dx"), [[1, 0.5], [0, 1]]),
        ("one.csv", "1\n0\n", None, [[1], [0]]),
        ("unknown.csv", "left,dx\n?,?\n0,1\n", ("left", "dx"), [[np.nan, np.nan], [0, 1]]),
        ("b.json", '[{"dx": 2}, {"left": true}, null]', ("dx", "left"), [[2, 0], [0, 1], [np.nan, np.nan]]),
        ("c.json", "[[1, 2], null]", None, [[1, 2], [np.nan, np.nan]]),
        ("d.json", '{"names": ["dx", "dy"], "actions": [[1, 2]]}', ("dx", "dy"), [[1, 2]]),
        ("e.json", "[1, true, null]", None, [[1], [1], [np.nan]]),
        ("empty-cells.csv", "left,dx\n1,\n,nan\n0,?\n", ("left", "dx"), [[1, np.nan], [np.nan, np.nan], [0, np.nan]]),
        ("recorder.csv", "frame,left\n0,1\n1,0\n", ("left",), [[1], [0]]),
    ],
)
def test_files_with_and_without_names(tmp_path: Path, name: str, text: str, names: tuple, rows: list) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    table = read_action_table(tmp_path / name)
    assert table.names == names
    np.testing.assert_array_equal(table.rows, np.array(rows, np.float32))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "1,0\n0,inf\n", "row 2 of 2, column 2 is inf"),
        ("a.csv", "1,0\n1\n", "row 2 of 2 has 1 numbers, expected 2"),
        ("a.csv", "1,0\n1e300,1\n", "row 2 of 2, column 1 is inf"),
        ("a.csv", "", "no rows"),
        ("a.csv", "left,dx\n", "no rows"),
        ("a.json", '{"left": 1}', "holds no actions"),
        ("a.json", '["up", 1]', "row 1 of 2, column 1 is 'up', which is no number"),
        ("a.csv", "a,a\n1,2\n", "name its columns differently"),
        ("a.json", "[[1, 2]", "holds no actions"),
        ("a.json", "[[1], [2, 3]]", "row 2 of 2 has 2 numbers, expected 1"),
        ("a.json", '[{"left": [1]}]', r"row 1 of 1, column 1 \('left'\) is \[1\], which is no number"),
        ("a.json", '[{"left": 1}, [1]]', "mixes rows"),
        ("a.json", "[]", "no rows"),
        ("a.npy", "1,2", "holds no actions"),
    ],
)
def test_the_cell_at_fault_is_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read_action_table(tmp_path / name)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 2, 1)), "must hold rows of numbers"),
        (np.array([[1.0, np.inf]]), "row 1 of 1, column 2 is inf"),
        (np.array([["left"]]), "must hold rows of numbers"),
        (np.zeros((2, 2), complex), "must hold rows of numbers"),
        (np.zeros((0, 2)), "no rows"),
    ],
)
def test_arrays_that_are_no_rows_of_numbers_are_refused(tmp_path: Path, array: np.ndarray, message: str) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(UserError, match=message):
        read_action_table(tmp_path / "a.npy")


def test_bytes_in_another_encoding_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("höhe\n1\n".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        read_action_table(tmp_path / "a.csv")
