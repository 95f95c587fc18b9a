"""The documents point at what they say they point at."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
TO_LINE = re.compile(r"\[`([\w.]+)`\]\(([^)#]+)#L(\d+)\)")
TO_FILE = re.compile(r"\]\((?!https?://|#)([^)#]+)")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_into_the_code_name_what_stands_on_that_line(document: Path):
    for name, target, line in TO_LINE.findall(document.read_text()):
        lines = (document.parent / target).read_text().splitlines()
        definition = re.compile(rf"\s*(def|class) {name.split('.')[-1]}\b")
        right = [i + 1 for i, text in enumerate(lines) if definition.match(text)]
        assert int(line) in right, f"{document.name}: {name} stands in line {right} of {target}, not {line}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_linked_files_exist(document: Path):
    for target in TO_FILE.findall(document.read_text()):
        assert (document.parent / target).exists(), f"{document.name} links to {target}"
