"""Commands in Markdown: fenced blocks, inline code, and the flags that `mutoscope VERB --help` lists."""

import contextlib
import inspect
import io
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
CARDS = sorted((ROOT / "src" / "mutoscope" / "zoo").glob("*/MODEL_CARD.md"))
DOCUMENTS = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md")), *CARDS]
SHELLS = ("bash", "sh", "shell", "console")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the line of its first row, and its text."""

    language: str
    line: int
    text: str


def code_blocks(markdown: str) -> list[Block]:
    """Fenced blocks with a language, in order."""
    pattern = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return [Block(m[1], markdown[: m.start()].count("\n") + 2, m[2]) for m in pattern.finditer(markdown)]


def inline_code(markdown: str) -> Iterator[tuple[int, str]]:
    """(line, code) of everything between single backticks, which may continue on the next line."""
    fenced = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
    prose = fenced.sub(lambda m: "\n" * m[0].count("\n"), markdown)
    for m in re.finditer(r"(?<!`)`([^`]+)`(?!`)", prose):
        yield prose[: m.start()].count("\n") + 1, " ".join(m[1].split())


def commands(markdown: str) -> Iterator[tuple[int, list[str]]]:
    """(line, words) of every shell command; continuation lines joined, `a && b` split, comments dropped."""
    for block in code_blocks(markdown):
        if block.language in SHELLS or (block.language == "text" and block.text.startswith("mutoscope ")):
            for line in re.sub(r"\\\n", " ", block.text).splitlines():
                words = shlex.split(line.removeprefix("$ "), comments=True)
                for is_separator, command in groupby(words, key=lambda word: word in ("&&", ";")):
                    if not is_separator:
                        yield block.line, list(command)


def mutoscope_commands(markdown: str) -> Iterator[tuple[int, list[str]]]:
    """(line, words) of every command of ours, in a block or in inline code."""
    for line, words in commands(markdown):
        if words[:1] == ["mutoscope"]:
            yield line, words
    for line, code in inline_code(markdown):
        if code.startswith("mutoscope "):
            yield line, shlex.split(code)


def flags_in(words: list[str]) -> set[str]:
    """The flags of a command, without their values."""
    return {word.split("=")[0] for word in words if re.match(r"--\w", word)}


@cache
def help_flags(*words: str) -> frozenset[str]:
    """Flags that `mutoscope WORDS --help` lists, from the command's own parser in this process."""
    from mutoscope import cli

    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        status = cli.main([*words, "--help"])
    assert status == 0, f"mutoscope {' '.join(words)} --help: {text.getvalue()}"
    return frozenset(re.findall(r"--[a-z][\w.-]*", text.getvalue())) | {"--json", "--debug", "--help"}


def takes_overrides(verb: str) -> bool:
    """Whether a verb passes flags that it does not know on to the model that it names."""
    function = getattr(import_module(f"mutoscope.commands.{verb}"), verb)
    return "overrides" in inspect.signature(function).parameters


@cache
def recipe_flags(name: str, kind: str | None = None) -> frozenset[str]:
    """Flags of the fields of a recipe, with data of its own or of another kind."""
    from mutoscope.commands.train import resolve_recipe

    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        resolve_recipe(name, [*(() if kind is None else ("--data.kind", kind)), "--help"])
    return frozenset(re.findall(r"--[a-z][\w.-]*", text.getvalue()))


def known_flags(words: list[str]) -> frozenset[str]:
    """Flags of the verb of a command; with a model or a recipe, those of the one it names, or of any."""
    from mutoscope.recipes.catalog import RECIPES

    verb, names = words[1], [word for word in words[2:3] if not word.startswith("-")]
    if verb != "train":
        chosen = [name for name in names if name in generating_models()] or generating_models()
        of_model = frozenset().union(*(help_flags("generate", name) for name in chosen))
        return of_model if verb == "generate" else help_flags(verb) | (of_model if takes_overrides(verb) else set())
    kinds = [words[words.index("--data.kind") + 1]] if "--data.kind" in words else []
    chosen = [name for name in names if name in RECIPES] or list(ANY_RECIPE)
    kinds += list(ANY_KIND) if "--data" in words or not set(names) & set(RECIPES) else []
    found = [recipe_flags(name) for name in chosen]
    found += [recipe_flags(name, kind) for name in chosen[:1] for kind in kinds]
    return frozenset().union(help_flags(verb), *found)


# One recipe of each kind of configuration: flags of a recipe that is only named by a placeholder are those of any.
ANY_RECIPE = (
    "vq-shapes",
    "vae-shapes",
    "vq16-imagenet",
    "magvit-shapes",
    "par-shapes-4x",
    "nova-shapes",
    "magi-shapes",
)

ANY_KIND = ("shapes", "folder", "images", "lerobot", "ucf101")  # kinds of data with settings of their own


@cache
def generating_models() -> list[str]:
    """Bundled models, without the tokenizers."""
    from mutoscope import hub

    return [name for name in hub.bundled() if hub.load_index(name).model is not None]


# Words that stand for something of the reader's: NAME, FILE, DIR.
PLACEHOLDER = re.compile(r"[A-Z][A-Z0-9_]*$|…")
# Position after the verb of what must be a recipe, a bundled model, or a folder.
MODEL_VERBS = {"generate": 0, "evaluate": 0, "reconstruct": 0, "tokenize": 0, "export": 0}


def named_model(words: list[str]) -> str | None:
    """The model that a command names; None if it names none, or a placeholder, a path or a name on a hub."""
    verb, positional = words[1], [word for word in words[2:] if not word.startswith("-")]
    if verb == "bench" and words[2:3] in (["speed"], ["entropy"]):
        positional, place = words[3:], 0
    elif verb in MODEL_VERBS and words[2:] and not words[2].startswith("-"):
        place = MODEL_VERBS[verb]
    else:
        return None
    name = positional[place] if len(positional) > place else ""
    return None if not name or PLACEHOLDER.match(name) or "/" in name else name


def written_folders(found: list[list[str]]) -> set[str]:
    """Folders that the commands of a document write, which later ones may name as models."""
    written = {words[4] for words in found if words[1] == "convert" and len(words) > 4}
    return written | {words[words.index("--out") + 1] for words in found if words[1] == "train" and "--out" in words}
