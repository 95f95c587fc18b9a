"""Packages of Node.js for tests that run the page's own JavaScript."""

import shutil
import subprocess
from pathlib import Path

import pytest


def installed(folder: Path, *packages: str) -> Path:
    """`folder` with these packages (`name@version`) in node_modules; the test is skipped where that is impossible."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("Node.js is not installed")
    options = ("--silent", "--no-audit", "--no-fund", "--ignore-scripts")
    command = [npm, "install", *options, *packages]
    if subprocess.run(command, cwd=folder, capture_output=True, timeout=300, check=False).returncode:
        pytest.skip("npm cannot be reached")
    return folder
