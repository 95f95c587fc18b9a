"""Whatever is wrong with the input of any verb: status 2, one line that names it, and no file is left."""

from pathlib import Path

import pytest

from cli.bad_inputs import BadInput, accepted, bad_inputs, names_culprit, snapshot, write_files
from mutoscope.cli import VERBS, main

ENTRIES = bad_inputs()
FEWEST = 200
SAMPLE = 8  # one entry of so many runs with the fast tests, all of them with the slow ones
PARAMETERS = [
    pytest.param(entry, marks=[] if number % SAMPLE == 0 else [pytest.mark.slow])
    for number, entry in enumerate(ENTRIES)
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    write_files(folder)
    return folder


def test_there_are_bad_inputs_for_every_verb():
    used = {entry.arguments[0] for entry in ENTRIES if entry.arguments}
    assert set(VERBS) <= used and len({entry.line for entry in ENTRIES}) == len(ENTRIES) >= FEWEST


@pytest.mark.parametrize("entry", PARAMETERS, ids=lambda entry: entry.line[:80])
def test_bad_input_is_refused_in_one_line(entry: BadInput, files: Path, monkeypatch, capsys):
    monkeypatch.chdir(files)
    monkeypatch.setattr("mutoscope.data.loader.DataLoader", accepted)
    before = snapshot(files)
    status = main(entry.arguments)
    captured = capsys.readouterr()
    assert status == 2, captured.err
    assert "Traceback" not in captured.err and names_culprit(captured.err, entry.culprit), captured.err
    if entry.arguments:
        lines = captured.err.splitlines()
        assert lines[-1].startswith("mutoscope: ")
        assert all(line.startswith("mutoscope: warning: ") for line in lines[:-1]), captured.err
    assert bool(captured.out) == entry.reports, captured.out
    assert snapshot(files) == before
