"""Folders of videos under the shapes protocols."""

from collections.abc import Callable

import pytest

from mutoscope.data.sources.shapes.world import CLASS_NAMES, HELD_BACK_SEED, ShapesConfig, ShapesWorld
from mutoscope.errors import UserError
from mutoscope.evaluation.engine import evaluate

write_video = pytest.importorskip("mutoscope.data.video.read").write_video
pytest.importorskip("av")


def measure(source, protocol: str = "shapes", **options) -> dict:
    return dict(evaluate(source, protocol, **options))


def write_clips(folder, count: int, names: Callable[[int], str] = str, seed: int = 5, **config):
    folder.mkdir(parents=True, exist_ok=True)
    world = ShapesWorld(ShapesConfig(**config), seed)
    for i in range(count):
        clip = world.clip(i)
        write_video(folder / f"{names(i)}.mp4", clip.frames, fps=8)
    return folder


def test_all_files_are_measured_whatever_their_size_and_length(classifier, tmp_path):
    write_clips(tmp_path / "small", 3)
    write_clips(tmp_path / "large", 2, height=48, width=64, num_frames=20)
    report = measure(tmp_path, classifier=classifier)
    assert report["num_clips"] == 5 and report["protocol_details"]["parts"] == ["shapes-files"]
    assert {"shapes_fvd", "shapes_fvd_real", "color_histogram_distance"} <= set(report["metrics"])
    assert "class_accuracy" not in report["metrics"]


def test_files_named_after_classes_have_an_accuracy(classifier, tmp_path):
    write_clips(tmp_path, 4, names=lambda i: f"{CLASS_NAMES[i]}_{i}")
    assert "class_accuracy" in measure(tmp_path, classifier=classifier)["metrics"]


def test_fewer_files_than_requested_are_refused_and_further_ones_ignored(classifier, tmp_path):
    write_clips(tmp_path, 3)
    with pytest.raises(UserError, match="holds 3 usable videos of 16 frames, 4 are needed"):
        measure(tmp_path, num_clips=4, classifier=classifier)
    assert measure(tmp_path, num_clips=2, classifier=classifier)["num_clips"] == 2


def test_short_and_broken_files_are_skipped_and_named(classifier, tmp_path):
    write_clips(tmp_path, 2)
    write_clips(tmp_path, 1, names=lambda i: "short", num_frames=5)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    notes = measure(tmp_path, classifier=classifier)["protocol_details"]["notes"]
    assert len(notes) == 2
    assert any("short.mp4: 5 frames, 16 are needed" in note for note in notes)
    assert any("broken.mp4" in note for note in notes)


def test_folders_with_nothing_to_measure_are_refused(classifier, tmp_path):
    with pytest.raises(UserError, match="holds no videos"):
        measure(tmp_path, classifier=classifier)
    write_clips(tmp_path, 1)
    with pytest.raises(UserError, match="1 usable videos of 16 frames, 2 are needed"):
        measure(tmp_path, classifier=classifier)
    with pytest.raises(UserError, match="does not fit this source"):
        measure(tmp_path, "shapes-generation", classifier=classifier)


def test_the_real_clips_themselves_are_nearer_than_other_clips(tmp_path):
    same, other = (write_clips(tmp_path / name, 6, seed=seed) for name, seed in (("a", HELD_BACK_SEED), ("b", 5)))
    same, other = (measure(folder)["metrics"] for folder in (same, other))
    assert same["shapes_fvd"]["value"] < 0.2 * other["shapes_fvd"]["value"]  # not 0: videos are lossy
    assert same["shapes_fvd_real"] == other["shapes_fvd_real"]
    assert same["color_histogram_distance"]["value"] == 0


def test_hidden_files_are_not_measured(classifier, tmp_path):
    write_clips(tmp_path, 2)
    write_clips(tmp_path / ".cache", 1)
    write_clips(tmp_path, 1, names=lambda i: ".unfinished")
    assert measure(tmp_path, classifier=classifier)["num_clips"] == 2
