"""The example programs run as a reader would start them, with tiny settings, and do what their docstrings say."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mutoscope.data.video.read import read_video, write_video
from mutoscope.pipeline import VideoPipeline

EXAMPLES = Path(__file__).parents[1] / "examples"


def run_example(name: str, folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_every_example_is_tested():
    tested = Path(__file__).read_text()
    for path in EXAMPLES.glob("*.py"):
        assert f'run_example("{path.name}"' in tested, path.name


@pytest.mark.slow
def test_generate_and_stream_writes_a_clip_and_every_frame_of_the_stream(tmp_path: Path):
    done = run_example("generate_and_stream.py", tmp_path, "--out", tmp_path / "out", "--num-frames", 4)
    assert done.returncode == 0, done.stderr
    assert len(read_video(tmp_path / "out" / "spin.mp4")) == 16
    assert len(read_video(tmp_path / "out" / "stream.mp4")) == 4
    assert "frame 4 after" in done.stdout


@pytest.mark.slow
def test_train_on_a_folder_leaves_a_model_that_generates(tmp_path: Path):
    steps = ("--tokenizer-steps", 2, "--model-steps", 2, "--batch-size", 2)
    done = run_example("train_on_a_folder.py", tmp_path, "--out", tmp_path / "out", *steps)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "samples.png").stat().st_size > 0
    pipeline = VideoPipeline.from_pretrained(tmp_path / "out" / "model")
    assert pipeline.index.class_names == ("left", "right")


def test_train_on_a_folder_refuses_videos_without_a_class(tmp_path: Path):
    (tmp_path / "videos").mkdir()
    done = run_example("train_on_a_folder.py", tmp_path, tmp_path / "videos", "--out", tmp_path / "out")
    assert done.returncode == 2 and "holds no videos" in done.stderr
    write_video(tmp_path / "videos" / "a.webm", np.zeros((20, 32, 32, 3), np.uint8), 8)
    done = run_example("train_on_a_folder.py", tmp_path, tmp_path / "videos", "--out", tmp_path / "out")
    assert done.returncode == 2 and "sub-folders" in done.stderr
    assert not (tmp_path / "out").exists()


def distance_in(output: str) -> float:
    return float(output.strip().splitlines()[-1].split(": ")[1])


@pytest.mark.slow
def test_evaluate_two_folders_finds_noise_and_no_difference_of_a_folder_from_itself(tmp_path: Path):
    done = run_example("evaluate_two_folders.py", tmp_path, "--out", tmp_path / "videos")
    assert done.returncode == 0, done.stderr
    assert distance_in(done.stdout) > 100
    real = tmp_path / "videos" / "real"
    same = run_example("evaluate_two_folders.py", tmp_path, real, real)
    assert same.returncode == 0, same.stderr
    assert distance_in(same.stdout) == pytest.approx(0, abs=0.01)


@pytest.mark.slow
def test_play_by_program_steers_a_world_and_fetches_a_clip(tmp_path: Path):
    for library in ("fastapi", "uvicorn", "websockets"):
        pytest.importorskip(library, reason="the server needs the extra [playground]")
    from playground_server import running
    from tiny_magi import save_tiny_magi
    from tiny_models import save_tiny_model

    folders = {"world": save_tiny_magi(tmp_path / "world"), "clips": save_tiny_model(tmp_path / "clips")}
    with running(folders) as served:
        models = ("--world", "world", "--model", "clips", "--prompt", "circle-orbit", "--frames", 3)
        done = run_example("play_by_program.py", tmp_path, "--address", served.http, "--out", tmp_path / "out", *models)
    assert done.returncode == 0, done.stderr
    assert "frame 3:" in done.stdout and (tmp_path / "out/world.png").stat().st_size > 0
    assert len(read_video(tmp_path / "out/clip.mp4")) == 8
