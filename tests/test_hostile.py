"""A sample of the hostile files: nothing is executed, and each is refused in one sentence.

`python -m hostile` in this folder opens all of them with every verb, and measures memory and time.
"""

from pathlib import Path

import pytest

from hostile.case import MARKER
from hostile.cases import all_cases
from hostile.harness import ADVICE, command, prepared

FEWEST = 150
SAMPLE = 23  # one file of so many


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    prepared(folder)
    return folder


CASES = list(all_cases())


def test_there_are_many_files_of_many_kinds():
    assert len({case.name for case in CASES}) == len(CASES) >= FEWEST
    assert len({case.kind for case in CASES}) >= 10
    verbs = {line.split()[0] for case in CASES for line in case.lines}
    assert verbs >= set("generate reconstruct train finetune tokenize evaluate inspect convert record upload".split())


@pytest.mark.parametrize("case", CASES[::SAMPLE], ids=lambda case: case.name[:60])
def test_hostile_files_are_refused_in_one_sentence(case, models: Path, tmp_path: Path, monkeypatch, capfd):
    for model in models.iterdir():
        (tmp_path / model.name).symlink_to(model)
    case.write(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mutoscope.data.loader.DataLoader", None)  # which the harness replaces
    status = command(case.lines[0])
    message = capfd.readouterr().err
    assert status == 2, message
    assert message.splitlines()[-1].startswith("mutoscope: ") and "Traceback" not in message
    assert all(character.isprintable() or character == "\n" for character in message)
    assert not ADVICE.search(message) and "Not enough memory" not in message and len(message) < 10_000
    assert not (tmp_path / MARKER).exists()
