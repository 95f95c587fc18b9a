"""Folders of videos against the built-in world."""

import pytest
import torch

from mutoscope.data.sources.shapes.world import CLASS_NAMES, ShapesConfig, ShapesWorld
from mutoscope.errors import UserError
from mutoscope.evaluation.evaluate import evaluate
from mutoscope.evaluation.networks.shapes_features import ShapesFeatures, ShapesFeaturesConfig
from mutoscope.evaluation.protocols.protocol import Judge

write_video = pytest.importorskip("mutoscope.data.video.read").write_video
pytest.importorskip("av")


@pytest.fixture(scope="module")
def judge() -> Judge:
    torch.manual_seed(0)
    config = ShapesFeaturesConfig(stem_channels=8, stage_channels=(8, 16, 16), embedding_size=6)
    return Judge(ShapesFeatures(config).eval(), "c" * 64)


def write_clips(folder, count: int, names=str, **config):
    folder.mkdir(parents=True, exist_ok=True)
    world = ShapesWorld(ShapesConfig(**config), seed=5)
    for i in range(count):
        clip = world.clip(i)
        write_video(folder / f"{names(i)}.mp4", clip.frames, fps=8)
    return folder


def test_all_files_are_measured_whatever_their_size_and_length(judge, tmp_path):
    write_clips(tmp_path / "small", 3)
    write_clips(tmp_path / "large", 2, height=48, width=64, num_frames=20)
    report = evaluate(tmp_path, judge=judge)
    assert report["num_clips"] == 5 and report["protocol_details"]["parts"] == ["shapes-files"]
    assert {"shapes_fvd", "shapes_fvd_real", "color_histogram_distance"} <= set(report["metrics"])
    assert "class_accuracy" not in report["metrics"]


def test_files_named_after_classes_have_an_accuracy(judge, tmp_path):
    write_clips(tmp_path, 4, names=lambda i: f"{CLASS_NAMES[i]}_{i}")
    assert "class_accuracy" in evaluate(tmp_path, judge=judge)["metrics"]


def test_fewer_files_than_asked_for_are_refused_and_more_are_left_out(judge, tmp_path):
    write_clips(tmp_path, 3)
    with pytest.raises(UserError, match="holds 3 usable clips of 16 frames, 4 are needed"):
        evaluate(tmp_path, num_clips=4, judge=judge)
    assert evaluate(tmp_path, num_clips=2, judge=judge)["num_clips"] == 2


def test_short_and_broken_files_are_skipped_and_named(judge, tmp_path):
    write_clips(tmp_path, 2)
    write_clips(tmp_path, 1, names=lambda i: "short", num_frames=5)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    notes = evaluate(tmp_path, judge=judge)["protocol_details"]["notes"]
    assert len(notes) == 2
    assert any("short.mp4: 5 frames, 16 are needed" in note for note in notes)
    assert any("broken.mp4" in note for note in notes)


def test_folders_with_nothing_to_measure_are_refused(judge, tmp_path):
    with pytest.raises(UserError, match="holds no videos"):
        evaluate(tmp_path, judge=judge)
    write_clips(tmp_path, 1)
    with pytest.raises(UserError, match="1 usable clips of 16 frames, 2 are needed"):
        evaluate(tmp_path, judge=judge)
    with pytest.raises(UserError, match="does not fit this source"):
        evaluate(tmp_path, "shapes-generation", judge=judge)
