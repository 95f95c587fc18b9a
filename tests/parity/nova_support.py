"""Shared by the NOVA parity tests: the folder's index, its tensors and its published-layout folders.

One `index.json` describes all files of the folder, so this family is not walked by file names as the others are.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from parity.cases import FOLDER, widen

NOVA = FOLDER / "nova"


@cache
def index() -> dict[str, Any]:
    path = NOVA / "index.json"
    return json.loads(path.read_text()) if path.is_file() else {"files": {}}


@cache
def tensors(name: str) -> dict[str, Tensor]:
    """Tensors of a file of the index: half precision as float32, the rest as stored."""
    return {key: widen(value) for key, value in load_file(NOVA / name).items()}


def files(prefix: str) -> list[str]:
    """Files of the index whose name begins like this and that are there."""
    return [name for name in sorted(index()["files"]) if name.startswith(prefix) and (NOVA / name).is_file()]


def weights_folder(file: str, part: str | None = None) -> Path:
    """The folder in published layout that the index names for a file, or for one part of it."""
    named = index()["files"][file]["weights"]
    return (NOVA / (named[part] if part else named)).parent
