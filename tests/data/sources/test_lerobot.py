"""LeRobot datasets of every version: the frame, the action and the text that were recorded come back together."""

import json
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("av", reason="PyAV is needed to read videos")
pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is needed to read LeRobot datasets")

from dot_recordings import (  # noqa: E402
    NAMES,
    DotEpisode,
    dot_corners,
    dot_episode,
    png,
    write_lerobot,
    write_lines,
    write_table,
    write_video,
)
from mutoscope import open_recordings  # noqa: E402
from mutoscope.data.sources.lerobot_tables import action_names  # noqa: E402
from mutoscope.errors import UserError  # noqa: E402

EPISODES = [dot_episode(seed, length, f"move «{seed % 2}»") for seed, length in enumerate([9, 12, 7, 10, 11])]
Writer = Callable[[Path], Path]

LAYOUTS: dict[str, Writer] = {
    "v3.0": lambda folder: write_lerobot(folder, EPISODES),
    "v3.0-one-file": lambda folder: write_lerobot(folder, EPISODES, per_file=9),
    "v3.0-images": lambda folder: write_lerobot(folder, EPISODES, embedded=True),
    "v3.0-other-paths": lambda folder: write_lerobot(
        folder,
        EPISODES,
        data_path="rows/{chunk_index}-{file_index:05d}.pq",
        video_path="film/{file_index:02d}/{chunk_index:02d}/{video_key}.mkv",
    ),
    "v2.1": lambda folder: write_lerobot(folder, EPISODES, version="v2.1"),
    "v2.1-images": lambda folder: write_lerobot(folder, EPISODES, version="v2.1", embedded=True),
    "v2.0": lambda folder: write_lerobot(folder, EPISODES, version="v2.0"),
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a dataset by the name of its layout; each is written once."""
    written: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in written:
            written[name] = LAYOUTS[name](tmp_path_factory.mktemp("lerobot") / name)
        return written[name]

    return get


@pytest.fixture
def copied(dataset: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of such a dataset that a test may damage."""
    return lambda name: Path(shutil.copytree(dataset(name), tmp_path / name))


def holds(recordings: Any, episodes: list[DotEpisode]) -> None:
    """Asserts that the recordings are these episodes."""
    assert len(recordings) == len(episodes)
    for read, expected in zip(recordings, episodes, strict=True):
        assert (read.num_frames, read.caption, read.label) == (len(expected), expected.task, None)
        np.testing.assert_array_equal(read.actions, expected.actions)
        assert np.abs(dot_corners(read.read()) - expected.corners).max() < 0.5


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_back_frames_actions_and_texts(dataset: Callable[[str], Path], layout: str):
    recordings = open_recordings(dataset(layout))
    assert recordings.format == f"lerobot {layout.split('-')[0]}" and recordings.fps == 10
    assert (recordings.action_names, recordings.action_kind, recordings.cameras) == ([*NAMES], "continuous", ["front"])
    holds(recordings, EPISODES)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_parts_of_an_episode_equal_slices_of_the_whole(dataset: Callable[[str], Path], layout: str):
    episode = open_recordings(dataset(layout))[3]
    whole = episode.read()
    for start, stop in [(0, 3), (4, 9), (9, 10), (-3, None), (5, 5), (2, 99)]:
        np.testing.assert_array_equal(episode.read(start, stop), whole[start:stop])


def test_a_camera_is_chosen_by_its_key_or_the_last_part_of_it(tmp_path: Path):
    cameras = ("observation.images.top", "observation.images.wrist")
    folder = write_lerobot(tmp_path, EPISODES[:2], cameras=cameras)
    by_default = open_recordings(folder)
    assert (by_default.cameras, by_default.camera) == (["top", "wrist"], "top")
    assert "others are observation.images.wrist" in by_default.notes[0]
    for name in ("wrist", "images.wrist", "observation.images.wrist"):
        chosen = open_recordings(folder, camera=name)
        assert chosen.camera == "wrist" and "observation.images.wrist" in str(chosen[0].path) and not chosen.notes
    with pytest.raises(UserError, match=r"no camera called 'rist'.*observation.images.top, observation.images.wrist"):
        open_recordings(folder, camera="rist")


def test_cameras_of_equal_last_parts_are_named_by_their_keys(tmp_path: Path):
    folder = write_lerobot(tmp_path, EPISODES[:1], cameras=("left.rgb", "right.rgb"))
    assert open_recordings(folder).cameras == ["left.rgb", "right.rgb"]
    with pytest.raises(UserError, match="more than one camera called 'rgb'"):
        open_recordings(folder, camera="rgb")


def test_a_camera_of_depth_is_noted_and_not_read(tmp_path: Path):
    folder = write_lerobot(tmp_path, EPISODES[:1], cameras=("images.depth", "images.front"))
    change_info(folder, lambda info: info["features"]["images.depth"].update(info={"video.is_depth_map": True}))
    recordings = open_recordings(folder)
    assert recordings.cameras == ["front"] and "images.depth holds depth" in recordings.notes[0]
    with pytest.raises(UserError, match="no camera called 'depth'"):
        open_recordings(folder, camera="depth")


def change_info(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "meta/info.json"
    info = json.loads(path.read_text())
    change(info)
    path.write_text(json.dumps(info))


@pytest.mark.parametrize(
    ("action", "names", "kind"),
    [
        ({"dtype": "int64", "rows": lambda e: e.actions.astype(int)}, [*NAMES], "continuous"),
        ({"dtype": "bool", "rows": lambda e: e.actions > 0}, [*NAMES], "buttons"),
        ({"names": {"motors": [*NAMES]}}, [*NAMES], "continuous"),
        ({"names": None}, ["action_0", "action_1", "action_2"], "continuous"),
        ({"names": [["dx"], ["dy", "press"]]}, [*NAMES], "continuous"),
        ({"shape": [1, 3], "rows": lambda e: e.actions[:, None]}, [*NAMES], "continuous"),
        ({"shape": [1], "names": ["press"], "rows": lambda e: e.actions[:, 2]}, ["press"], "buttons"),
    ],
    ids=["int", "bool", "names-in-object", "no-names", "nested-names", "two-axes", "scalar"],
)
def test_actions_of_every_type_and_shape(tmp_path: Path, action: dict[str, Any], names: list[str], kind: str):
    recordings = open_recordings(write_lerobot(tmp_path, EPISODES[:2], action=action, embedded=True))
    assert (recordings.action_names, recordings.action_kind) == (names, kind)
    rows = action.get("rows", lambda e: e.actions)(EPISODES[1])
    actions = recordings[1].actions
    assert actions is not None and actions.dtype == np.float32
    np.testing.assert_array_equal(actions, np.float32(rows).reshape(len(rows), -1))


def test_names_of_actions_are_found_in_lists_and_objects():
    assert action_names({"x": 1, "y": 0}, 2) == ("y", "x")
    assert action_names({"arm": {"joints": ["a", "b"]}, "hand": ["c"]}, 3) == ("a", "b", "c")
    assert action_names(["a", "a"], 2) == action_names(["a"], 2) == ("action_0", "action_1")


def test_a_dataset_without_actions_has_none(tmp_path: Path):
    recordings = open_recordings(
        write_lerobot(tmp_path, EPISODES[:1], action={"rows": lambda episode: None}, embedded=True)
    )
    assert recordings.actions is None and recordings.action_kind is None and recordings.action_names == []
    assert recordings[0].actions is None


@pytest.mark.parametrize("column", ["task", "__index_level_0__", "text"])
def test_texts_come_from_the_table_of_tasks_where_episodes_state_none(copied: Callable[[str], Path], column: str):
    folder = copied("v3.0-images")
    write_table(folder / "meta/tasks.parquet", [{"task_index": n, column: f"täsk {n}"} for n in range(2)])
    path = folder / "meta/episodes/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["tasks"]), path)
    assert [episode.caption for episode in open_recordings(folder)] == [f"täsk {n % 2}" for n in range(5)]


# ------------------------------------------------------------------------------------------------- time of the frames


@pytest.mark.parametrize("layout", ["v3.0", "v2.1"])
def test_a_frame_that_is_off_by_a_millisecond_is_an_error_that_names_it(copied: Callable[[str], Path], layout: str):
    folder = copied(layout)
    path = folder / "data/chunk-000" / ("file-000.parquet" if layout == "v3.0" else "episode_000000.parquet")
    table = pq.read_table(path)
    stamps = table["timestamp"].to_numpy().copy()
    stamps[4] += 0.001
    pq.write_table(table.set_column(table.column_names.index("timestamp"), "timestamp", [stamps]), path)
    episode = open_recordings(folder)[0]
    with pytest.raises(UserError, match=r"frame 4 of episode 0 should be at 0.40100 s, but the nearest.* at 0.40000 s"):
        episode.read()


def test_a_video_shifted_by_one_frame_is_an_error(copied: Callable[[str], Path]):
    folder = copied("v2.1")
    video = folder / "videos/chunk-000/observation.images.front/episode_000001.mp4"
    write_video(video, EPISODES[1].frames[1:])
    with pytest.raises(UserError, match="frame 11 of episode 1"):
        open_recordings(folder)[1].read()


def test_rounded_times_of_long_recordings_are_tolerated():
    from mutoscope.data.sources.lerobot import EpisodeFile, frames_at
    from mutoscope.data.sources.video_times import VideoTimes
    from mutoscope.data.video.read import FrameIndex

    seconds = np.arange(200_000) / 30
    video = VideoTimes(seconds, FrameIndex(0, np.zeros(0), np.zeros(0), True))
    stamps = seconds.astype(np.float32)  # float32 rounds 6,000 s by 0.2 ms
    np.testing.assert_array_equal(frames_at(EpisodeFile(Path(), -1), stamps, video), np.arange(200_000))


def test_a_camera_at_a_multiple_of_the_rate_gives_every_nth_frame(copied: Callable[[str], Path]):
    folder = copied("v2.1")
    video = folder / "videos/chunk-000/observation.images.front/episode_000000.mp4"
    write_video(video, EPISODES[0].frames.repeat(3, axis=0), fps=30)
    holds([open_recordings(folder)[0]], EPISODES[:1])


# -------------------------------------------------------------------------------------------- datasets being written


def cut(path: Path, share: float = 0.5) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def remove_rows(path: Path, count: int) -> None:
    table = pq.read_table(path)
    pq.write_table(table.slice(0, len(table) - count), path)


V3_VIDEO = "videos/observation.images.front/chunk-001/file-000.mp4"
V2_VIDEO = "videos/chunk-002/observation.images.front/episode_000004.mp4"
DAMAGE: dict[str, tuple[str, Callable[[Path], object], list[int]]] = {
    "no-tasks": ("v3.0", lambda f: (f / "meta/tasks.parquet").unlink(), [0, 1, 2, 3, 4]),
    "missing-video": ("v3.0", lambda f: (f / V3_VIDEO).unlink(), [0, 1, 2, 3]),
    "half-a-video": ("v3.0", lambda f: cut(f / V3_VIDEO), [0, 1, 2, 3]),
    "empty-video": ("v3.0", lambda f: (f / V3_VIDEO).write_bytes(b""), [0, 1, 2, 3]),
    "missing-rows": ("v3.0", lambda f: (f / "data/chunk-001/file-000.parquet").unlink(), [0, 1, 2, 3]),
    "half-a-table": ("v3.0", lambda f: cut(f / "data/chunk-000/file-001.parquet"), [0, 1, 4]),
    "fewer-rows": ("v3.0", lambda f: remove_rows(f / "data/chunk-000/file-001.parquet", 3), [0, 1, 2, 4]),
    "more-announced": ("v3.0", lambda f: change_info(f, lambda info: info.update(total_episodes=7)), [0, 1, 2, 3, 4]),
    "v2-half-a-video": ("v2.1", lambda f: cut(f / V2_VIDEO), [0, 1, 2, 3]),
    "v2-missing-rows": ("v2.1", lambda f: (f / "data/chunk-002/episode_000004.parquet").unlink(), [0, 1, 2, 3]),
    "v2-half-a-line": ("v2.1", lambda f: cut(f / "meta/episodes.jsonl", 0.97), [0, 1, 2, 3]),
    "v2-no-tasks": ("v2.0", lambda f: (f / "meta/tasks.jsonl").unlink(), [0, 1, 2, 3, 4]),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_dataset_being_written_gives_its_whole_episodes_and_one_warning(copied: Callable[[str], Path], kind: str):
    layout, damage, whole = DAMAGE[kind]
    folder = copied(layout)
    damage(folder)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        recordings = open_recordings(folder)
        holds(recordings, [EPISODES[number] for number in whole])
    total = 7 if kind == "more-announced" else 5
    lacking = total - len(whole)
    assert len(caught) == (1 if lacking else 0)
    if lacking:
        assert f"lacks {lacking} of {total} episodes" in str(caught[0].message)


def test_a_video_cut_off_after_its_index_gives_the_episodes_before_the_cut(tmp_path: Path):
    import av

    episodes = [dot_episode(seed, 60, "t", grey=40) for seed in range(3)]
    folder = write_lerobot(tmp_path, episodes, per_file=3)
    [path] = folder.rglob("*.mp4")
    with av.open(str(path)) as source, av.open(str(tmp_path / "a.mp4"), "w", options={"movflags": "faststart"}) as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    shutil.move(tmp_path / "a.mp4", path)
    cut(path, 0.85)
    with pytest.warns(UserWarning, match="lacks 1 of 3 episodes"):
        recordings = open_recordings(folder)
    holds(recordings, episodes[:2])


def test_a_dataset_without_a_whole_episode_is_refused(copied: Callable[[str], Path]):
    folder = copied("v3.0")
    for path in folder.rglob("*.mp4"):
        path.unlink()
    with pytest.raises(UserError, match="nothing is left.*all 5 episodes are missing.*there is no file"):
        open_recordings(folder)


# ------------------------------------------------------------------------------------------------------ damaged input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codebase_version": "v1.6"}, "states version v1.6; v2.0, v2.1 and v3.0 can be read"),
        ({"fps": 0}, '"fps" as a positive number'),
        ({"fps": "ten"}, '"fps" as a positive number'),
        ({"features": []}, '"features", an object'),
        ({"data_path": None}, '"data_path"'),
        ({"data_path": "data/{episode_index.__class__}"}, "unknown field 'episode_index.__class__'"),
        ({"data_path": "data/{part}.parquet"}, "unknown field 'part'"),
        ({"data_path": "data/{"}, "is no template"),
        ({"data_path": "../{chunk_index}.parquet"}, "leads out of the dataset's folder"),
        ({"data_path": "/etc/{chunk_index}.parquet"}, "leads out of the dataset's folder"),
        ({"data_path": "a/{chunk_index:q}.parquet"}, "cannot be filled in"),
        ({"video_path": None}, '"video_path"'),
        ({"video_path": "videos/../../{video_key}.mp4"}, "leads out of the dataset's folder"),
    ],
)
def test_a_damaged_description_is_refused_in_a_sentence(
    copied: Callable[[str], Path], change: dict[str, Any], message: str
):
    folder = copied("v3.0")
    change_info(folder, lambda info: info.update(change))
    with pytest.raises(UserError, match=message):
        open_recordings(folder)


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_description_that_is_no_object_is_refused(copied: Callable[[str], Path], text: str):
    folder = copied("v2.1")
    (folder / "meta/info.json").write_text(text)
    with pytest.raises(UserError, match=r"info\.json is not"):
        open_recordings(folder)


def test_an_embedded_image_may_be_a_file_of_the_dataset_and_no_other(copied: Callable[[str], Path]):
    folder = copied("v2.1-images")
    path = folder / "data/chunk-000/episode_000000.parquet"
    (folder / "images").mkdir()
    (folder / "images/0.png").write_bytes(png(EPISODES[0].frames[0])["bytes"])
    (folder.parent / "outside.png").write_bytes(b"")
    table = pq.read_table(path)
    cells = table["observation.images.front"].to_pylist()
    cells[0], cells[1] = ({"bytes": None, "path": name} for name in ("images/0.png", "../outside.png"))
    at = table.column_names.index("observation.images.front")
    pq.write_table(table.set_column(at, "observation.images.front", [cells]), path)
    episode = open_recordings(folder)[0]
    np.testing.assert_array_equal(episode.read(0, 1)[0], EPISODES[0].frames[0])
    with pytest.raises(UserError, match="frame 1 is '../outside.png', which leads out"):
        episode.read(1, 2)


def test_a_damaged_line_within_the_list_of_episodes_is_refused(copied: Callable[[str], Path]):
    folder = copied("v2.1")
    path = folder / "meta/episodes.jsonl"
    path.write_text(path.read_text().replace('"length": 12', '"length": '))
    with pytest.raises(UserError, match=r"episodes\.jsonl: line 2 is not JSON"):
        open_recordings(folder)


def test_only_the_episodes_of_a_split_are_listed(copied: Callable[[str], Path]):
    from mutoscope.data.sources.lerobot import list_lerobot

    folder = copied("v2.1")
    assert len(list_lerobot(folder, split="train").files) == 5
    change_info(folder, lambda info: info.update(splits={"train": "0:3", "test": "3:5"}))
    assert [len(list_lerobot(folder, split=name).files) for name in ("train", "test", "all")] == [3, 2, 5]
    with pytest.raises(UserError, match="has the splits train, test; found 'dev'"):
        list_lerobot(folder, split="dev")


def test_line_ends_within_texts_do_not_end_a_line(tmp_path: Path):
    from mutoscope.data.text_files import read_json_lines

    path = write_lines(tmp_path / "a.jsonl", [{"task": "one\u2028two\u0085three"}, {"task": "four"}])
    assert [row["task"] for row in read_json_lines(path)] == ["one\u2028two\u0085three", "four"]


def test_without_pyarrow_the_error_says_what_to_install(
    dataset: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
):

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=r"needs pyarrow.*mutoscope\[data\]"):
        open_recordings(dataset("v2.1"))
