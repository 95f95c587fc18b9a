"""A server with two tiny models, shared by the tests that talk to one."""

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the server needs the extra [playground]")
pytest.importorskip("uvicorn", reason="the server needs the extra [playground]")
pytest.importorskip("websockets", reason="the server needs the extra [playground]")

from playground_server import Running, running
from tiny_magi import save_steered_magi
from tiny_models import save_tiny_model


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Model folders by name: a world of two actions, and a MAGVIT."""
    top = tmp_path_factory.mktemp("served")
    return {"world": save_steered_magi(top / "world"), "clips": save_tiny_model(top / "clips")}


@pytest.fixture(scope="module")
def served(folders: dict[str, Path]) -> Iterator[Running]:
    with running(folders) as server:
        yield server
