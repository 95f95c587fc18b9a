"""The command itself: help, statuses, one line for an error, one object for a report."""

import json
import os
import subprocess
import sys

import pytest

from mutoscope import __version__, cli
from mutoscope.cli import VERBS, main
from mutoscope.errors import UserError


@pytest.fixture
def verb(monkeypatch):
    """Make `models` do something else."""

    def replace(function):
        monkeypatch.setattr("mutoscope.commands.models.models", function)

    return replace


def test_help_names_every_verb(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {verb} " in out for verb in VERBS)


def test_no_arguments_is_a_usage_error(capsys):
    assert main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "usage" in captured.err


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"mutoscope {__version__}\n"


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_explains_itself_and_takes_json(capsys, name):
    assert main([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"mutoscope {name}" in out and "--json" in out


@pytest.mark.parametrize("name", VERBS)
def test_help_of_a_verb_does_not_import_torch(name):
    code = f"import sys; from mutoscope.cli import main; main([{name!r}, '--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False).returncode == 0


@pytest.mark.parametrize(("given", "message"), [("generat", "'generate'"), ("xyzzy", "known: bench")])
def test_an_unknown_verb_is_a_usage_error(capsys, given, message):
    assert main([given]) == 2
    assert message in capsys.readouterr().err


def test_json_is_the_only_thing_on_standard_output(capsys, verb):
    verb(lambda: {"a": 1, "warnings": ["careful"]})
    assert main(["models", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"a": 1, "warnings": ["careful"]} and captured.out.count("\n") == 1
    assert captured.err == "mutoscope: warning: careful\n"


def fail(error):
    def verb():
        raise error

    return verb


def test_a_user_error_is_one_line_and_status_2(capsys, verb):
    verb(fail(UserError("The thing\nis wrong.")))
    assert main(["models"]) == 2
    captured = capsys.readouterr()
    assert captured.err == "mutoscope: The thing is wrong.\n" and captured.out == ""


def test_any_other_error_is_one_line_and_status_1(capsys, verb):
    verb(fail(RuntimeError("boom")))
    assert main(["models"]) == 1
    line = capsys.readouterr().err
    assert line.startswith("mutoscope: RuntimeError: boom. ") and "--debug" in line and line.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(13, "Permission denied", "/x/y"), "Permission denied: '/x/y'."),
        (OSError(28, "No space left on device"), "Cannot write a file: No space left on the disk"),
        (MemoryError(), "Not enough memory: no more can be allocated."),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "Not enough memory:"),
        (json.JSONDecodeError("Expecting value", "x", 0), "cannot be read: JSONDecodeError"),
        (EOFError("Ran out of input"), "cannot be read: EOFError"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "cannot be read: UnicodeDecodeError"),
        (ModuleNotFoundError("No module named 'pyarrow'"), "A library is missing or broken: No module named 'pyarrow'"),
    ],
)
def test_whatever_input_causes_is_status_2_whichever_library_raised_it(capsys, verb, error, message):
    verb(fail(error))
    assert main(["models"]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1 and captured.out == ""


def test_names_that_a_terminal_cannot_show_are_escaped():
    code = "import sys; from mutoscope.cli import main; sys.exit(main(['inspect', 'клип.mp4']))"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 2 and "\\u043a" in done.stderr and "Traceback" not in done.stderr


def test_debug_shows_the_traceback(verb):
    verb(fail(RuntimeError("boom")))
    with pytest.raises(RuntimeError):
        main(["models", "--debug"])


def test_an_interruption_is_status_130(capsys, verb):
    verb(fail(KeyboardInterrupt()))
    assert main(["models"]) == 130
    assert capsys.readouterr().err.startswith("mutoscope: interrupted")


def test_only_the_first_process_of_several_speaks(capsys, verb, monkeypatch):
    verb(lambda: {"a": 1})
    monkeypatch.setenv("RANK", "1")
    assert main(["models", "--json"]) == 0
    assert capsys.readouterr().out == ""


def test_python_m_is_the_same_command():
    done = subprocess.run([sys.executable, "-m", "mutoscope", "nonsense"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1


def test_a_reader_that_goes_away_is_no_traceback():
    code = f"{sys.executable} -m mutoscope --help | true"
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr


def test_every_verb_is_an_ordinary_documented_function():
    for name in VERBS:
        module = cli.import_module(f"mutoscope.commands.{name}")
        assert getattr(module, name).__doc__ and callable(module.summary)
