"""Every verb that fills a folder refuses one that another process is filling, names it, and leaves it alone."""

import json
from pathlib import Path

import pytest

from mutoscope.data.video.read import write_video
from mutoscope.ownership import lock_path
from tiny_nova import save_tiny_nova

FOREIGN = {"writer": {"host": "elsewhere", "pid": 7, "start": "x"}, "work": "train", "since": "2026-01-01 00:00:00"}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """A model of text, and two clips of one class."""
    import numpy as np

    folder = tmp_path_factory.mktemp("inputs")
    save_tiny_nova(folder / "nova")
    for name in ("a", "b"):
        (folder / "clips").mkdir(exist_ok=True)
        write_video(folder / "clips" / f"{name}.webm", np.full((6, 16, 16, 3), 90, np.uint8), 8)
        (folder / "clips" / f"{name}.txt").write_text("a red circle")
    (folder / "prompts.txt").write_text("a red circle\n")
    return folder


def arguments(verb: str, inputs: Path, tokenizer: Path, out: Path) -> tuple[object, ...]:
    clips, nova = inputs / "clips", inputs / "nova"
    return {
        "train": ("train", "vae-shapes", "--out", out, "--loop.num-steps", 1, "--optim.warmup-steps", 0),
        "finetune": ("finetune", nova, clips, out, "--loop.num-steps", 1, "--optim.warmup-steps", 0),
        "tokenize": ("tokenize", tokenizer, "shapes", out, "--num-clips", 1),
        "evaluate": ("evaluate", clips, "--reference", clips, "--state", out),
        "export": ("export", nova, "vbench", inputs / "prompts.txt", out),
    }[verb]


@pytest.mark.parametrize("verb", ["train", "finetune", "tokenize", "evaluate", "export"])
def test_the_second_one_is_refused(run, inputs, tokenizer, out, verb):
    lock_path(out / "x").write_text(json.dumps(FOREIGN))
    done = run(*arguments(verb, inputs, tokenizer, out / "x"))
    assert done.status == 2
    assert "is being written by `mutoscope train` (process 7 on elsewhere, since 2026" in done.err.splitlines()[-1]
    assert [path.name for path in out.iterdir()] == [".x.lock"]


def test_a_recording_too(run, out):
    pytest.importorskip("gymnasium")
    pytest.importorskip("pyarrow")
    from worlds.toy import register

    register()
    lock_path(out / "x").write_text(json.dumps(FOREIGN))
    done = run("record", "mutoscope-test/Dot-v0", out / "x", "--episodes", 1, "--max-frames", 4, "--keys", "dx", "dy")
    assert done.status == 2 and "being written by" in done.err
