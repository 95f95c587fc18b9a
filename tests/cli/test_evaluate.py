"""`mutoscope evaluate` with the protocols of published tables."""

from pathlib import Path

import pytest

from evaluation.fakes import save_narrow_i3d, use_narrow_i3d, write_videos


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
    assert "save samples first" in run("evaluate", model, "--protocol", "ucf101-magvit").error
    assert "'ucf101-magvit'" in run("evaluate", folder / "made", "--protocol", "ucf101-magvi").error
    assert "belongs to the protocols of published tables" in run("evaluate", model, "--i3d", "x.pt").error
