"""Recordings as users have them: folders with captions, actions and lists, and datasets that other tools wrote."""

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("av", reason="PyAV is needed to read videos")
pytest.importorskip("pyarrow", reason="pyarrow is needed to read LeRobot datasets")

from dot_recordings import (
    NAMES,
    DotEpisode,
    dot_corners,
    dot_episode,
    write_lerobot,
    write_lines,
    write_table,
    write_video,
)
from mutoscope import ClipDataset, open_recordings
from mutoscope.data.base import Item, StackedItems
from mutoscope.data.sources.action_files import read_actions
from mutoscope.data.sources.recorded_data import FolderData, LeRobotData, RecordedData
from mutoscope.data.sources.registry import kind_of, of_kind
from mutoscope.errors import UserError
from mutoscope.runs.tokenize import tokenize
from mutoscope.tokenizers.vq2d import VQ2D, VQ2DConfig

EPISODES = [dot_episode(20 + seed, length) for seed, length in enumerate([24, 31, 19])]


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """A folder of three videos without anything beside them: a.mp4, b.mp4 and run/c.mp4."""
    for name, episode in zip(("a", "b", "run/c"), EPISODES, strict=True):
        write_video(tmp_path / f"{name}.mp4", episode.frames)
    return tmp_path


def rows_of(path: Path) -> np.ndarray:
    """The actions of the first recording of a folder."""
    rows = open_recordings(path)[0].actions
    assert rows is not None
    return rows


# ------------------------------------------------------------------------------------------------------------ actions


def csv_text(rows: np.ndarray, header: Sequence[str] | None = None, delimiter: str = ",") -> str:
    lines = [delimiter.join(header)] if header else []
    return "\n".join(lines + [delimiter.join(f"{x:g}" for x in row) for row in rows]) + "\n"


ROWS = EPISODES[0].actions
FILES: dict[str, tuple[str, Callable[[Path], object], list[str]]] = {
    "npy": ("npy", lambda p: np.save(p, ROWS), ["action_0", "action_1", "action_2"]),
    "npy-int": ("npy", lambda p: np.save(p, ROWS.astype(np.int16)), ["action_0", "action_1", "action_2"]),
    "csv": ("csv", lambda p: p.write_text(csv_text(ROWS)), ["action_0", "action_1", "action_2"]),
    "csv-header": ("csv", lambda p: p.write_text(csv_text(ROWS, NAMES)), [*NAMES]),
    "csv-mark": ("csv", lambda p: p.write_text(csv_text(ROWS, NAMES), encoding="utf-8-sig"), [*NAMES]),
    "csv-utf-16": ("csv", lambda p: p.write_text(csv_text(ROWS, NAMES), encoding="utf-16"), [*NAMES]),
    "csv-windows": (
        "csv",
        lambda p: p.write_bytes(csv_text(ROWS, NAMES, ";").replace("\n", "\r\n").encode()),
        [*NAMES],
    ),
    "csv-frames": (
        "csv",
        lambda p: p.write_text(csv_text(np.column_stack([np.arange(len(ROWS)), ROWS]), ["frame", *NAMES])),
        [*NAMES],
    ),
    "json": ("json", lambda p: p.write_text(json.dumps(ROWS.tolist())), ["action_0", "action_1", "action_2"]),
    "json-names": ("json", lambda p: p.write_text(json.dumps({"names": NAMES, "actions": ROWS.tolist()})), [*NAMES]),
    "json-objects": (
        "json",
        lambda p: p.write_text(json.dumps([dict(zip(NAMES, row, strict=True)) for row in ROWS.tolist()])),
        [*NAMES],
    ),
}


@pytest.mark.parametrize("kind", FILES)
def test_actions_beside_a_video_are_read_with_their_names(videos: Path, kind: str):
    suffix, write, names = FILES[kind]
    write(videos / f"a.actions.{suffix}")
    recordings = open_recordings(videos)
    assert (recordings.format, recordings.action_names, recordings.action_kind) == ("folder", names, "continuous")
    np.testing.assert_array_equal(recordings[0].actions, ROWS)
    unknown = recordings[1].actions
    assert unknown is not None and unknown.shape == (31, len(names)) and np.isnan(unknown).all()
    assert "2 of 3 videos have no actions" in recordings.notes[0]


def test_a_single_column_is_one_action(videos: Path):
    np.save(videos / "a.actions.npy", ROWS[:, 2] > 0)
    recordings = open_recordings(videos)
    assert (recordings.action_names, recordings.action_kind) == (["action_0"], "buttons")


def test_one_row_less_than_frames_leaves_the_last_action_unknown(videos: Path):
    np.save(videos / "a.actions.npy", ROWS[:-1])
    rows = rows_of(videos)
    np.testing.assert_array_equal(rows[:-1], ROWS[:-1])
    assert len(rows) == 24 and np.isnan(rows[-1]).all()


@pytest.mark.parametrize("count", [22, 25, 48])
def test_any_other_number_of_rows_is_an_error_that_names_file_rows_and_frames(videos: Path, count: int):
    np.save(videos / "a.actions.npy", np.zeros((count, 2)))
    with pytest.raises(UserError, match=rf"a\.actions\.npy holds {count} rows of actions for 24 frames"):
        open_recordings(videos)


BAD_ACTIONS: dict[str, tuple[str, bytes, str]] = {
    "words": ("csv", b"left,right\n1,0\nup,1\n", r"row 2 of 2, column 1 \('left'\) is 'up', which is no number"),
    "ragged": ("csv", b"1,0\n1\n", "row 2 of 2 has 1 numbers, expected 2"),
    "empty": ("csv", b"", "holds no rows"),
    "same-names": ("csv", b"a,a\n1,2\n", "name its columns differently"),
    "latin-1": ("csv", "r\xfcck\n1\n".encode("latin-1"), "is not UTF-8 text"),
    "infinite": ("csv", b"1\ninf\n", "row 2 of 2, column 1 is inf"),
    "not-json": ("json", b"[[1, 2]", "holds no actions"),
    "number": ("json", b"3", "holds no actions"),
    "nested": ("json", b"[[[1]]]", "which is no number"),
    "names": ("json", b'{"names": [1], "actions": [[1]]}', '"names" must be a list of texts'),
    "not-npy": ("npy", b"words", "holds no actions"),
}


@pytest.mark.parametrize("kind", BAD_ACTIONS)
def test_a_damaged_file_of_actions_is_refused_in_a_sentence(videos: Path, kind: str):
    suffix, data, message = BAD_ACTIONS[kind]
    (videos / f"a.actions.{suffix}").write_bytes(data)
    with pytest.raises(UserError, match=message):
        open_recordings(videos)


def test_objects_in_arrays_are_never_loaded(videos: Path):
    np.save(videos / "a.actions.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="holds no actions"):
        open_recordings(videos)


def test_names_kind_and_rate_are_stated_once_for_a_folder(videos: Path):
    for name, episode in zip(("a", "b", "run/c"), EPISODES, strict=True):
        np.save(videos / f"{name}.actions.npy", episode.actions[:, 2:])
    (videos / "actions.json").write_text(json.dumps({"names": ["jump"], "kind": "buttons", "fps": 9}))
    recordings = open_recordings(videos)
    assert (recordings.action_names, recordings.action_kind, recordings.fps) == (["jump"], "buttons", 9)
    assert recordings.actions is not None and recordings.actions.fps == 9


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"names": ["a"]}, "has 3 columns, but the actions are a"),
        ({"kind": "buttons"}, "holds numbers beside 0 and 1, but actions.json says buttons"),
        ({"kind": "levers"}, '"kind" is one of buttons, continuous'),
        ({"names": ["a", "a", "b"]}, "list of different texts"),
        ({"fps": -1}, '"fps" must be a positive number'),
        ([1], "must be an object"),
    ],
)
def test_statements_that_do_not_fit_are_refused(videos: Path, stated: object, message: str):
    np.save(videos / "a.actions.npy", ROWS)
    (videos / "actions.json").write_text(json.dumps(stated))
    with pytest.raises(UserError, match=message):
        open_recordings(videos)


def test_columns_are_matched_by_name(videos: Path):
    (videos / "a.actions.csv").write_text(csv_text(ROWS, NAMES))
    (videos / "b.actions.csv").write_text(csv_text(EPISODES[1].actions[:, ::-1], NAMES[::-1]))
    np.testing.assert_array_equal(open_recordings(videos)[1].actions, EPISODES[1].actions)
    (videos / "b.actions.csv").write_text(csv_text(EPISODES[1].actions, ["x", "y", "z"]))
    with pytest.raises(UserError, match=r"b\.actions\.csv names the actions x, y, z; others are named dx, dy, press"):
        open_recordings(videos)


def test_two_files_of_actions_may_not_contradict_each_other(videos: Path):
    np.save(videos / "a.actions.npy", ROWS)
    (videos / "a.actions.csv").write_text(csv_text(ROWS))
    np.testing.assert_array_equal(rows_of(videos), ROWS)
    (videos / "a.actions.csv").write_text(csv_text(ROWS + 1))
    with pytest.raises(UserError, match=r"list of actions of .*a\.mp4 differs"):
        open_recordings(videos)


def test_a_video_cut_off_with_actions_is_skipped_and_counted(videos: Path):
    for name, episode in zip(("a", "b", "run/c"), EPISODES, strict=True):
        np.save(videos / f"{name}.actions.npy", episode.actions)
    data = (videos / "b.mp4").read_bytes()
    (videos / "b.mp4").write_bytes(data[: len(data) // 2])
    with pytest.warns(UserWarning, match="lacks 1 of 3 videos") as caught:
        assert [len(episode.read()) for episode in open_recordings(videos)] == [24, 19]
    assert len(caught) == 1


def test_an_empty_cell_is_an_unknown_number_and_words_of_truth_are_buttons(tmp_path: Path):
    path = tmp_path / "a.actions.csv"
    path.write_text("up,down\ntrue,\nFalse,0.5\n")
    np.testing.assert_array_equal(read_actions(path).rows, np.array([[1, np.nan], [0, 0.5]], np.float32))


# --------------------------------------------------------------------------------------------------- captions, classes


def test_classes_are_sub_folders_and_captions_files_beside(videos: Path):
    (videos / "a.txt").write_text("ein Läufer", encoding="utf-8")
    recordings = open_recordings(videos)
    assert [episode.caption for episode in recordings] == ["ein Läufer", "", ""]
    assert [episode.label for episode in recordings] == [None, None, "run"]
    assert recordings.class_names == ["run"] and recordings.fps == 10 and recordings.actions is None


ENTRIES = [
    {"file_name": "a.mp4", "text": "ein «Läufer»", "label": "jump"},
    {"file_name": "run/c.mp4", "text": "two, with a comma", "label": "fall"},
]


def write_metadata(folder: Path, suffix: str, rows: Sequence[dict[str, Any]]) -> Path:
    path = folder / f"metadata.{suffix}"
    if suffix == "parquet":
        return write_table(path, rows)
    if suffix == "jsonl":
        return write_lines(path, rows)
    names = list(rows[0])
    lines = [",".join(names)] + [",".join(f'"{row[name]}"' for name in names) for row in rows]
    path.write_text("\n".join(lines), encoding="utf-8-sig")
    return path


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("column", ["text", "caption", "prompt"])
def test_a_list_of_files_gives_captions_and_classes(videos: Path, suffix: str, column: str):
    write_metadata(videos, suffix, [{column if k == "text" else k: v for k, v in row.items()} for row in ENTRIES])
    recordings = open_recordings(videos)
    assert [episode.caption for episode in recordings] == [ENTRIES[0]["text"], "", ENTRIES[1]["text"]]
    assert [episode.label for episode in recordings] == ["jump", None, "fall"]
    assert recordings.class_names == ["fall", "jump"] and "1 of 3 videos are not in the metadata" in recordings.notes[0]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_numbers_are_classes_in_their_own_order(videos: Path, suffix: str):
    rows = [{"file_name": name, "label": label} for name, label in [("a.mp4", 10), ("b.mp4", 9), ("run/c.mp4", 10)]]
    write_metadata(videos, suffix, rows)
    recordings = open_recordings(videos)
    assert recordings.class_names == ["9", "10"] and [e.label for e in recordings] == ["10", "9", "10"]


def test_a_list_names_files_of_actions_or_holds_them(videos: Path):
    np.save(videos / "left.npy", ROWS)
    rows = [
        {"file_name": "a.mp4", "actions": "left.npy"},
        {"file_name": "b.mp4", "actions": EPISODES[1].actions.tolist()},
    ]
    write_metadata(videos, "jsonl", rows)
    recordings = open_recordings(videos)
    np.testing.assert_array_equal(recordings[0].actions, ROWS)
    np.testing.assert_array_equal(recordings[1].actions, EPISODES[1].actions)


def test_a_list_below_a_sub_folder_names_files_from_there(videos: Path):
    write_metadata(videos / "run", "csv", [{"file_name": "c.mp4", "text": "runs"}])
    assert [episode.caption for episode in open_recordings(videos)] == ["", "", "runs"]


def test_a_file_beside_a_video_wins_and_may_not_contradict_the_list(videos: Path):
    write_metadata(videos, "jsonl", [{"file_name": "a.mp4", "text": ""}, {"file_name": "b.mp4", "text": "the same"}])
    (videos / "a.txt").write_text("beside")
    (videos / "b.txt").write_text("the  same\n")
    assert [episode.caption for episode in open_recordings(videos)][:2] == ["beside", "the  same"]
    (videos / "b.txt").write_text("another")
    with pytest.raises(UserError, match=r"caption of .*b\.mp4 differs.*b\.txt: 'another'.*metadata\.jsonl: 'the same'"):
        open_recordings(videos)


def test_files_that_are_listed_and_missing_are_one_warning(videos: Path):
    write_metadata(videos, "csv", [{"file_name": f"{name}.mp4", "text": "x"} for name in ("a", "p", "q")])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        recordings = open_recordings(videos)
    [warning] = [str(w.message) for w in caught]
    assert "lacks 2 of 5 videos" in warning and "p.mp4: metadata.csv names it, but there is no such file" in warning
    assert len(recordings) == 3


@pytest.mark.parametrize("name", ["../a.mp4", "/etc/passwd"])
def test_a_list_does_not_lead_out_of_the_folder(videos: Path, name: str):
    write_metadata(videos, "jsonl", [{"file_name": name}])
    with pytest.raises(UserError, match=r"metadata\.jsonl: row 1 names .* which is not in"):
        open_recordings(videos)


def test_a_table_of_something_else_is_noted(videos: Path):
    (videos / "metadata.csv").write_text("id,weather\n1,rain\n")
    assert "has no column file_name (columns: id, weather)" in open_recordings(videos).notes[0]


@pytest.mark.parametrize("prompts", ["prompts.txt", "prompt.txt", "captions.txt"])
def test_a_list_of_videos_and_one_of_prompts_belong_together_by_line(videos: Path, prompts: str):
    (videos / "videos.txt").write_text("run/c.mp4\r\na.mp4\n\n")
    (videos / prompts).write_text("läuft\nsteht, lange\n", encoding="utf-8")
    recordings = open_recordings(videos)
    assert [(Path(episode.name).name, episode.caption) for episode in recordings] == [
        ("a.mp4", "steht, lange"),
        ("c.mp4", "läuft"),
    ]
    assert "1 of 3 videos are not in the list" in recordings.notes[0]
    (videos / prompts).write_text("one\ntwo\nthree\n")
    with pytest.raises(UserError, match=r"videos\.txt has 2 lines and .* has 3"):
        open_recordings(videos)


def test_the_folder_that_holds_all_listed_videos_is_no_class(tmp_path: Path):
    write_video(tmp_path / "videos/a.mp4", EPISODES[0].frames)
    (tmp_path / "videos.txt").write_text("videos/a.mp4")
    (tmp_path / "prompts.txt").write_text("a dot")
    recordings = open_recordings(tmp_path)
    assert (recordings.class_names, recordings[0].label, recordings[0].caption) == ([], None, "a dot")


def test_a_single_video_is_one_recording(videos: Path):
    np.save(videos / "a.actions.npy", ROWS)
    recordings = open_recordings(videos / "a.mp4")
    assert len(recordings) == 1 and recordings.action_kind == "continuous"


def test_paths_without_recordings_are_refused(tmp_path: Path, videos: Path):
    from PIL import Image

    with pytest.raises(UserError, match="there is no folder"):
        open_recordings(tmp_path / "none")
    with pytest.raises(UserError, match="has no cameras by name"):
        open_recordings(videos, camera="front")
    (tmp_path / "images").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "images/a.png")
    with pytest.raises(UserError, match="holds images and no videos"):
        open_recordings(tmp_path / "images")


def test_a_dataset_in_its_own_layout_is_recordings_too(miniature: Callable[[str], Path]):
    with pytest.warns(UserWarning):
        recordings = open_recordings(miniature("bair"), camera="image_main")
    assert recordings.format == "bair" and recordings.camera == "image_main" and len(recordings.action_names) == 4
    with pytest.raises(UserError, match="its cameras are image_aux1, image_main"):
        open_recordings(miniature("bair"), camera="top")


# ------------------------------------------------------------------------------------- action t leads to frame t + 1


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, list[DotEpisode]]]:
    """Folders of the same episodes in three formats, by kind of data."""
    base = tmp_path_factory.mktemp("dots")
    long = [dot_episode(40 + seed, length) for seed, length in enumerate([70, 45, 90])]
    for number, episode in enumerate(long):
        write_video(base / f"folder/{number}.mp4", episode.frames)
        np.save(base / f"folder/{number}.actions.npy", episode.actions)
    write_lerobot(base / "lerobot", long, per_file=3)
    write_lerobot(base / "images", long, embedded=True)
    return {name: (str(base / name), long) for name in ("folder", "lerobot", "images")}


def check_steps(clip: Item, episodes: Sequence[DotEpisode], stride: int) -> None:
    """The dot of a clip moves by the actions of the clip, and both are those of its episode."""
    corners, actions = dot_corners(clip["video"].numpy()), clip["actions"].numpy()
    np.testing.assert_allclose(corners[:-1] + actions[:-1, :2], corners[1:], atol=0.6)
    episode = episodes[int(str(clip["path"]).replace(".mp4", "").split("/")[-1].split("episode ")[-1])]
    step = stride * int(clip["interval"])
    at = int(clip["start"]) + step * np.arange(len(corners))
    assert at[-1] < len(episode)  # within the episode
    np.testing.assert_allclose(corners, episode.corners[at], atol=0.6)
    for row, first in zip(actions, at, strict=True):
        assert row[2] == episode.actions[first : first + step, 2].max()  # a button counts if it was pressed once


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("kind", ["folder", "lerobot", "images"])
@pytest.mark.parametrize("options", [{}, {"windows": 3, "window_choice": "random"}, {"windows": 4}], ids=str)
def test_the_dot_moves_by_its_action_at_every_stride(sources: dict, kind: str, stride: int, options: dict):
    path, episodes = sources[kind]
    clips = ClipDataset(path, 8, 32, 48, stride, **options)
    assert clips.actions is not None and clips.actions.reduction == ("sum", "sum", "max")
    for item in range(0, len(clips), 3):
        check_steps(clips[item], episodes, stride)


@pytest.mark.parametrize("kind", ["folder", "lerobot"])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_dot_moves_by_its_action_at_every_interval(sources: dict, kind: str, stride: int):
    path, episodes = sources[kind]
    clips = ClipDataset(path, 8, 32, 48, stride, max_interval=5, seed=stride)
    seen = set()
    for item in range(len(clips)):
        check_steps(clips[item], episodes, stride)
        seen.add(int(clips[item]["interval"]))
    assert len(seen) > 2


def test_axes_are_joined_by_their_mean_where_that_is_chosen(sources: dict):
    path, episodes = sources["lerobot"]
    clip = ClipDataset(path, 8, 32, 48, 4, windows=1, action_axes="mean")[0]
    rows = episodes[0].actions[:32].reshape(8, 4, 3)
    np.testing.assert_allclose(clip["actions"], np.column_stack([rows.mean(1)[:, :2], rows.max(1)[:, 2]]), atol=1e-6)


def test_a_repeated_video_has_no_action_from_its_end_to_its_beginning(videos: Path):
    np.save(videos / "run/c.actions.npy", EPISODES[2].actions)
    clip = ClipDataset(videos / "run/c.mp4", 30, 32, 48, short="loop")[0]
    actions = clip["actions"].numpy()
    assert np.isnan(actions[18]).all()
    np.testing.assert_array_equal(actions[:18], EPISODES[2].actions[:18])
    np.testing.assert_array_equal(actions[19:], EPISODES[2].actions[:11])


def test_clips_with_actions_are_not_mirrored(sources: dict):
    with pytest.raises(UserError, match="must not be mirrored"):
        ClipDataset(sources["folder"][0], 8, 32, 48, mirrored=True)


@given(st.integers(1, 6), st.integers(0, 9))
def test_random_windows_are_fixed_by_seed_and_video(sources: dict, windows: int, seed: int):
    path, episodes = sources["lerobot"]
    first, again = (ClipDataset(path, 8, 32, 48, windows=windows, window_choice="random", seed=seed) for _ in range(2))
    assert len(first) == 3 * windows
    starts = [[list(clips._starts(number)) for number in range(3)] for clips in (first, again)]
    assert starts[0] == starts[1]
    for row, episode in zip(starts[0], episodes, strict=True):
        assert row == sorted(row) and row[0] >= 0 and row[-1] <= len(episode) - 8


def test_episodes_too_short_for_a_clip_are_skipped_and_never_replaced(tmp_path: Path):
    write_lerobot(tmp_path, [dot_episode(1, 5), dot_episode(2, 20)], embedded=True)
    with pytest.warns(UserWarning, match="1 of 2 videos .* are shorter than 8 frames"):
        clips = ClipDataset(tmp_path, 8, 32, 48, windows=3)
    assert len(clips) == 3 and len(clips.skipped) == 1


# ------------------------------------------------------------------------------------------------------- training data


def data_of(kind: str, path: str, **options: Any) -> RecordedData:
    cls = FolderData if kind == "folder" else LeRobotData
    return cls(path=path, num_frames=6, height=32, width=48, **options)


@pytest.mark.parametrize("kind", ["folder", "lerobot"])
def test_recordings_are_training_data_that_describe_their_actions(sources: dict, kind: str):
    path, _ = sources[kind]
    assert kind_of(path) == kind
    data = data_of(kind, path, frame_stride=2, windows=4)
    source, survey = data.open(), data.survey()
    assert source.num_clips == 12 and source.fields["actions"].shape == (6, 3) and source.fields["actions"].per_frame
    assert source.actions is not None and source.actions.frame_stride == 2
    described = data.describe()
    assert json.loads(json.dumps(described)) == described  # plain JSON
    assert described["actions"] == source.actions.to_json() and described["windows"] == 4
    assert (survey.height, survey.width, survey.fps, survey.num_videos, survey.frames) == (32, 48, 10, 3, (45, 70))
    assert survey.actions is not None and survey.actions.names == tuple(source.actions.names)


@pytest.mark.parametrize("kind", ["folder", "lerobot"])
def test_actions_stay_with_their_frames_through_batches_and_a_token_cache(sources: dict, tmp_path: Path, kind: str):
    path, episodes = sources[kind]
    data = data_of(kind, path, frame_stride=3, windows=3, window_choice="random")
    source = data.open()
    torch.manual_seed(0)
    tokenizer = VQ2D(VQ2DConfig(8, (1, 2), 1, 16, 4, 11, num_groups=8))
    cache = tokenize(
        tokenizer, "vq", source, tmp_path / "cache", num_clips=99, data=data.origin(), fields=("actions",), batch_size=4
    )
    batch, cached = source[[7, 0, 4]], cache[[7, 0, 4]]
    torch.testing.assert_close(batch["actions"], cached["actions"])
    for number in range(3):
        fields: Item = {name: batch[name][number] for name in ("video", "actions", "path", "start", "interval")}
        check_steps(fields, episodes, 3)
    assert cache.info.data["actions"] == data.describe()["actions"]
    again = tokenize(
        tokenizer, "vq", data.open(), tmp_path / "cache", num_clips=99, data=data.origin(), fields=("actions",)
    )
    assert again.num_clips == cache.num_clips == 9


def test_a_camera_is_a_setting_of_the_data(tmp_path: Path):
    write_lerobot(tmp_path, EPISODES[:2], cameras=("images.top", "images.wrist"))
    data = data_of("lerobot", str(tmp_path), camera="wrist")
    assert "images.wrist" in data.open()[[0]]["path"][0] and data.describe()["camera"] == "wrist"


def test_windows_of_a_folder_are_kept_from_a_paper_that_sets_them(tmp_path: Path):
    from mutoscope.data.sources.datasets.source import DatasetData

    assert of_kind(DatasetData(kind="ucf101", windows=5), "folder", "x") == FolderData(path="x", windows=5)
    assert of_kind(DatasetData(kind="ucf101"), "folder", "x") == FolderData(path="x")
    assert of_kind(FolderData(path="y"), "ucf101", "x") == DatasetData(kind="ucf101", path="x")


@pytest.mark.parametrize(
    "options",
    [
        {"windows": 0},
        {"window_choice": "random"},
        {"max_interval": 0},
        {"clip_step": 0},
        {"clip_step": 2, "windows": 2},
    ],
)
def test_settings_that_do_not_fit_are_refused(options: dict):
    with pytest.raises(UserError):
        FolderData(path="x", **options)


def test_opened_readers_travel_to_loader_workers(sources: dict):
    from mutoscope.data.loader import make_loader

    source = data_of("lerobot", sources["lerobot"][0]).open()
    source[[0]]
    assert isinstance(source, StackedItems)
    [batch] = make_loader(source, [[0, 5]], num_workers=1)
    torch.testing.assert_close(batch["video"], source[[0, 5]]["video"])


# ------------------------------------------------------------------------------------ written by the lerobot package


def test_datasets_of_the_lerobot_package_hold_what_went_in(recordings_dir: Path):
    folders = sorted(path.parent for path in recordings_dir.glob("*/expected.json"))
    assert folders
    for folder in folders:
        expected = json.loads((folder / "expected.json").read_text())
        for camera in expected["cameras"]:
            recordings = open_recordings(folder, camera=camera)
            assert recordings.cameras == expected["cameras"] and recordings.fps == expected["fps"]
            assert len(recordings) == len(expected["episodes"])
            for episode, wanted in zip(recordings, expected["episodes"], strict=True):
                assert (episode.caption, episode.num_frames) == (wanted["task"], wanted["length"])
                np.testing.assert_array_equal(episode.actions, np.float32(wanted["action"]))
                frames = episode.read()
                assert len(frames) == wanted["length"]
                check_keyframes(frames, wanted["spots"])


def check_keyframes(frames: np.ndarray, spots: Sequence[Sequence[float]]) -> None:
    """Every second frame is a keyframe, which shows the square within one pixel; the codec blurs the others."""
    for frame, (x, y) in list(zip(frames, spots, strict=True))[::2]:
        distance = np.abs(frame - np.median(frame, axis=(0, 1))).sum(-1)
        ys, xs = np.nonzero(distance > 0.5 * distance.max())
        assert abs(xs.mean() + 0.5 - x) <= 1 and abs(ys.mean() + 0.5 - y) <= 1
