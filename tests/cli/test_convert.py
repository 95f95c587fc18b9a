"""mutoscope convert: official parameters become folders that the other verbs take, and what is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mutoscope.interop import magvit_flax
from mutoscope.pipeline import VideoPipeline
from mutoscope.tokenizers.vq3d import VQ3D
from tiny_models import MODEL, TOKENIZER, tiny_model

CLIP = ("--num-frames", 8, "--height", 8, "--width", 8)
OFFICIAL = replace(TOKENIZER, filters=32, num_groups=32, padding="zero")  # the official code has 32 groups throughout


def flat(path: Path, flax: dict[str, torch.Tensor]) -> Path:
    flax = {f"params/{name}": value.contiguous() for name, value in flax.items()}
    if path.suffix == ".npz":
        np.savez(path, **{name: value.numpy() for name, value in flax.items()})
    else:
        save_file(flax, path)
    return path


@pytest.fixture
def official(tmp_path: Path) -> tuple[Path, Path]:
    """Files in the official naming: a tokenizer and a transformer."""
    torch.manual_seed(0)
    tokenizer = magvit_flax.to_flax(VQ3D(OFFICIAL).state_dict(), magvit_flax.tokenizer_layout(OFFICIAL))
    model = tiny_model()
    transformer = magvit_flax.to_flax(model.state_dict(), magvit_flax.transformer_layout(MODEL), MODEL.num_heads)
    return flat(tmp_path / "vq.safetensors", tokenizer), flat(tmp_path / "bert.npz", transformer)


def test_a_converted_pair_generates_what_the_originals_do(run, official, out):
    vq, bert = official
    report = run("convert", "magvit-flax", vq, out / "vq", *CLIP, "--json").report
    assert report["family"] == "tokenizer" and report["parameters"] > 100_000
    options = ("--tokenizer", out / "vq", "--num-classes", 3, "--tasks", "class-conditional", "frame-prediction")
    run("convert", "magvit-flax", bert, out / "model", *CLIP, *options, "--json")
    pipeline = VideoPipeline.from_pretrained(out / "model")
    assert pipeline.tokenizer.config == OFFICIAL and pipeline.model.config == MODEL
    for name, value in tiny_model().state_dict().items():
        assert torch.allclose(pipeline.model.state_dict()[name], value, atol=1e-3), name
    clip = run("generate", out / "model", "--class-label", 1, "--out", out / "x.gif", "--json").report
    assert clip["frames"] == 8


def test_without_tasks_a_transformer_with_a_task_token_can_do_all_ten(run, official, out):
    vq, bert = official
    run("convert", "magvit-flax", vq, out / "vq", *CLIP)
    run("convert", "magvit-flax", bert, out / "model", *CLIP, "--tokenizer", out / "vq", "--num-classes", 3)
    assert len(VideoPipeline.from_pretrained(out / "model").index.tasks) == 10


def test_what_cannot_be_converted_is_explained_and_leaves_nothing(run, official, out, tokenizer):
    vq, bert = official
    cases = {
        "kinds: magvit-flax": ("magvit", vq),
        "no checkpoint": ("magvit-flax", out / "missing.npz"),
        "--tokenizer FOLDER": ("magvit-flax", bert),
        "check these numbers": ("magvit-flax", bert, "--tokenizer", tokenizer, *CLIP, "--num-classes", 99),
        "multiples of 2": ("magvit-flax", vq, "--num-frames", 7, "--height", 8, "--width", 8),
    }
    for message, (kind, source, *options) in cases.items():
        assert message in run("convert", kind, source, out / "model", *options).error
    assert not list(out.iterdir())


def test_an_existing_folder_is_never_overwritten(run, official, out):
    (out / "vq").mkdir()
    assert "exists already" in run("convert", "magvit-flax", official[0], out / "vq", *CLIP).error
