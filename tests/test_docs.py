"""The documents and model cards are true: links, images, commands, names and flags exist."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from markdown_commands import (
    CARDS,
    DOCUMENTS,
    PLACEHOLDER,
    README,
    ROOT,
    code_blocks,
    commands,
    flags_in,
    help_flags,
    inline_code,
    known_flags,
    mutoscope_commands,
    named_model,
    written_folders,
)

TO_LINE = re.compile(r"\[`([\w.]+)`\]\(([^)#]+)#L(\d+)\)")
TO_FILE = re.compile(r"\]\((?!\w+://|#)([^)#\s]+)")
# Flags of other programs that documents mention alone.
FOREIGN_FLAGS = {"--nproc-per-node"}
# Flags that documents mention before the parser has them. A flag that has arrived fails the test and is removed here.
AWAITED_FLAGS: set[str] = set()

every_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


@every_document
def test_links_into_the_code_name_the_definition_on_that_line(document: Path):
    for name, target, line in TO_LINE.findall(document.read_text()):
        lines = (document.parent / target).read_text().splitlines()
        definition = re.compile(rf"\s*(?:async )?(?:def|class) {name.split('.')[-1]}\b")
        right = [i + 1 for i, text in enumerate(lines) if definition.match(text)]
        assert int(line) in right, (
            f"{document.name}: {name} is defined on line {right} of {target}, not {line}: "
            "run python scripts/refresh_doc_links.py"
        )


@every_document
def test_linked_files_exist(document: Path):
    for target in TO_FILE.findall(document.read_text()):
        assert (document.parent / target).exists(), f"{document.name} links to {target}"


# -------------------------------------------------------------------------------------------------------- commands


def wrong_in(words: list[str]) -> str | None:
    """What is wrong with a `mutoscope` command, if anything: its verb, its recipe or its flags."""
    from mutoscope.cli import VERBS
    from mutoscope.recipes.catalog import RECIPES

    if words[1] not in VERBS and not PLACEHOLDER.match(words[1]):
        return f"no verb {words[1]!r}"
    if words[1] == "train" and len(words) > 2:
        recipe = words[2]
        if recipe not in RECIPES and not PLACEHOLDER.match(recipe) and not recipe.endswith("recipe.json"):
            return f"no recipe {recipe!r}"
    if words[1] in VERBS:
        unknown = flags_in(words) - known_flags(words) - AWAITED_FLAGS
        if unknown:
            return f"no flags {sorted(unknown)}"
    return None


@every_document
def test_every_command_of_ours_has_a_verb_a_recipe_and_flags_that_exist(document: Path):
    for line, words in mutoscope_commands(document.read_text()):
        if len(words) > 1 and not words[1].startswith("-"):
            wrong = wrong_in(words)
            assert wrong is None, f"{document.name}:{line}: {' '.join(words)}: {wrong}"


@every_document
def test_every_model_that_a_command_names_is_bundled_or_written_by_an_earlier_command(document: Path):
    from mutoscope.hub import bundled

    found = list(mutoscope_commands(document.read_text()))
    own = written_folders([words for _, words in found])
    for line, words in found:
        name = named_model(words) if len(words) > 1 else None
        if name is not None and (words[1] != "evaluate" or name.endswith(("-shapes", "x"))):
            reader_s_own = words[1] == "export" or name in own
            assert name in bundled() or reader_s_own, f"{document.name}:{line}: {name} is not a bundled model"


@every_document
def test_every_script_that_a_command_runs_exists(document: Path):
    for line, words in commands(document.read_text()):
        if words[:1] == ["python"] and words[1].endswith(".py"):
            assert (ROOT / words[1]).is_file(), f"{document.name}:{line}: {words[1]}"
    for line, code in inline_code(document.read_text()):
        if re.match(r"(?:python )?(?:scripts|benchmarks|examples)/\S+\.py", code):
            path = code.removeprefix("python ").split()[0]
            assert (ROOT / path).is_file(), f"{document.name}:{line}: {path}"


@every_document
def test_every_flag_mentioned_alone_is_a_flag_of_some_verb(document: Path):
    from mutoscope.cli import VERBS

    known = known_flags(["mutoscope", "generate"]) | known_flags(["mutoscope", "train"]) | FOREIGN_FLAGS
    known |= frozenset().union(*(help_flags(verb) for verb in VERBS if verb not in ("generate", "train")))
    for line, code in inline_code(document.read_text()):
        if code.startswith("--"):
            unknown = flags_in(code.split()) - known - AWAITED_FLAGS
            assert not unknown, f"{document.name}:{line}: {sorted(unknown)}"


def test_awaited_flags_do_not_exist_yet():
    known = known_flags(["mutoscope", "generate"]) | known_flags(["mutoscope", "train"])
    assert not AWAITED_FLAGS & known, "these flags exist now: remove them from AWAITED_FLAGS"


def test_wrong_commands_are_recognised():
    wrong = (
        "mutoscope dance magi-shapes",
        "mutoscope train magvit-shape",
        "mutoscope generate magvit-shapes --num-decodings 3",
        "mutoscope train vq-shapes --data.hight 64",
    )
    for line in wrong:
        assert wrong_in(shlex.split(line)), line
    assert not wrong_in(shlex.split("mutoscope train vq-shapes --data.height 64 --dry-run"))
    assert named_model(shlex.split("mutoscope generate par-shape --out x.mp4")) == "par-shape"
    assert named_model(shlex.split("mutoscope generate MODEL --out x.mp4")) is None


# ----------------------------------------------------------------------------------------------------------- voice


TASK_PAGES = [path for path in DOCUMENTS if "api" not in path.parts and path.name != "CHANGELOG.md"]


@pytest.mark.parametrize("document", TASK_PAGES, ids=lambda path: path.parent.name)
def test_pages_begin_with_a_command_or_a_program(document: Path):
    """The task comes first: a runnable block before the first table and the second heading."""
    text = document.read_text()
    first = min((block.line for block in code_blocks(text)), default=10**9)
    headings = [i + 1 for i, line in enumerate(text.splitlines()) if line.startswith("## ")]
    assert first < min([*headings, 10**6]), f"{document.name} begins with a section, not with a command"


@pytest.mark.parametrize("card", CARDS, ids=lambda path: path.parent.name)
def test_cards_have_a_result_a_limit_and_an_entry_in_the_training_log(card: Path):
    text = card.read_text()
    assert "## Results" in text
    assert re.search(r"^## .*[Ll]imits", text, re.MULTILINE)
    assert f"training-log.md#{card.parent.name}" in text
    log = (ROOT / "docs" / "training-log.md").read_text()
    assert f"\n## {card.parent.name}\n" in log


def test_the_readme_lists_every_part_of_the_package():
    """The tree under "Where things are" names each folder and file directly in the package, and nothing else."""
    [tree] = [block.text for block in code_blocks(README.read_text()) if block.text.startswith("src/mutoscope/")]
    named = set(
        re.findall(r"([\w]+(?:\.py|/))", "\n".join(line for line in tree.splitlines() if line.startswith("  ")))
    )
    package = ROOT / "src" / "mutoscope"
    folders = {f"{path.name}/" for path in package.iterdir() if path.is_dir() and path.name != "__pycache__"}
    leaves = {"__init__.py", "__main__.py", "actions.py", "checks.py", "errors.py", "json_config.py"}
    leaves |= {"meta_device.py", "model_index.py", "state_dicts.py", "declared.py", "pickles.py", "writing.py"}
    files = {path.name for path in package.glob("*.py")} - leaves
    assert folders | files <= named, f"missing in the tree: {sorted((folders | files) - named)}"
    everywhere = {path.name for path in package.rglob("*.py")} | {
        f"{p.name}/" for p in package.rglob("*") if p.is_dir()
    }
    assert named <= everywhere, f"not in the package: {sorted(named - everywhere)}"


def run_script(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_picture_of_the_house_is_drawn_from_the_present_imports():
    done = run_script("draw_house.py", "--check")
    assert done.returncode == 0, done.stderr


def test_refreshing_the_links_changes_nothing():
    done = run_script("refresh_doc_links.py", "--check")
    assert done.returncode == 0, done.stdout + done.stderr
