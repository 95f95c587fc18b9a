"""The words of the code and the documents are the field's: retired words do not come back.

Read are docstrings and comments of the package, benchmarks, scripts and examples, and the prose of the documents and
model cards. Code in backticks and fenced blocks is not read: names of options and JSON keys stay as they are.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from markdown_commands import DOCUMENTS, ROOT

PACKAGE = ROOT / "src" / "mutoscope"
SOURCES = sorted(
    path for folder in ("src/mutoscope", "benchmarks", "scripts", "examples") for path in (ROOT / folder).rglob("*.py")
)

# Pattern -> what to write instead. Patterns are searched without regard to case, in text without code.
RETIRED: dict[str, str] = {
    r"\btold\b": "condition, conditioned on",
    r"\basked for\b|\bas asked\b|\basks for\b": "requested, target",
    r"\bnumber formats?\b": "dtype",
    r"\b(in|at) one go\b": "in a single pass",
    r"\b(slow|slower|slowest) hours?\b|\bsix other runs\b": "under load; training-log.md",
    r"\bjudges?\b|\bjudged\b": "feature network, classifier; measured",
    r"\bflawed\b|\bflaws?\b": "corrupted context",
    r"\b(lies|lie|lay|stands|stand|stood) (in|on|at|beside|below|there|behind|within|apart)\b": "is in, is stored in",
    r"\bthe game\b|\bplayers?\b": "adversarial training; generator and discriminator",
    r"\bbuilt-in world\b|\b(this|the) world's\b|\bof (this|the) world\b": 'synthetic dataset ("shapes"), environment',
    r"\bgiven (frames?|parts?|pixels?|tokens?)\b|\bwhat is given\b": "context frames, conditioning region",
    r"\bleav(e|es|ing) (\w+ )?out\b|\bleft out\b": "omit, omitted",
    r"\bwhat it makes of\b|\bmakes of it\b|\bmade of it\b": "the clip generated from it",
    r"\bkept its shapes\b|\bkeep their shapes\b": "object count and colours correct",
    r"\bwho sees whom\b": "attention mask",
    r"\bsample sheets?\b": "contact sheet",
    r"\bspread (of|evenly|over)\b": "standard deviation, interval; evenly spaced, distributed",
    r"\bround of (longer|outpainting|prediction)\b|\bround by round\b": "segment",
    r"\bbehind (the|a|an|its|their) (\w+ )?(prefix|encoder|sub-layer|warm-up|end|frames?|positions?)\b": "after",
    r"\bto go by\b": "condition",
    r"\bdata sets?\b": "dataset",
}

# (a pattern of the list above, file) -> why the word is right there.
ALLOWED: dict[tuple[str, str], str] = {}

# Folders not rewritten yet: empty at the end of the rebuild. Whoever cleans one removes it here.
NOT_YET_REWRITTEN: tuple[str, ...] = ()


@dataclass(frozen=True)
class Passage:
    """A docstring, a comment, or the prose of a document, and the line where it begins."""

    line: int
    text: str


def without_code(text: str) -> str:
    """The same text with code in backticks and quoted option names replaced by a word."""
    text = re.sub(r"``.*?``|`[^`]*`", "CODE", text, flags=re.DOTALL)
    return re.sub(r"--[a-z][\w.-]*", "CODE", text)


def passages_of_code(source: str) -> Iterator[Passage]:
    """Docstrings and comments of a Python file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield Passage(node.lineno, without_code(node.value.value))
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield Passage(token.start[0], without_code(token.string))


def passages_of_markdown(text: str) -> Iterator[Passage]:
    """Paragraphs of a document, without fenced blocks, link targets and code."""
    text = re.sub(r"^```.*?^```", lambda m: "\n" * m[0].count("\n"), text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    line = 1
    for paragraph in re.split(r"(\n\s*\n)", text):
        if paragraph.strip():
            yield Passage(line, without_code(paragraph))
        line += paragraph.count("\n")


def passages(path: Path) -> Iterator[Passage]:
    """All passages of a file that a reader reads."""
    text = path.read_text(encoding="utf-8")
    yield from passages_of_code(text) if path.suffix == ".py" else passages_of_markdown(text)


def retired_words(passage: Passage, file: str = "") -> Iterator[str]:
    """A sentence for every retired word of a passage."""
    text = " ".join(passage.text.split())
    for pattern, instead in RETIRED.items():
        if (pattern, file) in ALLOWED:
            continue
        for found in re.finditer(pattern, text, re.IGNORECASE):
            context = text[max(0, found.start() - 40) : found.end() + 40]
            yield f"{found[0]!r} in “…{context}…”: write {instead}"


def is_rewritten(path: Path) -> bool:
    relative = path.relative_to(ROOT).as_posix()
    return not any(relative == name or relative.startswith(f"{name}/") for name in NOT_YET_REWRITTEN)


READ = [path for path in (*SOURCES, *DOCUMENTS) if is_rewritten(path)]


@pytest.mark.parametrize("path", READ, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_retired_word_is_used(path: Path):
    name = path.relative_to(ROOT).as_posix()
    found = [f"{name}:{passage.line}: {words}" for passage in passages(path) for words in retired_words(passage, name)]
    assert not found, "\n".join(found)


def test_retired_words_are_found_in_docstrings_comments_and_prose():
    code = '"""What frames are told."""\nx = 1  # in one go\n'
    assert [passage.line for passage in passages_of_code(code) if list(retired_words(passage))] == [1, 2]
    prose = "# A\n\nA model is `told` nothing.\n\n```bash\ntold\n```\n\nIt was a slow hour.\n"
    assert [passage.line for passage in passages_of_markdown(prose) if list(retired_words(passage))] == [9]


def test_exceptions_are_still_needed():
    for name in NOT_YET_REWRITTEN:
        assert (ROOT / name).exists(), f"{name} is gone: remove it from NOT_YET_REWRITTEN"
    for pattern, name in ALLOWED:
        texts = [passage.text for passage in passages(ROOT / name)]
        assert any(re.search(pattern, " ".join(text.split()), re.IGNORECASE) for text in texts), (pattern, name)
