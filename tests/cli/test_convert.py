"""mutoscope convert: official parameters become folders that the other verbs take, and what is refused."""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from interop.test_llamagen_par import official as official_names
from mutoscope.interop import llamagen_par, magvit_flax
from mutoscope.pipeline import VideoPipeline
from mutoscope.tokenizers.vq3d import VQ3D
from tiny_models import MODEL, TOKENIZER, tiny_image_tokenizer, tiny_model, tiny_par
from tiny_text_encoder import save_tiny_t5

CLIP = ("--num-frames", 8, "--height", 8, "--width", 8)
OFFICIAL = replace(TOKENIZER, filters=32, num_groups=32, padding="zero")  # the official code has 32 groups throughout


def flat(path: Path, flax: dict[str, torch.Tensor]) -> Path:
    flax = {f"params/{name}": value.contiguous() for name, value in flax.items()}
    if path.suffix == ".npz":
        arrays: dict[str, Any] = {name: value.numpy() for name, value in flax.items()}
        np.savez(path, **arrays)
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
        "did you mean 'magvit-flax'": ("magvit", vq),
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
    (out / "vq/notes.txt").touch()
    assert "exists already" in run("convert", "magvit-flax", official[0], out / "vq", *CLIP).error


@pytest.fixture
def published(tmp_path: Path) -> tuple[Path, Path]:
    """Files as LlamaGen's and PAR's scripts write them: a tokenizer and a transformer."""
    tokenizer = tiny_image_tokenizer()
    names = llamagen_par.tokenizer_names(tokenizer)
    torch.save({"model": {names[n]: v for n, v in tokenizer.state_dict().items()}}, tmp_path / "vq.pt")
    arguments = argparse.Namespace(image_size=8, downsample_size=2)
    weights = official_names(tiny_par(latent_shape=(1, 4, 4)))
    torch.save({"model": weights, "args": arguments}, tmp_path / "par.pt")
    return tmp_path / "vq.pt", tmp_path / "par.pt"


def test_a_published_pair_becomes_a_model_that_generates(run, published, out):
    vq, par = published
    run("convert", "vq16", vq, out / "vq", "--json")
    report = run("convert", "par", par, out / "par", "--tokenizer", out / "vq", "--num-heads", 2, "--json").report
    assert report["family"] == "par"
    pipeline = VideoPipeline.from_pretrained(out / "par")
    for name, value in tiny_par(latent_shape=(1, 4, 4)).state_dict().items():
        assert torch.equal(pipeline.model.state_dict()[name], value), name  # not rounded
    clip = run("generate", out / "par", "--class-label", 1, "--out", out / "x.png", "--json").report
    assert clip["num_decoding_steps"] == 4 + 12 // 4 and clip["mode"] == "class-conditional"


@pytest.fixture
def captioned(tmp_path: Path, published) -> tuple[Path, Path]:
    """The same for captions: the tokenizer, and a transformer that reads five rows of six channels."""
    model = tiny_par(latent_shape=(1, 4, 4), num_classes=None, caption_size=6, caption_length=5)
    arguments = argparse.Namespace(image_size=8, downsample_size=2)
    torch.save({"model": official_names(model), "args": arguments}, tmp_path / "t2i.pt")
    return published[0], tmp_path / "t2i.pt"


def test_a_text_model_with_its_encoder_generates_from_a_prompt(run, captioned, out, tmp_path):
    pytest.importorskip("transformers")
    vq, t2i = captioned
    encoder = save_tiny_t5(tmp_path / "t5")
    run("convert", "vq16", vq, out / "vq")
    run("convert", "par", t2i, out / "t2i", "--tokenizer", out / "vq", "--num-heads", 2, "--text-encoder", encoder)
    assert VideoPipeline.from_pretrained(out / "t2i").index.text_encoder == str(encoder)
    clip = run("generate", out / "t2i", "--prompt", "a red circle", "--out", out / "x.png", "--json").report
    assert clip["mode"] == "text-conditional" and (out / "x.png").stat().st_size > 0


def test_a_text_encoder_that_does_not_fit_is_explained(run, captioned, published, out, tmp_path):
    vq, t2i = captioned
    run("convert", "vq16", vq, out / "vq")
    encoder = tmp_path / "t5"
    encoder.mkdir()
    cases = [
        ({"model_type": "t5", "d_model": 8}, t2i, "gives 8 channels, this model reads 6"),
        ({"model_type": "clip"}, t2i, "known: phi, t5"),
        ({"model_type": "t5", "d_model": 6}, published[1], "reads class labels"),
    ]
    for config, source, message in cases:
        (encoder / "config.json").write_text(json.dumps(config))
        options = ("--tokenizer", out / "vq", "--num-heads", 2, "--text-encoder", encoder)
        assert message in run("convert", "par", source, out / "new", *options).error
    options = ("--tokenizer", out / "vq", "--num-heads", 2, "--text-encoder", tmp_path / "nowhere")
    assert "nowhere" in run("convert", "par", t2i, out / "new", *options).error
    assert "belongs to llamagen and par" in run("convert", "vq16", vq, out / "new", "--text-encoder", encoder).error
    assert not (out / "new").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("llamagen", "par.pt", "--tokenizer", "vq"), "convert it as par"),
        (("par", "par.pt", "--tokenizer", "vq", "--grid", 3, 3), "2x2 equal regions"),
        (("par", "par.pt"), "--tokenizer"),
        (("par", "vq.pt", "--tokenizer", "vq"), "not part of LlamaGen or PAR"),
        (("vq16", "par.pt"), "no LlamaGen tokenizer"),
        (("par", "broken.pt", "--tokenizer", "vq"), "damaged"),
    ],
)
def test_published_files_that_do_not_fit_are_explained_and_leave_nothing(run, published, out, arguments, message):
    vq, par = published
    run("convert", "vq16", vq, out / "vq", "--json")
    (par.parent / "broken.pt").write_bytes(par.read_bytes()[:1000])
    kind, source, *options = arguments
    options = [out / "vq" if option == "vq" else option for option in options]
    heads = ("--num-heads", 2) if kind != "vq16" else ()
    result = run("convert", kind, par.parent / source, out / "new", *heads, *options)
    assert result.status == 2 and message in result.err
    assert not (out / "new").exists()
