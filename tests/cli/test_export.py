"""mutoscope export: what it reports, and what it refuses."""

from pathlib import Path

import pytest

from tiny_nova import save_tiny_nova


@pytest.fixture(scope="module")
def nova(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_nova(tmp_path_factory.mktemp("models") / "nova")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    (tmp_path / "prompts.txt").write_text("a red circle\na blue square\n")
    return tmp_path / "prompts.txt"


def test_samples_lie_where_the_tool_looks(run, nova, prompts, out):
    options = ("--num-prompts", 1, "--num-samples", 2, "--num-diffusion-steps", 2, "--json")
    report = run("export", nova, "vbench", prompts, out, *options).report
    assert (report["prompts"], report["written"], report["seed"]) == (1, 2, 1337)
    assert sorted(path.name for path in (out / "vbench").iterdir()) == ["a red circle-0.mp4", "a red circle-1.mp4"]
    done = run("export", nova, "vbench", prompts, out, *options[:-1])
    assert done.status == 0 and "0 files written" in done.out and "scores: vbench evaluate" in done.out


def test_what_cannot_be_exported_is_explained_and_leaves_nothing(run, nova, model, prompts, out):
    assert "did you mean 'vbench'" in run("export", nova, "vbenhc", prompts, out).error
    assert "cannot be read" in run("export", nova, "vbench", out / "none.txt", out).error
    assert "prompt" in run("export", model, "vbench", prompts, out).error  # a model of classes
    assert "--num-samples" in run("export", nova, "vbench", prompts, out, "--num-samples", 0).error
    assert "16 tokens" in run("export", nova, "vbench", prompts, out, "--num-decoding-steps", 40).error
    assert not list(out.iterdir())
