"""Recordings with actions on the command line: inspect and tokenize."""

import json
from pathlib import Path

import numpy as np
import pytest

from dot_recordings import dot_episode, write_lerobot, write_video


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(2):
        episode = dot_episode(number, 24)
        write_video(tmp_path / f"clips/{number}.mp4", episode.frames)
        np.save(tmp_path / f"clips/{number}.actions.npy", episode.actions)
    return tmp_path / "clips"


def test_inspect_names_actions_and_draws_them(run, folder, out):
    report = run("inspect", folder, "--sheet", out / "x.png", "--json").report
    assert {"format", "episodes", "cameras", "actions", "captions"} <= report.keys()
    assert report["actions"]["names"] == ["action_0", "action_1", "action_2"] and (out / "x.png").is_file()


def test_a_file_of_actions_that_does_not_fit_is_one_sentence(run, folder):
    np.save(folder / "1.actions.npy", np.zeros((9, 3)))
    assert "1.actions.npy holds 9 rows of actions for 24 frames" in run("inspect", folder).error


@pytest.mark.parametrize("choice", ["even", "random"])
def test_tokenize_cuts_windows_of_a_folder_and_remembers_its_actions(run, model, folder, out, choice):
    options = ("--windows", 3, "--window-choice", choice, "--num-frames", 8, "--frame-stride", 2)
    report = run("tokenize", model, folder, out / "tokens", *options, "--json").report
    described = json.loads((out / "tokens/metadata.json").read_text())["data"]
    assert report["clips"] == 6 and described["windows"] == 3 and described["frame_stride"] == 2
    assert described["actions"]["names"] == ["action_0", "action_1", "action_2"]


def test_tokenize_reads_the_chosen_camera_of_a_lerobot_dataset(run, model, tmp_path, out):
    pytest.importorskip("pyarrow", reason="pyarrow is needed to read LeRobot datasets")
    write_lerobot(tmp_path / "robot", [dot_episode(1, 20)], cameras=("images.top", "images.wrist"))
    options = ("--num-frames", 8, "--json")
    report = run("tokenize", model, tmp_path / "robot", out / "tokens", "--camera", "wrist", *options).report
    assert report["clips"] == 2
    error = run("tokenize", model, tmp_path / "robot", out / "x", "--camera", "left", *options[:2]).error
    assert "no camera called 'left'" in error and "images.top, images.wrist" in error


def test_tokenize_refuses_options_without_meaning(run, model, folder, out):
    error = run("tokenize", model, folder, out / "x", "--camera", "front").error
    assert "--camera has no meaning for data of kind 'folder'" in error
