"""The demo writes at least three videos of at least 16 frames and a contact sheet, and prints a line for each."""

import subprocess
import sys
from pathlib import Path

import pytest

from mutoscope.data.sources.shapes.world import ShapesConfig, ShapesWorld
from mutoscope.data.video.read import read_video, write_video
from small_shapes_model import save_small_model

DEMO = Path(__file__).parents[1] / "scripts" / "demo.py"


def run_demo(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(DEMO), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_demo_writes_videos_and_contact_sheets_and_names_them(tmp_path: Path):
    model = save_small_model(tmp_path / "model")
    video = tmp_path / "own video.mp4"
    write_video(video, ShapesWorld(ShapesConfig(height=40, width=50, num_frames=20), seed=0).clip(0).frames, fps=10)
    done = run_demo("--out", tmp_path / "outputs", "--model", model, "--class-model", model, "--video", video)
    assert done.returncode == 0, done.stderr
    videos = sorted((tmp_path / "outputs").glob("*.mp4"))
    assert len(videos) >= 3
    for path in videos:
        assert len(read_video(path)) >= 16
        assert str(path) in done.stdout
    assert len(read_video(tmp_path / "outputs" / "round-trip.mp4")) == 20
    assert list((tmp_path / "outputs").glob("*.png"))
    assert "frames/s" in done.stdout


@pytest.mark.slow
def test_demo_says_in_one_line_that_a_video_cannot_be_read(tmp_path: Path):
    model = save_small_model(tmp_path / "model")
    done = run_demo(
        "--out", tmp_path / "outputs", "--model", model, "--class-model", model, "--video", tmp_path / "missing.mp4"
    )
    assert done.returncode == 2
    assert "missing.mp4" in done.stderr and "Traceback" not in done.stderr
