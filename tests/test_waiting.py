"""The command line lets threads sleep while they wait; programs that import the package keep their environment."""

import os
import subprocess
import sys

import pytest

from mutoscope.waiting import ASLEEP, CHOICES, share_processors

NAMES = sorted(CHOICES)
REPORT = f"; import os; print([os.environ.get(n) for n in {NAMES}])"
UNSET = {name: value for name, value in os.environ.items() if name not in CHOICES}


def run(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env=UNSET | variables, capture_output=True, text=True, check=True
    )


def test_the_command_line_sets_the_wait_policy():
    code = "from mutoscope.cli import main; main(['--version'])" + REPORT
    assert run(code).stdout.splitlines()[-1] == str([ASLEEP.get(name) for name in NAMES])


def test_the_package_itself_leaves_the_environment_alone():
    code = "import mutoscope, mutoscope.cli; from mutoscope import VideoPipeline" + REPORT
    assert run(code).stdout.strip() == "[None, None, None]"


@pytest.mark.parametrize("name", NAMES)
def test_a_variable_of_the_user_keeps_all_as_they_are(name: str):
    environment = {name: "active"}
    share_in_fresh_process = "from mutoscope.cli import main; main(['--version'])" + REPORT
    found = run(share_in_fresh_process, **environment).stdout.splitlines()[-1]
    assert found == str([environment.get(each) for each in NAMES])


def test_a_program_that_has_loaded_torch_keeps_its_environment():
    assert "torch" in sys.modules or __import__("torch")
    environment: dict[str, str] = {}
    share_processors(environment)
    assert not environment


@pytest.mark.skipif(sys.platform != "linux", reason="torch's OpenMP runtime is libgomp on Linux")
def test_the_runtime_of_a_verb_follows_the_settings():
    """libgomp prints what it read when it was loaded, which is with torch."""
    code = "from mutoscope.cli import main; main(['models', 'vq-shapes'])"
    shown = run(code, OMP_DISPLAY_ENV="VERBOSE").stderr
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in shown
    assert "GOMP_SPINCOUNT = '0'" in shown


def test_the_launcher_of_several_processes_sets_it_too():
    code = (
        "import sys; from mutoscope.training.launch import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n" + REPORT.removeprefix("; ")
    )
    assert run(code).stdout.splitlines()[-1] == str([ASLEEP.get(name) for name in NAMES])
