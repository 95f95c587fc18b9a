import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mutoscope.data.inspect import format_inspection, inspect, sheet
from mutoscope.data.sources.datasets.catalog import KINDS
from mutoscope.errors import UserError

Sample = Callable[[str], Path]


@pytest.fixture
def folder(sample: Sample, tmp_path: Path) -> Path:
    for name, kind in {
        "cats/good.mp4": "plain_mp4",
        "cats/bad.mp4": "not_a_video",
        "dogs/turned.mp4": "rotated",
        "dogs/tail.mp4": "damaged_tail",
        "empty/zero.mp4": "zero_length",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(sample(kind), tmp_path / name)
    (tmp_path / "cats/good.txt").write_text("a cat")
    return tmp_path


def test_a_folder_is_counted(folder: Path):
    report = inspect(folder, num_frames=8)
    assert {"files", "readable", "broken", "clips", "classes"} <= report.keys()
    assert (report["files"], report["readable"]) == (5, 3)
    assert [Path(entry["path"]).name for entry in report["broken"]] == ["bad.mp4", "zero.mp4"]
    assert all(set(entry) == {"path", "reason"} for entry in report["broken"])
    assert "empty" in report["broken"][1]["reason"]
    assert report["classes"] == ["cats", "dogs", "empty"]
    assert report["clips"] == 40 // 8 + 6 // 8 + 20 // 8
    json.dumps(report)


def test_details_of_each_video(folder: Path):
    videos = {Path(video["path"]).name: video for video in inspect(folder)["videos"]}
    good, turned, tail = videos["good.mp4"], videos["turned.mp4"], videos["tail.mp4"]
    assert (good["frames"], good["fps"], good["class"], good["caption"]) == (40, 10.0, "cats", "a cat")
    assert (turned["height"], turned["width"]) == (48, 32)
    assert (tail["frames"], tail["frames_in_header"]) == (20, 30)
    assert len(tail["warnings"]) == 1


def test_a_single_video(sample: Sample):
    report = inspect(sample("plain_mp4"), num_frames=10, frame_stride=2)
    assert (report["files"], report["readable"], report["clips"], report["classes"]) == (1, 1, 2, [])


def test_a_single_broken_video_is_an_error(sample: Sample):
    with pytest.raises(UserError, match="not a video"):
        inspect(sample("not_a_video"))


def test_missing_and_empty_folders_are_errors(tmp_path: Path):
    with pytest.raises(UserError, match="there is no"):
        inspect(tmp_path / "none")
    with pytest.raises(UserError, match="holds no videos"):
        inspect(tmp_path)


def test_the_text_lists_broken_and_damaged_files(folder: Path):
    text = format_inspection(inspect(folder))
    assert text.startswith("3 of 5 files readable")
    assert "bad.mp4" in text
    assert "warning:" in text
    assert "40 frames 48x64, 10 fps" in text


def test_the_real_clips(clips_dir: Path):
    report = inspect(clips_dir)
    assert (report["files"], report["readable"], report["classes"]) == (15, 13, [])
    assert [Path(entry["path"]).name for entry in report["broken"]] == ["invalid_vp9.webm", "truncated_no_moov_av1.mp4"]
    assert report["clips"] == sum(video["frames"] // 16 for video in report["videos"]) == 100


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_of_a_data_set_is_reported_by_splits_and_classes(miniature: Callable[[str], Path], kind: str):
    report = inspect(miniature(kind))
    assert {"files", "readable", "broken", "clips", "classes", "class_counts", "missing"} <= report.keys()
    assert report["dataset"] == kind and "train" in report["splits"]
    assert len(report["broken"]) == report["files"] - report["readable"] == (0 if kind == "objectron" else 1)
    train = report["splits"]["train"]
    assert train["readable"] + train["broken"] == train["files"]
    unlabelled = 1 if kind == "kinetics600" else 0  # its test list has no labels
    assert sum(report["class_counts"].values()) in (0, report["files"] - unlabelled)
    assert report["clips"] == sum(split["clips"] for split in report["splits"].values()) > 0
    json.dumps(report)
    text = format_inspection(report)
    assert text.startswith(f"{kind}: {report['readable']} of {report['files']} files readable")
    assert all(entry["path"] in text for entry in [*report["broken"], *report["missing"]])


def test_numbers_of_a_data_set(miniature: Callable[[str], Path]):
    report = inspect(miniature("ucf101"))
    assert report["splits"]["train"] == {
        "files": 4, "readable": 3, "broken": 1, "damaged": 0, "missing": 2, "unlisted": 1, "short": 1, "clips": 6,
        "class_counts": {"ApplyEyeMakeup": 2, "HandstandPushups": 2},
    }  # fmt: skip
    assert report["class_counts"] == {"ApplyEyeMakeup": 3, "HandstandPushups": 3}
    assert [Path(entry["path"]).name for entry in report["broken"]] == ["v_HandStandPushups_g09_c01.avi"]


def test_headers_are_quicker_and_find_less(folder: Path, miniature: Callable[[str], Path]):
    assert {video["frames"] for video in inspect(folder, headers_only=True)["videos"]} == {40, 6, 30}  # not 20
    assert inspect(miniature("bair"), headers_only=True)["readable"] == inspect(miniature("bair"))["readable"] + 1


@pytest.mark.parametrize("kind", ["ucf101", "nuscenes", "imagenet", "folder"])
def test_a_sheet_shows_videos_from_all_over(folder: Path, miniature: Callable[[str], Path], kind: str):
    picture = sheet(folder if kind == "folder" else miniature(kind))
    assert picture.ndim == 3 and picture.shape[0] >= 64 and picture.std() > 10


# --------------------------------------------------------------------------------------------------------- recordings


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """Three videos of a moving dot with actions and a caption."""
    from dot_recordings import NAMES, dot_episode, write_video

    for number in range(3):
        episode = dot_episode(number, 20)
        write_video(tmp_path / f"{number}.mp4", episode.frames)
        lines = [",".join(NAMES), *(",".join(map(str, row)) for row in episode.actions)]
        (tmp_path / f"{number}.actions.csv").write_text("\n".join(lines))
    (tmp_path / "0.txt").write_text("a dot")
    return tmp_path


def test_actions_are_reported_with_names_kind_ranges_and_histograms(recorded: Path):
    report = inspect(recorded)
    assert (report["format"], report["episodes"], report["cameras"], report["captions"]) == ("folder", 3, [], ["a dot"])
    actions = report["actions"]
    assert actions is not None and (actions["names"], actions["kind"]) == (["dx", "dy", "press"], "continuous")
    assert actions["buttons"] == [False, False, True] and (actions["rows"], actions["unknown"]) == (60, 0)
    assert (actions["minimum"], actions["maximum"]) == ([-2, -2, 0], [2, 2, 1])
    assert [sum(counts) for counts in actions["histogram"]] == [60, 60, 60]
    json.dumps(report)
    text = format_inspection(report)
    assert "captions: a dot" in text and "dx     -2 to 2, mean" in text and "press  button, pressed in" in text


def test_videos_without_actions_are_reported_as_such(folder: Path):
    assert inspect(folder, headers_only=True)["actions"] is None


def test_episodes_of_a_lerobot_dataset_are_reported(tmp_path: Path):
    pytest.importorskip("pyarrow", reason="pyarrow is needed to read LeRobot datasets")
    from dot_recordings import dot_episode, write_lerobot

    episodes = [dot_episode(number, 10 + number, f"task {number % 2}") for number in range(4)]
    write_lerobot(tmp_path, episodes, cameras=("images.top", "images.wrist"))
    (tmp_path / "videos/images.top/chunk-000/file-001.mp4").unlink()
    report = inspect(tmp_path, num_frames=5)
    assert (report["format"], report["files"], report["episodes"], report["clips"]) == ("lerobot v3.0", 4, 2, 2 + 2)
    assert (report["cameras"], report["camera"], report["captions"]) == (["top", "wrist"], "top", ["task 0", "task 1"])
    assert [entry["path"] for entry in report["missing"]] == ["episode 2", "episode 3"]
    assert [(v["frames"], v["height"], v["width"], v["fps"]) for v in report["videos"]] == [
        (10, 32, 48, 10),
        (11, 32, 48, 10),
    ]
    text = format_inspection(report)
    assert text.startswith("lerobot v3.0: 2 of 4 episodes readable") and "cameras: top, wrist (read: top)" in text
    assert sheet(tmp_path).std() > 10


def test_the_sheet_shows_the_action_of_every_frame(recorded: Path):
    from mutoscope.data.action_marks import AXIS_COLOR, BUTTON_COLOR

    with_actions = sheet(recorded)
    for path in recorded.glob("*.csv"):
        path.unlink()
    assert with_actions.shape[0] > sheet(recorded).shape[0]
    for color in (AXIS_COLOR, BUTTON_COLOR):
        assert (with_actions == color).all(-1).any() and not (sheet(recorded) == color).all(-1).any()


def test_a_datasets_report_names_its_actions_and_camera(miniature: Callable[[str], Path]):
    report = inspect(miniature("bair"), headers_only=True)
    assert report["actions"] is not None and report["actions"]["names"][0] == "action_0"
    assert (report["format"], report["camera"]) == ("bair", "image_aux1")
    assert report["episodes"] == report["readable"]
