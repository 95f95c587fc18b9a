"""A sample of the points at which `kill_points.py` ends processes; the whole of them is one command there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kill_points import Event, Point, differences, points_of

TESTS = Path(__file__).parent
SAMPLE = ("train features", "tokenize", "convert", "generate png")


@pytest.mark.slow
def test_a_killed_verb_that_is_run_again_leaves_the_same_files(tmp_path):
    pytest.importorskip("gymnasium")
    pytest.importorskip("pyarrow")
    arguments = [argument for name in SAMPLE for argument in ("--case", name)]
    command = [sys.executable, str(TESTS / "kill_points.py"), "--per-case", "2", "--out", str(tmp_path / "x.json")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "x.json").read_text())
    assert figures["points"] == figures["identical"] >= 2 * len(SAMPLE) and figures["leftovers"] == 0


def test_what_is_missing_left_over_or_different_is_found():
    expected = {"a.txt": b"1", "b.json": [{"x": 1}], "c.bin": b"1"}
    found = {"a.txt": b"2", "b.json": [{"x": 1}], ".c.tmp": b""}
    assert differences(found, expected) == [".c.tmp is left over", "c.bin is missing", "a.txt differs"]
    assert differences(expected, expected) == []


def test_a_process_dies_before_every_event_and_after_every_opening():
    events = [Event("os.mkdir", "/x", is_open=False), Event("open", "/x/y", is_open=True)]
    assert points_of(events) == [Point(0, after=False), Point(1, after=False), Point(1, after=True)]
