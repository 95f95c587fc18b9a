"""One hostile file, and the command lines that open it."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MARKER = "executed"  # a file that malicious content creates in the working folder


@dataclass(frozen=True)
class Case:
    """A hostile file (or folder) and what opens it.

    write: creates it in a folder that holds the models "model" (MAGVIT), "tokenizer", "world" (MAGI), "par" and
    "nova" by links. lines: command lines in that folder.
    """

    name: str
    kind: str
    write: Callable[[Path], object]
    lines: tuple[str, ...]
    reports: bool = False
    """`inspect` may report what is wrong instead of refusing it"""


def own_copy(folder: Path, model: str) -> Path:
    """Replaces the link to a model by a copy whose files may be changed."""
    target = folder / model
    source = Path(os.path.realpath(target))
    target.unlink()
    shutil.copytree(source, target)
    return target


def changed(model: str, file: str, values: Mapping[str, Any]) -> Callable[[Path], None]:
    """Writes a model in which some keys of a JSON file are others; a dotted key is inside another one."""

    def write(folder: Path) -> None:
        path = own_copy(folder, model) / file
        found = json.loads(path.read_text())
        for name, value in values.items():
            inner, *rest = found, *name.split(".")
            for part in rest[:-1]:
                inner = inner[part]
            inner[rest[-1]] = value
        path.write_text(json.dumps(found))

    return write


def replaced(model: str, file: str, content: bytes) -> Callable[[Path], None]:
    """Writes a model in which one file has another content."""

    def write(folder: Path) -> None:
        (own_copy(folder, model) / file).write_bytes(content)

    return write


def alone(name: str, content: bytes) -> Callable[[Path], None]:
    """Writes one file."""

    def write(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    return write
