"""The verbs on a FAR model: conversion, lengths, actions, guidance, and what is said of input that does not fit."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mutoscope.hub import ModelIndex, open_folder, save_pretrained
from mutoscope.tokenizers.causal3d import Causal3D
from parity.far_support import LOCAL, stored_weights
from tiny_far import save_tiny_far
from tiny_magi import tiny_vae

RELEASED = "FAR_B_Long_DMLab_Action64-0.pth"


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_far(tmp_path_factory.mktemp("models") / "far")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with random weights of the layout of a published long file, and an autoencoder that fits."""
    folder = tmp_path_factory.mktemp("published")
    torch.manual_seed(0)
    index = ModelIndex("tokenizer", model=None, num_frames=1, height=16, width=16)
    save_pretrained(folder / "vae", index, Causal3D(replace(tiny_vae().config, latent_channels=4)).eval())
    save_pretrained(folder / "three", index, tiny_vae())
    torch.save(stored_weights("long_action", LOCAL), folder / RELEASED)
    return folder


@pytest.fixture
def image(tmp_path: Path) -> Path:
    Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(tmp_path / "x.png")
    return tmp_path / "x.png"


def test_a_published_file_becomes_a_folder_that_generates(run, published, out):
    options = ("--tokenizer", published / "vae", "--action-names", "a", "b", "c", "d", "--json")
    report = run("convert", "far", published / RELEASED, out / "far", *options).report
    assert report["family"] == "far" and report["parameters"] == 61_380
    index = open_folder(out / "far").index
    assert (index.num_frames, index.height, index.sampling["guidance_scale"]) == (300, 16, 1.5)
    options = ("--actions", "a*2 d", "--num-decoding-steps", 2, "--out", out / "x.png", "--json")
    report = run("generate", out / "far", *options).report
    assert report["mode"] == "action-conditional" and report["frames"] == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--tokenizer", "three"), "no square patches of 3 channels: name the autoencoder"),
        (("--tokenizer", "vae", "--action-names", "left", "right"), "has 4 actions, --action-names gives 2"),
        (("--tokenizer", "vae", "--grid", 6, 8), "multiples of the patch size 4"),
    ],
)
def test_what_does_not_belong_to_a_file_is_refused(run, published, out, options, message):
    named = [published / value if value in ("three", "vae") else value for value in options]
    assert message in run("convert", "far", published / RELEASED, out / "far", *named).error
    assert not list(out.iterdir())


def test_a_frame_goes_on_beyond_the_length_of_training(run, far, image, out):
    report = run("generate", far, "--context", image, "--num-frames", 9, "--out", out / "x.mp4", "--json").report
    assert (report["mode"], report["frames"], report["num_decoding_steps"]) == ("frame-prediction", 9, 8 * 3)


def test_help_lists_the_options_of_the_family(run, far):
    text = " ".join(run("generate", far, "--help").out.split())
    assert "--flow-shift" in text and "Euler steps per frame" in text and "left (0 or 1), right (0 or 1)" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--task", "action-conditional"), "needs actions"),
        (("--num-frames", 5, "--actions", "left*3"), "need 4 actions, found 3"),
        (("--num-decoding-steps", 0), "num-decoding-steps"),
        (("--guidance-scale", -1), "guidance"),
        (("--num-diffusion-steps", 3), "takes no --num-diffusion-steps"),
        (("--prompt", "a"), "takes no --prompt"),
    ],
)
def test_what_does_not_fit_is_explained(run, far, out, options, message):
    assert message in run("generate", far, *options, "--out", out / "x.mp4").error
    assert not list(out.iterdir())


def test_published_sizes_are_listed(run):
    rows = {row["name"]: row for row in run("models", "--json").report["paper"]}
    assert rows["far-M-long"]["parameters"] == 280_544_800
    assert rows["far-L"]["num_decoding_steps"] == 16 * 50
