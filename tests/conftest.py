"""What every test shares: one thread, checked shapes, and the folder of real videos."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook

# Before the first import of the package: from here on a tensor of the wrong shape or dtype is an error in tests.
install_import_hook("mutoscope", "shape_checks.beartype_arrays")

# One thread makes sums come out in the same order on every machine.
torch.set_num_threads(1)

settings.register_profile("default", deadline=None, max_examples=25)
settings.register_profile("ci", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_configure() -> None:
    """Signals mean the same however the tests were started: nohup ignores SIGHUP, a shell's & ignores SIGINT."""
    for name, handler in (("SIGHUP", signal.SIG_DFL), ("SIGINT", signal.default_int_handler)):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Longest tests first: otherwise one worker ends alone with the README's commands, minutes after the others."""
    items.sort(key=lambda item: (item.path.name != "test_readme.py", item.get_closest_marker("slow") is None))


@pytest.fixture(scope="session")
def clips_dir() -> Path:
    """The folder of small real videos that MUTOSCOPE_CLIPS names; without it the test is skipped."""
    name = os.environ.get("MUTOSCOPE_CLIPS")
    if not name:
        pytest.skip("MUTOSCOPE_CLIPS is not set: no real videos to read")
    if not Path(name).is_dir():
        pytest.fail(f"MUTOSCOPE_CLIPS names {name}, which is not a folder")
    return Path(name)


@pytest.fixture(scope="session")
def recordings_dir() -> Path:
    """The folder of small LeRobot datasets that MUTOSCOPE_RECORDINGS names; without it the test is skipped."""
    name = os.environ.get("MUTOSCOPE_RECORDINGS")
    if not name:
        pytest.skip("MUTOSCOPE_RECORDINGS is not set: no recordings to read")
    if not Path(name).is_dir():
        pytest.fail(f"MUTOSCOPE_RECORDINGS names {name}, which is not a folder")
    return Path(name)


@pytest.fixture(scope="session")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a miniature dataset by its kind; each is made once."""
    pytest.importorskip("av", reason="PyAV is needed to make videos")
    from miniatures import Miniatures

    return Miniatures(tmp_path_factory.mktemp("datasets"))
