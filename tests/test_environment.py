"""The environment that `make venv` builds: torch as pinned, in the build first installed, and no torchvision."""

import importlib.util
import json
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
IN_PROJECT_VENV = Path(sys.prefix).resolve() == (ROOT / ".venv").resolve()

only_in_project_venv = pytest.mark.skipif(not IN_PROJECT_VENV, reason="runs outside the environment of `make venv`")


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def extras() -> dict[str, list[str]]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def requirement_names(requirements: list[str]) -> set[str]:
    return {requirement.split(">")[0].split("[")[0].split(";")[0].strip() for requirement in requirements}


@only_in_project_venv
def test_torch_is_the_pinned_version():
    assert torch.__version__.split("+")[0] == pins()["torch"]


@only_in_project_venv
def test_torch_is_still_the_build_first_installed():
    record = ROOT / ".venv" / "torch-build"
    assert record.exists(), "run `make venv`: it records the build of torch that it installed"
    assert version("torch") == record.read_text().strip()
    if "+cpu" in version("torch"):
        assert torch.version.cuda is None


@only_in_project_venv
def test_torchvision_is_absent():
    assert importlib.util.find_spec("torchvision") is None


def test_constraints_pin_every_requirement_without_local_versions():
    pinned = {name.lower().replace("_", "-") for name in pins()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = requirement_names(project["dependencies"]).union(*map(requirement_names, extras().values()))
    assert {name.lower().replace("_", "-") for name in wanted} <= pinned
    assert not [name for name, pin in pins().items() if "+" in pin]
    assert "torchvision" not in pinned


def test_the_makefile_installs_extras_that_exist():
    [line] = [row for row in (ROOT / "Makefile").read_text().splitlines() if row.startswith("EXTRAS :=")]
    assert set(line.removeprefix("EXTRAS :=").strip().split(",")) <= set(extras())


def test_the_citation_has_the_version_and_licence_of_the_package():
    import yaml

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["version"] == project["version"] and citation["license"] == project["license"]


def resolve(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--no-build-isolation", "--report", "-"]
    return subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
@only_in_project_venv
@pytest.mark.parametrize("constraints", [["-c", "constraints.txt"], []], ids=["pinned", "newest"])
def test_installing_every_extra_keeps_torch_and_adds_no_torchvision(constraints: list[str]):
    if resolve("--no-deps", "--ignore-installed", "tqdm").returncode != 0:
        pytest.skip("no package index can be reached")
    done = resolve(*constraints, "-e", f".[{','.join(extras())}]")
    assert done.returncode == 0, done.stderr
    would_install = {item["metadata"]["name"].lower() for item in json.loads(done.stdout)["install"]}
    assert not would_install & {"torch", "torchvision"}
    assert not [name for name in would_install if name.startswith("nvidia-")]


@pytest.mark.slow
def test_wheel_contains_the_whole_package(tmp_path: Path):
    """Modules, bundled models, the command and the long description, for an installation without a checkout."""
    source = tmp_path / "source"
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*command, str(tmp_path), str(source)], check=True, capture_output=True)
    [wheel] = tmp_path.glob("mutoscope-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        contained = set(archive.namelist())
        [entry_points] = (archive.read(name).decode() for name in contained if name.endswith("entry_points.txt"))
        [metadata] = (archive.read(name).decode() for name in contained if name.endswith(".dist-info/METADATA"))
    package = source / "src"
    files = {str(path.relative_to(package)) for path in (package / "mutoscope").rglob("*") if path.is_file()}
    assert files <= contained
    assert "Description-Content-Type: text/markdown" in metadata and "# Mutoscope" in metadata
    assert "mutoscope = mutoscope.cli:main" in entry_points
