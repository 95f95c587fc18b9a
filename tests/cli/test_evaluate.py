"""`mutoscope evaluate` under protocols of either kind."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation.fakes import NARROW, save_narrow_i3d, use_narrow_i3d, write_videos
from mutoscope.data.video.read import write_video
from mutoscope.evaluation.networks.i3d import I3D
from mutoscope.hub import save_pretrained
from tiny_models import MODEL, tiny_index, tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    save_narrow_i3d(root / "i3d.pt")
    write_videos(root / "real", 3)
    write_videos(root / "made", 3, noise=9)
    return root


def test_a_folder_is_measured_against_a_folder(run, folder: Path, monkeypatch):
    use_narrow_i3d(monkeypatch)
    command = ["evaluate", folder / "made", "--reference", folder / "real", "--i3d", folder / "i3d.pt"]
    report = run(*command, "--protocol", "fvd", "--json").report
    assert report["protocol"] == "fvd" and report["num_clips"] == 3 and report["metrics"]["fvd"]["value"] > 0
    done = run(*command, "--protocol", "bair-frame-prediction", "--num-clips", 2)
    assert "published, MAGVIT-L: fvd 62" in done.out and "SHA-256" in done.out and "convention tf " in done.out
    assert "2 clips instead of 25,600" in done.err


def test_what_is_missing_is_asked_for(run, folder: Path, model):
    made = ["evaluate", folder / "made", "--protocol", "ucf101-magvit"]
    assert "--reference FOLDER" in run(*made).error
    assert "--i3d FILE" in run(*made, "--reference", folder / "real").error
    assert "'ucf101-magvit'" in run("evaluate", folder / "made", "--protocol", "ucf101-magvi").error
    assert "belongs to the protocols of published tables" in run("evaluate", model, "--i3d", "x.pt").error


@pytest.fixture(scope="module")
def long_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random network that predicts clips of 16 frames."""
    network = tiny_model(replace(MODEL, latent_shape=(8, 4, 4)))
    return save_pretrained(
        tmp_path_factory.mktemp("models") / "long", tiny_index(num_frames=16), tiny_tokenizer(), network
    )


def test_a_model_is_measured_on_a_data_set_and_continues(
    run, folder: Path, long_model: Path, miniature: Callable[[str], Path], tmp_path: Path, monkeypatch
):
    use_narrow_i3d(monkeypatch)
    command = ["evaluate", long_model, "--protocol", "bair-frame-prediction", "--reference", miniature("bair")]
    command += ["--i3d", folder / "i3d.pt", "--num-clips", 2, "--num-decoding-steps", 1, "--state", tmp_path / "state"]
    report = run(*command, "--out", tmp_path / "report.json", "--json").report
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert report["num_clips"] == report["num_real"] == 2 and report["metrics"]["fvd"]["value"] > 0
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "state").iterdir()}
    again = run(*command, "--json").report
    assert again["metrics"] == report["metrics"]
    assert kept == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "state").iterdir()}
    shown = run(*command).out
    assert "frame-prediction by the model" in shown and "read as bair, test" in shown
    assert "parts of another evaluation" in run(*command, "--guidance-scale", 2).error


def test_protocols_of_the_shapes_dataset_need_no_reference_and_keep_a_state(run, folder: Path, tmp_path: Path):
    report = run("evaluate", folder / "made", "--protocol", "shapes-10k", "--num-clips", 3, "--json").report
    assert {"shapes_fvd", "shapes_fvd_real"} <= set(report["metrics"]) and "fvd" not in report["metrics"]
    command = ["evaluate", folder / "made", "--state", tmp_path / "state", "--json"]
    assert run(*command).report["metrics"] == run(*command).report["metrics"]
    stored = {path.name.split("-")[0] for path in (tmp_path / "state").glob("*.safetensors")}
    assert stored == {"real", "again", "files"}


def test_two_folders_are_compared_without_weights(run, folder: Path, tmp_path: Path):
    command = ["evaluate", folder / "made", "--reference", folder / "real"]
    done = run(*command, "--out", tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["protocol"] == "folders" and report["num_real"] == 3
    assert done.status == 0 and "fvd" not in done.out
    lines = done.out.splitlines()
    assert lines[0].startswith("Caution: 3 clips are few for 64 features: frechet-shapes-features is far too high")
    assert "made against" in lines[1] and "3 clips of 3 videos against 3 clips of 3 videos, each 16 frames" in lines[1]
    shown = {line.split()[0]: line.split()[1] for line in lines[3:] if line.startswith("  ")}
    assert float(shown["psnr_db"]) == pytest.approx(report["metrics"]["psnr_db"]["value"], abs=0.01)
    assert "pairs: by name below the folders, 3 clips of 3 pairs" in done.out
    assert "frechet-shapes-features: 64 features per clip, 3 clips against 3" in done.out
    named = run(*command, "--features", "vae-shapes", "--pairs", "none", "--max-side", 16, "--json").report
    assert "frechet-vae-shapes-encoder" in named["metrics"] and "psnr_db" not in named["metrics"]
    assert named["protocol_details"]["size"] == [16, 16]


def test_videos_that_are_far_from_shapes_are_announced_in_the_first_line(run, tmp_path: Path):
    for number in range(2):
        frames = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        write_video(tmp_path / f"{number}.mp4", np.stack([np.roll(frames, shift, axis=1) for shift in range(16)]), 8)
    first = run("evaluate", tmp_path, "--protocol", "shapes").out.splitlines()[0]
    assert first.startswith('Caution: Figures of the feature network of the synthetic dataset "shapes" say little')
    alone = run("evaluate", tmp_path).out
    assert alone.startswith("Caution: There is nothing to compare") and "shapes_fvd" not in alone
    beside = run("evaluate", tmp_path, "--reference", tmp_path, "--by-frame").out
    assert beside.startswith("Caution: frechet-shapes-features comes from a network trained on the synthetic dataset")


# ------------------------------------------------------------------------------------------------------- bad input


def test_comparisons_that_cannot_be_made_are_refused(run, folder: Path, tmp_path: Path):
    real = ["--reference", folder / "real"]
    assert "did you mean 'vae-shapes'" in run("evaluate", folder / "made", *real, "--features", "vae-shape").error
    assert "There is no folder or file 'none'" in run("evaluate", "none", *real).error
    assert "There is no folder or file" in run("evaluate", folder / "made", "--reference", tmp_path / "none").error
    assert "holds no videos and no images" in run("evaluate", tmp_path, *real).error
    assert "is a model" in run("evaluate", folder / "made", "--reference", "magi-shapes").error
    assert "no folder of videos" in run("evaluate", "magi-shapes", *real).error
    assert "--max-side must be at least 16" in run("evaluate", folder / "made", *real, "--max-side", 8).error
    assert "invalid choice" in run("evaluate", folder / "made", *real, "--pairs", "names-and-order").error
    assert "is for models that generate them" in run("evaluate", folder / "made", *real, "--guidance-scale", 2).error
    (tmp_path / "broken.mp4").write_text("no video")
    assert "can be read: 1 tried; the first, broken" in run("evaluate", tmp_path, *real).error


@pytest.fixture
def command(folder: Path, monkeypatch) -> list[object]:
    """An evaluation that works, to which a test adds what does not."""
    use_narrow_i3d(monkeypatch)
    return [
        "evaluate",
        folder / "made",
        "--reference",
        folder / "real",
        "--protocol",
        "fvd",
        "--i3d",
        folder / "i3d.pt",
    ]


def test_weights_of_another_architecture_or_hash_are_refused(run, command, folder: Path, tmp_path: Path):
    torch.save(I3D(replace(NARROW, stem=(4, 4, 6))).state_dict(), tmp_path / "wider.pt")
    assert "does not hold I3D" in run(*command, "--i3d", tmp_path / "wider.pt").error
    (tmp_path / "text.pt").write_text("no weights")
    assert "is not a readable weights file of I3D" in run(*command, "--i3d", tmp_path / "text.pt").error
    assert "There is no file" in run(*command, "--i3d", tmp_path / "none.pt").error
    assert "it is another file" in run(*command, "--i3d-sha256", "0" * 64).error


def test_clips_of_fewer_than_nine_frames_or_of_another_length_are_refused(run, command, tmp_path: Path):
    write_videos(tmp_path / "short", 3, num_frames=8)
    command[1] = tmp_path / "short"
    assert "8 frames, 16 are needed" in run(*command).error
    write_videos(tmp_path / "mixed", 2, num_frames=12)
    write_videos(tmp_path / "mixed", 1, start=2)
    command[1] = tmp_path / "mixed"
    assert "2 of the generated videos of" in run(*command).error
    command[1], command[3] = command[3], command[1]
    assert "holds 1 usable videos of 16 frames (2 omitted" in run(*command).error


def test_empty_folders_and_single_clips_are_refused(run, command, folder: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    write_videos(tmp_path / "one", 1)
    for place, side in ((1, "made"), (3, "real")):
        for name, message in (("empty", "holds no videos"), ("one", "2"), ("none", "none")):
            wrong = [*command]
            wrong[place] = tmp_path / name
            assert message in run(*wrong).error, (side, name)


def test_features_that_are_not_finite_give_no_number(run, command, monkeypatch):
    monkeypatch.setattr(I3D, "forward", lambda self, video: torch.full((len(video), 6), torch.nan))
    assert "not finite" in run(*command).error


def test_weights_that_are_not_finite_are_refused(run, command, folder: Path, tmp_path: Path):
    weights = torch.load(folder / "i3d.pt", weights_only=True)
    weights["logits.conv3d.bias"][0] = torch.nan
    torch.save(weights, tmp_path / "nan.pt")
    assert "holds NaN or infinity" in run(*command, "--i3d", tmp_path / "nan.pt").error


def test_what_does_not_belong_together_is_refused(run, command, folder: Path, model: Path):
    assert "must end in one of .json" in run(*command, "--out", folder / "report.txt").error
    assert "is for models that generate them" in run(*command, "--task", "frame-prediction").error
    assert "is for models that generate them" in run(*command, "--guidance-scale", 2).error
    assert "plain folder of videos" in run(*command, "--split", "test").error
    command[1] = model
    assert "this model generates 8" in run(*command, "--task", "frame-prediction").error
    command[1] = "no-such-model"
    assert "Unknown model 'no-such-model'" in run(*command).error
