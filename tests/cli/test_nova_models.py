"""The verbs on a NOVA model: prompts, lengths, first frames, and what is said of input that does not fit."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tiny_nova import save_tiny_nova

PUBLISHED = Path(__file__).parents[1] / "parity" / "vectors" / "nova" / "pipe_t2i"


@pytest.fixture(scope="module")
def nova(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_nova(tmp_path_factory.mktemp("models") / "nova")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(tmp_path / "x.png")
    return tmp_path / "x.png"


def test_prompts_give_clips_of_any_length(run, nova, out):
    report = run(
        "generate", nova, "--prompt", "a red circle", "--num-frames", 6, "--out", out / "x.mp4", "--json"
    ).report
    assert report["mode"] == "text-conditional" and report["frames"] == 6 and report["guidance_scale"] == 3.0
    assert report["num_decoding_steps"] == 6 * 4 and report["temperature"] is None
    assert (out / "x.mp4").stat().st_size > 0


def test_an_image_is_the_first_frame(run, nova, image, out):
    options = ("--prompt", "a red circle", "--negative-prompt", "blue", "--motion", 3, "--num-diffusion-steps", 2,
               "--context-refresh", 2)  # fmt: skip
    report = run("generate", nova, *options, "--context", image, "--out", out / "x.mp4", "--json").report
    assert report["mode"] == "continuation" and report["frames"] == 4


@pytest.mark.parametrize(
    "options, message",
    [
        ((), "needs a prompt"),
        (("--prompt", "a", "--class-label", 0, "--task", "inpaint-central"), "Omit task"),
        (("--prompt", "a", "--num-decoding-steps", 40), "16 tokens"),
        (("--prompt", "a", "--num-diffusion-steps", 5000), "num_diffusion_steps must be at least 1 and at most 1000"),
        (("--prompt", "a", "--context-refresh", 0), "context_refresh"),
        (("--prompt", "a", "--temperature", 0.5), "temperature"),
        (("--prompt", "a", "--panorama", 1), "takes no --panorama"),
        (("--prompt", "a", "--actions", "left"), "takes no --actions"),
        (("--prompt", "a", "--weights", "int8"), "8-bit weights"),
    ],
)
def test_what_does_not_fit_is_explained(run, nova, out, options, message):
    assert message in run("generate", nova, *options, "--out", out / "x.mp4").error
    assert not list(out.iterdir())


def test_words_that_mean_nothing_are_told_in_one_warning(run, nova, out):
    done = run("generate", nova, "--prompt", "a purple circle, purple and huge", "--out", out / "x.gif", "--json")
    assert done.err.count("\n") == 1 and done.err.startswith("mutoscope: warning: ")
    assert "'purple', 'and', 'huge':" in done.err and done.report["warnings"]
    assert run("generate", nova, "--prompt", "a red circle", "--out", out / "x.gif").err == ""


def test_the_text_encoder_may_leave_memory(run, nova, models, out):
    options = ("--text-encoder-offload", "--text-encoder-dtype", "bfloat16", "--out", out / "x.gif")
    assert run("generate", nova, "--prompt", "a red circle", *options, "--json").report["frames"] == 4
    assert "no text encoder" in run("generate", models / "model", *options).error
    half = run("generate", nova, "--prompt", "a", "--text-encoder-dtype", "float16", "--out", out / "x.gif")
    assert "--text-encoder-dtype float16 needs a GPU" in half.error


def test_an_image_that_cannot_be_decoded_is_named(run, nova, tmp_path, out):
    (tmp_path / "bad.png").write_bytes(b"not a picture")
    error = run("generate", nova, "--prompt", "a", "--context", tmp_path / "bad.png", "--out", out / "x.mp4").error
    assert "bad.png" in error


def test_options_of_diffusion_are_refused_by_other_models(run, models, out):
    for option in ("--motion", "--num-diffusion-steps"):
        assert option in run("generate", models / "model", option, 3, "--out", out / "x.mp4").error


def test_a_published_folder_is_converted(run, out, tmp_path):
    pytest.importorskip("transformers")
    (tmp_path / "arch_table.json").write_text((PUBLISHED.parent / "arch_table.json").read_text())
    (tmp_path / "pipe").symlink_to(PUBLISHED)
    report = run("convert", "nova", tmp_path / "pipe", out / "nova", "--half", "--json").report
    assert report["family"] == "nova" and report["parameters"] == 493_360
    steps = ("--prompt", "a", "--num-decoding-steps", 2, "--num-diffusion-steps", 2, "--out", out / "x.png", "--json")
    made = run("generate", out / "nova", *steps).report
    assert made["frames"] == 1 and made["height"] == 64
    picture = np.asarray(Image.open(out / "x.png")).astype(int)
    options = ("--tokenizer-dtype", "bfloat16", "--tokenizer-window", 128)
    assert run("generate", out / "nova", *steps, *options).report["frames"] == 1
    assert 0 < np.abs(np.asarray(Image.open(out / "x.png")) - picture).mean() < 4


def test_only_published_autoencoders_take_less_memory_by_option(run, nova, models, out):
    for option in (("--tokenizer-dtype", "bfloat16"), ("--tokenizer-window", 256)):
        error = run("generate", models / "model", *option, "--out", out / "x.gif").error
        assert "published autoencoders only" in error
    assert "at least 128" in run("generate", nova, "--tokenizer-window", 64, "--out", out / "x.gif").error
    half = run("generate", nova, "--prompt", "a", "--tokenizer-dtype", "float16", "--out", out / "x.gif")
    assert "--tokenizer-dtype float16 needs a GPU" in half.error
