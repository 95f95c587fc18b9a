"""The verbs on a MAGI model: lengths, first frames, actions, intervals, and what is said of input that does not fit."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mutoscope.actions import ActionSpec
from mutoscope.data.action_tables import read_action_table
from mutoscope.hub import save_pretrained
from tiny_magi import save_tiny_magi, tiny_index, tiny_magi, tiny_vae


@pytest.fixture(scope="module")
def magi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_magi(tmp_path_factory.mktemp("models") / "magi")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(tmp_path / "x.png")
    return tmp_path / "x.png"


def test_a_frame_goes_on_beyond_the_length_of_training(run, magi, image, out):
    report = run("generate", magi, "--context", image, "--num-frames", 9, "--out", out / "x.mp4", "--json").report
    assert report["mode"] == "frame-prediction"
    assert report["frames"] == 9
    assert report["num_decoding_steps"] == 8 * 3
    assert report["class_labels"] is None


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize(("name", "text"), [("a.csv", "1,2\r\n3,4\r\n"), ("a.json", "[[1, 2], [3, 4]]")])
def test_actions_of_every_editor_are_read(tmp_path, name, text, encoding):
    (tmp_path / name).write_bytes(text.encode(encoding))
    assert read_action_table(tmp_path / name).rows.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("suffix", ["json", "csv", "npy"])
def test_actions_come_from_files(run, magi, tmp_path, out, suffix):
    rows, file = np.linspace(-1, 1, 8).reshape(4, 2), tmp_path / f"actions.{suffix}"
    if suffix == "npy":
        np.save(file, rows)
    else:
        file.write_text(json.dumps(rows.tolist()) if suffix == "json" else "\n".join(f"{a},{b}" for a, b in rows))
    options = ("--class-label", "circle", "--actions", file, "--interval", 2)
    report = run("generate", magi, *options, "--out", out / f"{suffix}.png", "--json").report
    assert report["mode"] == "action-conditional"
    assert report["frames"] == 5


@pytest.fixture(scope="module")
def game(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a button and an axis."""
    model = tiny_magi()
    spec = ActionSpec(("right", "dx"), "continuous", (0.0, 3.0), (1.0, 2.0), ("max", "sum"))
    return save_pretrained(
        tmp_path_factory.mktemp("models") / "game", tiny_index(model, actions=spec), tiny_vae(), model
    )


def frames_of(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file))


def test_actions_are_typed_by_name_or_come_from_a_file_with_names(run, game, tmp_path, out):
    (tmp_path / "moves.csv").write_text("DX,right\n0,1\n0,1\n-2.5,0\n")
    written = []
    for name, actions in (("text", "right*2 dx=-2.5"), ("file", tmp_path / "moves.csv")):
        report = run("generate", game, "--actions", actions, "--out", out / f"{name}.png", "--json").report
        assert report["mode"] == "action-conditional" and report["frames"] == 4 and not report["warnings"]
        written.append(frames_of(out / f"{name}.png"))
    np.testing.assert_array_equal(*written)


def test_columns_that_a_file_lacks_are_zero_and_reported(run, game, tmp_path, out):
    (tmp_path / "moves.csv").write_text("right\n1\n")
    report = run("generate", game, "--actions", tmp_path / "moves.csv", "--out", out / "x.png", "--json").report
    assert [text for text in report["warnings"] if "has no dx: 0 in every frame" in text]


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ("rigth*3", "no action 'rigth'. Did you mean 'right'? Known: right, dx"),
        ("right=2", "'right' is a button"),
        ("right*", "Cannot read 'right*'"),
        ("FILE right,time\n1,0\n", "no action 'time'"),
        ("FILE right,dx\n1,0\n0,nan\n", "row 2 of 2, column 2 ('dx') must be a finite number"),
    ],
)
def test_actions_that_do_not_fit_are_refused_before_anything_is_loaded(run, game, tmp_path, out, actions, message):
    if actions.startswith("FILE "):
        (tmp_path / "moves.csv").write_text(actions.removeprefix("FILE "))
        actions = tmp_path / "moves.csv"
    assert message in run("generate", game, "--actions", actions, "--out", out / "x.mp4").error
    assert not list(out.iterdir())


def test_help_lists_the_actions_of_the_model(run, game):
    text = " ".join(run("generate", game, "--help").out.split())
    assert "--actions FILE|TEXT" in text and "Actions: right (0 or 1), dx." in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--num-decoding-steps", 7), "A frame has 6 tokens"),
        (("--interval", 26), "between 1 and 25"),
        (("--task", "action-conditional"), "needs actions"),
        (("--task", "frame-prediction"), "needs first frames"),
        (("--num-frames", 5, "--actions", "SHORT"), "need 4 actions, found 3"),
        (("--actions", "WORDS"), "is 'left', which is no number"),
        (("--actions", "FLAT"), "rows of 2 numbers are needed"),
        (("--actions", "missing.json"), "no file of actions"),
        (("--motion", 3), "takes no --motion"),
        (("--prompt", "a"), "takes no prompt"),
    ],
)
def test_what_does_not_fit_is_explained(run, magi, tmp_path, out, options, message):
    files = {"SHORT": "[[0, 0], [0, 0], [0, 0]]", "WORDS": '["left", "up"]', "FLAT": "[1, 2, 3]"}
    if options[-1] in files:
        file = tmp_path / "actions.json"
        file.write_text(files[options[-1]])
        options = (*options[:-1], file)
    assert message in run("generate", magi, *options, "--out", out / "x.mp4").error
    assert not list(out.iterdir())


def test_models_are_listed_with_their_steps(run):
    rows = {row["name"]: row for row in run("models", "--json").report["paper"]}
    assert rows["magi-B"]["num_decoding_steps"] == 16 * 64
    assert rows["magi-B"]["tokens"] == 16 * 256
    assert "frame-prediction" in rows["magi-B"]["tasks"]


def test_claims_are_planned_without_training(run, tmp_path):
    report = run("bench", "claims", "magi", "--out", tmp_path / "run", "--dry-run", "--json").report
    assert {row["seed"] for row in report["trainings"]} == {0, 1, 2}
    assert {"ctf", "mtf"} <= {row["variant"] for row in report["trainings"]}
    assert not (tmp_path / "run").exists()
