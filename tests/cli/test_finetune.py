"""mutoscope finetune: what is printed first, what the report holds, and what is refused before any work."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cli.conftest import Run
from interop.test_llamagen_par import official as official_names
from mutoscope import hub
from mutoscope.commands.finetune import with_flags
from mutoscope.data.video.read import write_video
from mutoscope.interop import llamagen_par
from mutoscope.layers.lora import LoRAConfig
from tiny_magi import save_tiny_magi
from tiny_models import tiny_image_tokenizer, tiny_par
from tiny_nova import save_tiny_nova

SHORT = ("--loop.num-steps", 1, "--loop.batch-size", 1, "--optim.warmup-steps", 0, "--loop.num-workers", 0)


@pytest.fixture(scope="module")
def magi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_magi(tmp_path_factory.mktemp("finetune") / "magi")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of one short video each."""
    folder = tmp_path_factory.mktemp("clips")
    for i, name in enumerate(("circle", "dog")):
        (folder / name).mkdir()
        frames = np.full((6, 8, 12, 3), 80 + 100 * i, dtype=np.uint8)
        write_video(folder / name / "a.webm", frames, 8)
    return folder


def test_a_model_is_continued_and_generates_the_new_class(run: Run, magi: Path, clips: Path, out: Path):
    done = run("finetune", magi, clips, out / "run", *SHORT, "--json")
    report = done.report
    assert report["steps_done"] == 1 and report["adapted"]["model.num_classes"] == 2
    assert report["tensors"]["adapted"] == ["interval_embedding.weight", "class_embedding.weight"]
    assert report["parameters"] == report["trained_parameters"]
    assert "classes: 3 become 2, 1 kept by name, new: dog" in done.err and "Weights: " in done.err
    options = ("--class-label", "dog", "--num-frames", 3, "--out", out / "dog.gif")
    assert run("generate", out / "run", *options, "--json").report["frames"] == 3
    kept = json.loads((out / "run" / "recipe.json").read_text())
    assert kept["start_from"] == str(magi) and kept["lora"] is None


def test_lora_and_frozen_parts_are_in_the_recipe(run: Run, magi: Path, clips: Path, out: Path):
    flags = ("--lora.r", 2, "--lora.alpha", 4, "--lora.target-modules", "mlp_in", "time.qkv")
    report = run("finetune", magi, clips, out / "run", "--freeze", "class", *flags, *SHORT, "--json").report
    assert report["trained_parameters"] < report["parameters"] / 4
    saved = json.loads((out / "run" / "recipe.json").read_text())
    assert saved["lora"] == {"r": 2, "alpha": 4.0, "target_modules": ["mlp_in", "time.qkv"]}
    assert saved["frozen"] == ["class"]
    old, new = hub.load_model(magi).state_dict(), hub.load_model(out / "run").state_dict()
    assert set(new) <= set(old)


def test_a_dry_run_shows_everything_and_writes_nothing(run: Run, magi: Path, clips: Path, out: Path):
    done = run("finetune", magi, clips, out / "run", "--dry-run", "--data.height", 16, "--data.width", 16)
    assert done.status == 0 and "16×" not in done.out
    assert "latent frames, rows and columns: 5×4×6 become 5×8×8" in done.err
    assert '"start_from"' in done.out and not (out / "run").exists()


def test_a_finished_run_is_resumed_with_the_same_command(run: Run, magi: Path, clips: Path, out: Path):
    command = ("finetune", magi, clips, out / "run", *SHORT)
    assert run(*command).status == 0
    assert "already holds checkpoints" in run(*command).err
    assert run(*command, "--resume").status == 0
    assert (
        "other settings: optim.peak_learning_rate" in run(*command, "--resume", "--optim.peak-learning-rate", 0.5).err
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("no-such-model", "{clips}"), "Unknown model"),
        (("{magi}", "{clips}/nowhere"), "There is no"),
        (("{tokenizer}", "{clips}"), "tokenizer only"),
        (("{magi}", "{clips}", "--freeze", "blocksx"), "no parameter of the model begins so"),
        (("{magi}", "{clips}", "--lora.r", "0"), "lora.r must be at least 1"),
        (("{magi}", "{clips}", "--lora.target-modules", "qkw"), "did you mean 'qkv'"),
        (("{magi}", "{clips}", "--model.num-layers", "3"), "is missing there"),
        (("{magi}", "{clips}", "--data.height", "10"), "multiples of 4 pixels, found 10x12"),
        (("{magi}", "{clips}", "--nonsense", "3"), "--nonsense"),
        (("{magi}", "{clips}", "--start-from", "None"), "omit --start-from"),
        (("{magi}", "{clips}", "--optim.peak-learning-rate", "nan"), "--optim.peak-learning-rate must be"),
        (("{magi}", "{clips}", "--device", "nowhere"), "--device"),
    ],
)
def test_misfits_are_refused_in_one_line_before_any_work(
    run: Run, magi: Path, clips: Path, tokenizer: Path, out: Path, arguments: tuple[str, ...], message: str
):
    model, data, *flags = (text.format(magi=magi, clips=clips, tokenizer=tokenizer) for text in arguments)
    assert message in run("finetune", model, data, out / "run", *flags).error
    assert not list(out.iterdir())


def test_help_lists_the_flags_of_the_models_recipe(run: Run, magi: Path):
    done = run("finetune", magi, "--help")
    assert done.status == 0
    for flag in ("--freeze", "--lora.r", "--loop.num-steps", "--model.num-classes", "--optim.peak-learning-rate"):
        assert flag in done.out


def test_flags_of_lora_switch_it_on(tmp_path: Path, clips: Path):
    nova = save_tiny_nova(tmp_path / "nova")
    assert with_flags(str(nova), str(clips), []).lora is None
    assert with_flags(str(nova), str(clips), ["--lora.alpha", "8"]).lora == LoRAConfig(alpha=8.0)


def test_converted_weights_learn_frames_of_other_classes(run: Run, clips: Path, out: Path, tmp_path: Path):
    """A published pair of VQ-16 and a transformer of images: the classes of its file have no names to keep."""
    tokenizer = tiny_image_tokenizer()
    names = llamagen_par.tokenizer_names(tokenizer)
    torch.save({"model": {names[n]: v for n, v in tokenizer.state_dict().items()}}, tmp_path / "vq.pt")
    weights = official_names(tiny_par(latent_shape=(1, 4, 4)))
    scripts = argparse.Namespace(image_size=8, downsample_size=2)
    torch.save({"model": weights, "args": scripts}, tmp_path / "par.pt")
    run("convert", "vq16", tmp_path / "vq.pt", out / "vq")
    run("convert", "par", tmp_path / "par.pt", out / "par", "--tokenizer", out / "vq", "--num-heads", 2)
    done = run("finetune", out / "par", clips, out / "run", "--lora.r", 2, *SHORT, "--json")
    assert done.report["adapted"]["model.num_classes"] == 2
    assert "classes: 3 become 2, 0 kept by name, new: circle, dog" in done.err
    assert hub.load_index(out / "run").class_names == ("circle", "dog")
    assert run("generate", out / "run", "--class-label", "dog", "--out", out / "x.png", "--json").report["frames"] == 1
