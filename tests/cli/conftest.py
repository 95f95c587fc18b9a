"""What the tests of the verbs share: tiny models, small videos, and a way to run a command line in this process."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mutoscope.cli import main
from mutoscope.data.video.read import write_video
from tiny_models import save_tiny_model, save_tiny_tokenizer


@dataclass(frozen=True)
class Done:
    """A finished command line."""

    status: int
    out: str
    err: str

    @property
    def report(self) -> dict[str, Any]:
        """Standard output as the one JSON object it must be."""
        assert self.status == 0, self.err
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The one line that tells what was wrong with the input."""
        assert self.status == 2, self.err
        assert self.err.count("\n") == 1 and self.err.startswith("mutoscope: ") and self.out == "", self.err
        return self.err


Run = Callable[..., Done]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def command(*arguments: object) -> Done:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Done(status, captured.out, captured.err)

    return command


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_tiny_model(folder / "model")
    save_tiny_tokenizer(folder / "tokenizer")
    return folder


@pytest.fixture(scope="session")
def model(models: Path) -> Path:
    return models / "model"


@pytest.fixture(scope="session")
def tokenizer(models: Path) -> Path:
    return models / "tokenizer"


@pytest.fixture(scope="session")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine frames of 13×11 pixels at 7.5 frames per second."""
    path = tmp_path_factory.mktemp("videos") / "nine.webm"
    frames = np.random.default_rng(0).integers(0, 256, (9, 13, 11, 3), dtype=np.uint8)
    write_video(path, frames, 7.5)
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder for outputs that holds nothing else."""
    folder = tmp_path / "out"
    folder.mkdir()
    return folder
