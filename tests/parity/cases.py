"""Numeric vectors from official implementations: one .safetensors and one .json of the same name per case file.

The folder, the names, the sizes and the constants may all be others than those of the copy in this repository, so a
test asks for files by a pattern and reads everything else from the JSON.
"""

import fnmatch
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

FOLDER = Path(os.environ.get("MUTOSCOPE_PARITY") or Path(__file__).parent / "vectors")


@dataclass(frozen=True)
class Case:
    """One file of vectors."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.stem

    @cached_property
    def info(self) -> dict[str, Any]:
        return json.loads(self.path.read_text())

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Integers as int64, half precision as float32, the rest as stored."""
        stored = load_file(self.path.with_suffix(".safetensors"))
        return {name: widen(tensor) for name, tensor in stored.items()}

    def under(self, prefix: str) -> dict[str, Tensor]:
        """Tensors below a prefix such as "params/", without it."""
        return {n.removeprefix(prefix): t for n, t in self.tensors.items() if n.startswith(prefix)}

    def subcases(self, marker: str) -> list[str]:
        """Prefixes before "/marker" in names, such as the cases of a decoding file."""
        return sorted({n[: n.index(f"/{marker}")] for n in self.tensors if f"/{marker}" in n})

    def sibling(self, name: str) -> "Case":
        return Case(self.path.with_name(f"{name}.json"))


def widen(tensor: Tensor) -> Tensor:
    if tensor.dtype == torch.int32:
        return tensor.long()
    return tensor.float() if tensor.dtype == torch.float16 else tensor


def family(name: str) -> list[Case]:
    """All case files of one family of models."""
    return [Case(path) for path in sorted((FOLDER / name).glob("*.json")) if path.with_suffix(".safetensors").exists()]


def matching(cases: Iterable[Case], *patterns: str) -> list[Case]:
    return [case for case in cases if any(fnmatch.fnmatch(case.name, pattern) for pattern in patterns)]


def holding(cases: Iterable[Case], tensor: str) -> list[Case]:
    """Files that hold this tensor: compact copies leave some out."""
    return [case for case in cases if tensor in case.tensors]


def for_each(cases: Iterable[Case], *patterns: str) -> pytest.MarkDecorator:
    """Run a test once for every file that matches a pattern, or for every file."""
    found = matching(cases, *(patterns or ("*",)))
    return pytest.mark.parametrize("case", found, ids=[case.name for case in found])


def renamed(config: dict[str, Any], names: Mapping[str, str | None]) -> dict[str, Any]:
    """Translate configuration keys; None marks a key that is documentation or used elsewhere; unknown keys fail."""
    unknown = set(config) - set(names)
    assert not unknown, f"configuration keys {sorted(unknown)} are not understood by this test"
    return {ours: config[theirs] for theirs, ours in names.items() if ours and theirs in config}


class Tolerance(TypedDict):
    """Bounds of `assert_close`."""

    atol: float
    rtol: float


def assert_close(actual: Tensor, expected: Tensor, *, atol: float = 0.0, rtol: float = 0.0, what: str = "") -> None:
    torch.testing.assert_close(
        actual.detach(), expected.to(actual.dtype), atol=atol, rtol=rtol, msg=lambda message: f"{what}: {message}"
    )


def assert_equal(actual: Tensor, expected: Tensor, what: str = "") -> None:
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)} is not {tuple(expected.shape)}"
    wrong = int((actual != expected).sum())
    assert wrong == 0, f"{what}: {wrong} of {actual.numel()} entries differ"
