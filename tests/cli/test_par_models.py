"""The verbs on a PAR model: what works with MAGVIT's works here, and what cannot is explained in one line."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from small_shapes_model import save_small_par
from tiny_models import save_tiny_par


@pytest.fixture(scope="module")
def par(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_par(tmp_path_factory.mktemp("models") / "par")


def test_clips_are_made_and_written(run, par, out):
    report = run("generate", par, "--class-label", "square-spin", "--out", out / "x.mp4", "--json").report
    assert report["mode"] == "class-conditional" and report["frames"] == 4
    assert report["num_decoding_steps"] == 19 and report["guidance_scale"] == 1.0
    assert (out / "x.mp4").stat().st_size > 0


@pytest.mark.parametrize(
    "options, message",
    [
        (("--context", "IMAGE"), "takes no --context"),
        (("--task", "inpaint-central"), "does class-conditional alone"),
        (("--num-decoding-steps", 12), "19 steps"),
        (("--num-frames", 40), "use 4"),
        (("--panorama", 1), "takes no --panorama"),
        (("--prompt", "a cat"), "no prompt"),
    ],
)
def test_what_the_model_cannot_do_is_explained(run, par, out, tmp_path, options, message):
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "x.png")
    given = [tmp_path / "x.png" if option == "IMAGE" else option for option in options]
    assert message in run("generate", par, *given, "--out", out / "x.mp4").error
    assert not (out / "x.mp4").exists()


def test_8_bit_weights_are_an_option_for_par_models_alone(run, par, models, out):
    report = run("generate", par, "--class-label", 0, "--weights", "int8", "--out", out / "x.gif", "--json").report
    assert report["weights"] == "int8" and report["frames"] == 4
    assert "no 8-bit weights" in run("generate", models / "model", "--weights", "int8", "--out", out / "y.gif").error


def test_speed_and_sizes_are_told(run, par):
    row = run("bench", "speed", par, "--repeats", 1, "--json").report["rows"][0]
    assert row["num_decoding_steps"] == 19 and row["seconds"] > 0


def test_a_model_of_the_built_in_world_is_evaluated(run, tmp_path):
    folder = save_small_par(tmp_path / "small")
    report = run("evaluate", folder, "--num-clips", 4, "--json").report
    assert report["num_clips"] == 4
    assert any(name.endswith("shapes_fvd") for name in report["metrics"])
