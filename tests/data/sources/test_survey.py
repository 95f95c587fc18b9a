"""What recipes adapt to: size, rate, lengths, classes and captions of the recordings on disk."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from mutoscope.data.sources.datasets.source import DatasetData
from mutoscope.data.sources.images import ImagesData
from mutoscope.data.sources.recorded_data import FolderData
from mutoscope.data.sources.shapes.source import ShapesData
from mutoscope.errors import UserError


def test_a_folder_has_the_most_common_upright_size_and_its_shortest_and_median_length(
    sample: Callable[[str], Path], tmp_path: Path
):
    for name, kind in {
        "a/1.mp4": "rotated",
        "a/2.mp4": "rotated",
        "b/3.mp4": "plain_mp4",
        "b/4.mp4": "not_a_video",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(sample(kind), tmp_path / name)
    (tmp_path / "b/3.txt").write_text("waves")
    survey = FolderData(path=str(tmp_path), height=8, width=8).survey()
    assert (survey.height, survey.width, survey.fps) == (48, 32, 10.0)
    assert (survey.num_videos, survey.frames, survey.class_names) == (3, (6, 6), ("a", "b"))
    assert survey.has_captions and survey.actions is None


def test_a_folder_without_a_readable_video_is_refused(sample: Callable[[str], Path], tmp_path: Path):
    shutil.copy(sample("not_a_video"), tmp_path)
    with pytest.raises(UserError, match="nothing readable is left"):
        FolderData(path=str(tmp_path)).survey()


def test_images_are_videos_of_one_frame_at_the_configured_rate(tmp_path: Path):
    for name, size in {"a": (20, 10), "b": (20, 10), "c": (8, 8)}.items():
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
    survey = ImagesData(path=str(tmp_path), fps=3).survey()
    assert (survey.height, survey.width, survey.fps, survey.frames) == (10, 20, 3, (1, 1))
    assert not survey.has_captions


def test_a_dataset_is_surveyed_by_its_split(miniature: Callable[[str], Path]):
    survey = DatasetData(kind="bair", path=str(miniature("bair"))).survey()
    assert (survey.height, survey.width, survey.frames) == (64, 64, (30, 30))


def test_the_synthetic_dataset_is_endless_and_names_its_actions():
    survey = ShapesData(height=20, width=24, fps=5).survey()
    assert (survey.height, survey.width, survey.fps, survey.num_videos, survey.frames) == (20, 24, 5, None, None)
    assert survey.actions is None and survey.has_captions
    steered = replace(ShapesData(), controllable=True).survey().actions
    assert steered is not None and steered.names == ("dx", "dy") and steered.kind == "continuous"
