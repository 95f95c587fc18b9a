"""`mutoscope --help` answers at once: the budget that keeps torch out of the command line's imports."""

import os
import subprocess
import sys
import time

import pytest

BUDGET_SECONDS = 0.5
ATTEMPTS = 20

PROBE = """
import sys
sys.argv = ["mutoscope", "--help"]
from mutoscope.cli import main
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
print("LOADED", "torch" in sys.modules)
"""


def test_help_does_not_import_torch():
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    assert "LOADED False" in done.stdout
    assert "generate" in done.stdout and "reconstruct" in done.stdout


def test_help_answers_in_half_a_second():
    """The best of several runs counts, since the other worker and the machine's neighbours also use the processor."""
    best = float("inf")
    for _ in range(ATTEMPTS):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "mutoscope.cli", "--help"], capture_output=True, check=False)
        best = min(best, time.perf_counter() - start)
        assert done.returncode == 0, done.stderr
        if best < BUDGET_SECONDS:
            return
    pytest.fail(f"mutoscope --help took {best:.2f} s at best, with {os.cpu_count()} processors")
