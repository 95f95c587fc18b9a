"""What every test shares: one thread, checked shapes, and the folders that hold larger material."""

import os
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


@pytest.fixture(scope="session")
def clips_dir() -> Path:
    """The folder of small real videos that MUTOSCOPE_CLIPS names."""
    return _folder_from_environment("MUTOSCOPE_CLIPS")


@pytest.fixture(scope="session")
def parity_dir() -> Path:
    """The folder of numeric vectors that MUTOSCOPE_PARITY names, or else the compact copy in this repository."""
    if "MUTOSCOPE_PARITY" not in os.environ:
        return Path(__file__).parent / "parity" / "vectors"
    return _folder_from_environment("MUTOSCOPE_PARITY")


def _folder_from_environment(variable: str) -> Path:
    name = os.environ.get(variable)
    if not name:
        pytest.skip(f"{variable} is not set")
    folder = Path(name)
    if not folder.is_dir():
        pytest.fail(f"{variable} names {name}, which is not a folder")
    return folder
