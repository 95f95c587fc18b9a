"""The README is run: every command and every Python block, in a folder of its own, with inputs written for the test.

Commands that install, or train for an hour, are listed in RULES with the check that replaces them.
"""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from markdown_commands import README, ROOT, code_blocks, commands

FLAGS_WITH_INPUT = {"--context", "--video", "--data.path", "--data", "--reference"}
READING_CALLS = {"read_video", "iter_frames", "probe", "ClipDataset"}


# ------------------------------------------------------------------------- checks that replace running a command


def check_make_target(words: list[str]) -> None:
    """The target exists and make can plan it."""
    done = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def check_extras(words: list[str]) -> None:
    """Extras named in `pip install -e '.[a,b]'` exist."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in words:
        named = re.search(r"\[(.+)\]$", word)
        assert not named or set(named[1].split(",")) <= set(extras), word


def check_verb(words: list[str]) -> None:
    """The verb exists; it would serve until Ctrl-C."""
    done = subprocess.run(
        [sys.executable, "-m", *words[:2], "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def check_nothing(words: list[str]) -> None:
    """Needs a network or files that are not available, or only changes the shell."""


# Beginning of a command -> the check that replaces it. Everything else is run.
RULES: dict[str, Callable[[list[str]], None]] = {
    "make ": check_make_target,
    "pip install": check_extras,
    "python -m pip install": check_extras,
    "git clone": check_nothing,
    "cd ": check_nothing,
    "source ": check_nothing,
    ". ": check_nothing,
    "export ": check_nothing,
    "mutoscope play": check_verb,
    "mutoscope convert": check_nothing,  # needs weights of the official code; tests/cli/test_convert.py writes some
}

# Beginning of a command -> options with which it plans its work, or does little of it.
SHORTENED: dict[str, dict[str, str | None]] = {
    "mutoscope train": {"--dry-run": None},
    "mutoscope finetune": {"--dry-run": None},
    "torchrun": {"--dry-run": None},
    "mutoscope evaluate": {"--num-clips": "16"},
    "mutoscope bench claims": {"--dry-run": None},
    "mutoscope bench entropy": {"--num-clips": "4096"},  # the fewest that the tokens of vq-shapes allow
    "mutoscope bench": {"--repeats": "1"},
    "mutoscope tokenize": {"--num-clips": "4"},
    "mutoscope record": {"--episodes": "1"},
}


def rule_for(words: list[str]) -> Callable[[list[str]], None] | None:
    line = " ".join(words) + " "
    return next((check for beginning, check in RULES.items() if line.startswith(beginning)), None)


def shortened(words: list[str]) -> list[str]:
    """The command with its SHORTENED options, which replace values in the README."""
    line = " ".join(words) + " "
    options = next((options for beginning, options in SHORTENED.items() if line.startswith(f"{beginning} ")), {})
    for option, value in options.items():
        if value is not None and option in words:
            at = words.index(option) + 1
            words = [*words[:at], value, *words[at + 1 :]]
        elif option not in words:
            words = [*words, option] if value is None else [*words, option, value]
    return words


# ----------------------------------------------------------------------------------- inputs written for the test


def inputs_of(words: list[str]) -> list[str]:
    """The reader's own files and folders that a `mutoscope` command reads."""
    inputs = [value for flag, value in pairwise(words) if flag in FLAGS_WITH_INPUT]
    if words[:1] == ["mutoscope"]:
        positional = words[2:]
        where = {"inspect": 0, "reconstruct": 1, "tokenize": 1, "finetune": 1}.get(words[1])
        if where is not None and len(positional) > where:
            inputs.append(positional[where])
        if words[1] == "evaluate" and ("/" in positional[0] or "--reference" in words):
            inputs.append(positional[0])
    return inputs


def make_input(path: Path, seed: int = 0) -> None:
    """Write a short video, an image, or a folder with two classes of videos, unless the path exists."""
    from mutoscope import ShapesConfig, ShapesWorld, write_video

    if path.exists():
        return
    if path.suffix:
        path.parent.mkdir(parents=True, exist_ok=True)
        frames = ShapesWorld(ShapesConfig(height=48, width=64, num_frames=18), seed=seed).clip(0).frames
        write_video(path, frames, fps=8)
        return
    for index, name in enumerate(("left/a", "left/b", "right/a", "right/b")):
        make_input(path / f"{name}.mp4", seed=index)


def models_of(words: list[str]) -> list[str]:
    """The reader's own model folders that a `mutoscope` command reads: those trained by earlier commands."""
    named = [value for flag, value in pairwise(words) if flag == "--tokenizer"]
    named += words[2:3] if words[1:2] == ["tokenize"] else []
    return [name for name in named if "/" in name]


def make_model(path: Path) -> None:
    """A copy of a bundled tokenizer, which stands for one that the reader trained."""
    from mutoscope import hub

    if not path.exists():
        shutil.copytree(hub.bundled()["vq-shapes"], path)


def inputs_of_python(source: str) -> list[str]:
    """Literal paths that a Python block reads."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in READING_CALLS and isinstance(node.args[0].value, str):
                found.append(node.args[0].value)
    return found


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"}


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Without a time limit: on a machine with other work a command may take ten times its usual time."""
    return subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)


# ------------------------------------------------------------------------------------------------------- tests


def test_commands_are_found_in_markdown():
    shell = "```bash\n$ make venv && make demo  # once\nmutoscope generate m \\\n    --out a.mp4\n```\n"
    text = f"x\n{shell}```python\nprint(1)\n```\n"
    assert list(commands(text)) == [
        (3, ["make", "venv"]),
        (3, ["make", "demo"]),
        (3, ["mutoscope", "generate", "m", "--out", "a.mp4"]),
    ]
    assert rule_for(["make", "venv"]) is check_make_target
    assert rule_for(["mutoscope", "generate", "m"]) is None
    assert shortened(["mutoscope", "train", "vq-shapes"]) == ["mutoscope", "train", "vq-shapes", "--dry-run"]
    assert shortened(["mutoscope", "evaluate", "m", "--num-clips", "256"])[-2:] == ["--num-clips", "16"]
    assert inputs_of(["mutoscope", "reconstruct", "m", "in.mp4", "out.mp4"]) == ["in.mp4"]
    assert models_of(["mutoscope", "tokenize", "runs/mine", "videos", "tokens"]) == ["runs/mine"]
    assert models_of(["mutoscope", "train", "m", "--tokenizer", "vq-shapes"]) == []
    assert inputs_of_python('clip = read_video("a.mp4")') == ["a.mp4"]


def test_readme_shows_how_to_install_generate_and_test():
    lines = [" ".join(words) for _, words in commands(README.read_text())]
    for beginning in ("make venv", "mutoscope generate", "make test"):
        assert any(line.startswith(beginning) for line in lines), f"the README has no `{beginning}`"
    assert any(block.language == "python" for block in code_blocks(README.read_text()))


def test_files_the_readme_links_to_exist():
    for target in re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", README.read_text()):
        assert (ROOT / target).exists(), target


@pytest.mark.slow
def test_every_shell_command_of_the_readme_works(tmp_path: Path):
    for line, words in commands(README.read_text()):
        check = rule_for(words)
        if check is not None:
            check(words)
            continue
        for name in inputs_of(words):
            make_input(tmp_path / name)
        for name in models_of(words):
            make_model(tmp_path / name)
        done = run(shortened(words), tmp_path)
        assert done.returncode == 0, f"README.md:{line}: {shlex.join(words)}\n{done.stdout}{done.stderr}"
        if "--out" in words and words[1] == "generate":
            out = tmp_path / words[words.index("--out") + 1]
            assert list(out.parent.glob(f"{out.stem}*{out.suffix}")), f"README.md:{line}: wrote no {out.name}"


@pytest.mark.slow
def test_every_python_block_of_the_readme_works(tmp_path: Path):
    """In order and in one program, as a reader who types them one after the other."""
    blocks = [block for block in code_blocks(README.read_text()) if block.language in ("python", "py")]
    program = ""
    for block in blocks:
        for name in inputs_of_python(block.text):
            make_input(tmp_path / name)
        program += f"\n# README.md:{block.line}\n{block.text}"
    (tmp_path / "readme.py").write_text(program)
    done = run([sys.executable, "readme.py"], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
