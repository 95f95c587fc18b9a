"""Windows at drawn frame intervals and with temporal gaps: frames, actions, borders, caches, held-back clips."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("av", reason="PyAV is needed to read videos")
pytest.importorskip("pyarrow", reason="pyarrow is needed to read LeRobot datasets")

from dot_recordings import DotEpisode, dot_corners, dot_episode, write_lerobot, write_video
from mutoscope.commands.train import resolve_recipe, with_flags
from mutoscope.data.base import Item
from mutoscope.data.held_back import split_clips
from mutoscope.data.sources.recorded_data import FolderData, LeRobotData, RecordedClips, RecordedData
from mutoscope.data.sources.registry import from_description
from mutoscope.data.sources.tokens import TokenCache, TokensData
from mutoscope.data.sources.windows import MIN_FRAMES_WITH_GAP, TimeVariation, Window
from mutoscope.errors import UserError
from mutoscope.recipes.own_data import magi, nova
from mutoscope.runs.adapt import adapted
from mutoscope.runs.checks import check_gaps
from mutoscope.runs.networks import tokenizer_stage
from mutoscope.runs.tokenize import tokenize
from mutoscope.runs.validation import plainly_held_back
from mutoscope.tokenizers.vq2d import VQ2D, VQ2DConfig
from mutoscope.training.config import LoopConfig

LENGTHS = (60, 45, 80, 33)
NUM_FRAMES = 5
FIELDS = ("label", "actions", "interval", "history_only", "history")  # those that MAGI reads


@cache
def episodes() -> list[DotEpisode]:
    return [dot_episode(60 + seed, length) for seed, length in enumerate(LENGTHS)]


@cache
def recorded(kind: str) -> str:
    """The same episodes as a folder of videos with actions beside them, or as a LeRobot dataset of images."""
    folder = Path(mkdtemp(prefix="dots-"))
    if kind == "lerobot":
        return str(write_lerobot(folder, episodes(), embedded=True))
    for number, episode in enumerate(episodes()):
        write_video(folder / f"{number}.mp4", episode.frames)
        np.save(folder / f"{number}.actions.npy", episode.actions)
    return str(folder)


def data_of(kind: str, **options: Any) -> RecordedData:
    cls = FolderData if kind == "folder" else LeRobotData
    return cls(**{"path": recorded(kind), "num_frames": NUM_FRAMES, "height": 32, "width": 48} | options)


def opened(data: RecordedData) -> RecordedClips:
    source = data.open()
    assert isinstance(source, RecordedClips)
    return source


def joined(rows: np.ndarray, axes: str) -> np.ndarray:
    """(s, 3) rows between two frames of a clip as one: dx and dy by sum or mean, the button by maximum."""
    return np.append(rows[:, :2].sum(0) if axes == "sum" else rows[:, :2].mean(0), rows[:, 2].max())


def check_clip(clip: Item, episode: DotEpisode, step: int, window: int, gap: int, axes: str = "sum") -> None:
    """Frames are `step` apart from `window` on, the first one `gap` steps earlier; row t of the actions leads from
    frame t to t + 1, and is unknown across the gap.
    """
    at = window + step * np.arange(NUM_FRAMES)
    at[0] -= gap * step
    assert at[0] >= 0 and at[-1] < len(episode) and clip["start"] == at[0]
    np.testing.assert_allclose(dot_corners(clip["video"].numpy()), episode.corners[at], atol=0.6)
    actions = clip["actions"].numpy()
    assert np.isnan(actions[0]).all() == (gap > 0)
    for t in range(gap > 0, NUM_FRAMES):
        np.testing.assert_allclose(actions[t], joined(episode.actions[at[t] : at[t] + step], axes), atol=1e-5)
    if axes == "sum":  # the dot moves by its actions
        moved = episode.corners[at][1:] - episode.corners[at][:-1]
        np.testing.assert_allclose(actions[gap > 0 : -1, :2], moved[gap > 0 :], atol=1e-5)


VARIATIONS = st.fixed_dictionaries(
    {
        "intervals": st.lists(st.integers(1, 5), max_size=3).map(tuple),
        "max_gap": st.integers(0, 9),
        "gap_share": st.sampled_from([0.0, 0.5, 1.0]),
        "frame_stride": st.integers(1, 3),
        "clip_step": st.sampled_from([None, 3, 7]),
        "action_axes": st.sampled_from(["sum", "mean"]),
        "seed": st.integers(0, 2**64 - 1),
    }
)


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(["folder", "lerobot"]), VARIATIONS, st.randoms(use_true_random=False))
def test_each_action_leads_to_the_next_frame_at_every_interval_and_gap(kind: str, options: dict, random: Any):
    """Also: the same seed gives the same windows, and plain clips are those of data without variation."""
    data = data_of(kind, **options)
    source, again, plain = opened(data), opened(data), opened(replace(data, intervals=(), max_gap=0))
    assert ("interval" in source.fields, "history_only" in source.fields) == (bool(data.intervals), data.max_gap > 0)
    for item in random.sample(range(len(source.clips)), 4):
        clip, same = source.clips[item], again.clips[item]
        number, window = clip["episode"], plain.clips[item]["start"]
        step = data.frame_stride * clip["interval"]
        history_only = clip.get("history_only", torch.zeros(NUM_FRAMES, dtype=torch.bool))
        assert not history_only[2:].any() and not history_only[0]
        gap = (window - clip["start"]) // step
        assert 0 <= gap <= data.max_gap and bool(history_only[1]) == (gap > 0)
        check_clip(clip, episodes()[number], step, window, gap, data.action_axes)
        for name in clip:
            np.testing.assert_array_equal(clip[name], same[name])
        check_interval_fits(data, clip["interval"], len(episodes()[number]) - window)
        for name, value in source.plain_dataset[item].items():
            if name != "history_only":
                np.testing.assert_array_equal(value, plain.clips[item][name])


def check_interval_fits(data: RecordedData, interval: int, available: int) -> None:
    """The interval is one of those set, or the largest that fits, or 1 where none does."""
    span = (NUM_FRAMES - 1) * data.frame_stride
    fitting = [n for n in data.intervals if n * span < available]
    assert interval in fitting or (not fitting and interval == 1)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 60), st.integers(0, 99))
def test_a_window_whose_interval_does_not_fit_takes_the_largest_one_that_does(
    intervals: list[int], start: int, seed: int
):
    variation = TimeVariation(tuple(intervals))
    rng, same = np.random.default_rng(seed), np.random.default_rng(seed)
    found = variation.draw(Window(start), NUM_FRAMES, 1, 81, rng)
    drawn = intervals[int(same.integers(len(intervals)))]
    fitting = [n for n in intervals if start + 4 * n < 81]
    assert found.interval == (drawn if drawn in fitting else max(fitting, default=1)) and found.start == start


def test_all_intervals_and_gaps_come_with_the_set_shares():
    data = data_of("lerobot", intervals=(1, 2, 3), max_gap=4, clip_step=1)
    source = opened(data)
    clips = [source.clips._window(number, window, torch.Generator()) for number in (0, 2) for window in range(12, 45)]
    counts = np.bincount([clip.interval for clip in clips], minlength=4)
    assert (counts[1:] > 8).all() and {clip.gap for clip in clips} == {0, 1, 2, 3, 4}
    assert 0.3 < np.mean([clip.gap > 0 for clip in clips]) < 0.7
    assert all(clip.gap == 0 for clip in [source.clips._window(n, 0, torch.Generator()) for n in range(4)])  # no room


@cache
def tokenizer() -> VQ2D:
    torch.manual_seed(0)
    return VQ2D(VQ2DConfig(8, (1, 2), 1, 16, 4, 11, num_groups=8))


def filled(data: RecordedData, out: Path, **options: Any) -> TokenCache:
    values = {"num_clips": 99, "data": data.origin(), "fields": FIELDS, "batch_size": 7} | options
    return tokenize(tokenizer(), "vq", values.pop("source", data.open()), out, **values)


@pytest.mark.parametrize("kind", ["folder", "lerobot"])
def test_a_cache_holds_what_its_source_gives_and_is_recognised(tmp_path: Path, kind: str):
    data = data_of(kind, intervals=(1, 3), max_gap=5, clip_step=6)
    found, source = filled(data, tmp_path / "cache"), data.open()
    rows = range(found.num_clips or 0)
    assert {"interval", "history_only", "actions", "episode"} <= found.fields.keys()
    for name in ("interval", "history_only", "actions", "episode", "label"):
        torch.testing.assert_close(cast(Any, found[rows])[name], cast(Any, source[rows])[name], equal_nan=True)
    video = tokenizer().from_uint8(source[rows]["video"])
    assert torch.equal(found[rows]["tokens"], tokenizer().encode(video))
    assert filled(data, tmp_path / "cache").num_clips == found.num_clips  # opened as it is
    assert from_description(TokensData(path="x"), found.info.data) == data
    for other in ({"intervals": (1, 2)}, {"max_gap": 4}, {"gap_share": 0.4}):
        with pytest.raises(UserError, match="other clips"):
            filled(replace(data, **other), tmp_path / "cache")


def test_a_cache_of_an_earlier_version_is_still_one_of_the_same_clips(tmp_path: Path):
    data = data_of("lerobot")
    assert {"intervals", "max_gap", "gap_share", "tasks_as_classes"}.isdisjoint(cast(dict, data.origin()["settings"]))
    filled(data, tmp_path / "cache")
    with pytest.raises(UserError, match="other clips"):
        filled(replace(data, intervals=(2,)), tmp_path / "cache")


LOOP = LoopConfig(1, 1, validation_share=0.25)


def rows_of(source: Any, name: str) -> list[int]:
    return source[range(source.num_clips)][name].tolist()


def test_held_back_clips_have_the_interval_1_and_no_gap(tmp_path: Path):
    data = data_of("lerobot", intervals=(2, 3), max_gap=5, gap_share=1.0, clip_step=6)
    source = data.open()
    split = split_clips(source, 0.25)
    assert split is not None and set(rows_of(split.held_back, "interval")) == {1}
    assert not split.held_back[[2]]["history_only"].any() and set(rows_of(split.training, "interval")) != {1}
    [number] = set(rows_of(split.held_back, "episode"))
    assert number not in rows_of(split.training, "episode")

    count = source.num_clips or 0
    cached = filled(data, tmp_path / "cache", source=plainly_held_back(source, LOOP, count))
    again = split_clips(cached, 0.25)
    assert again is not None and again.indices.tolist() == split.indices.tolist()  # as without a cache
    assert set(rows_of(again.held_back, "interval")) == {1} and not again.held_back[[2]]["history_only"].any()
    assert rows_of(again.training, "interval") == rows_of(split.training, "interval")


def test_of_a_cache_filled_without_a_loop_the_plain_clips_are_held_back(tmp_path: Path):
    data = data_of("lerobot", intervals=(1, 2), max_gap=5, clip_step=3)
    cached = filled(data, tmp_path / "cache")
    split = split_clips(cached, 0.25)
    assert split is not None and split.held_back.num_clips and set(rows_of(split.held_back, "interval")) == {1}
    assert not torch.tensor(rows_of(split.held_back, "history_only")).any()
    held = set(rows_of(split.held_back, "episode"))
    assert len(held) == 1 and not held & set(rows_of(split.training, "episode"))


def test_sources_without_variation_stay_themselves():
    source = data_of("lerobot").open()
    assert source.plain() is source and plainly_held_back(source, LOOP, 99) is source
    chosen = source.among(np.arange(3))
    assert chosen.plain() is chosen
    varied = data_of("lerobot", intervals=(2,)).open().among(np.array([3, 1]))
    assert rows_of(varied, "interval") == [2, 2] and rows_of(varied.plain(), "interval") == [1, 1]
    assert rows_of(varied.plain(np.array([1])), "interval") == [2, 1]


def test_examples_of_contact_sheets_are_plain():
    examples = data_of("lerobot", intervals=(2, 3), max_gap=5, gap_share=1.0).examples(4)
    assert set(examples["interval"].tolist()) == {1} and not examples["history_only"].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"intervals": (0,)}, "intervals must be at least 1 and, times frame_stride, at most 25"),
        ({"intervals": (26,)}, "found interval 26 at frame_stride 1"),
        ({"intervals": (1, 9), "frame_stride": 3}, "found interval 9 at frame_stride 3"),
        ({"intervals": (2,), "max_interval": 2}, "intervals and max_interval both"),
        ({"max_gap": -1}, "max_gap must be at least 0"),
        ({"gap_share": 1.5}, "gap_share must be at least 0 and at most 1"),
        ({"max_gap": 1, "num_frames": MIN_FRAMES_WITH_GAP - 1}, "max_gap must be 0 for clips of fewer than 3 frames"),
    ],
)
def test_impossible_variations_are_refused_in_a_sentence(options: dict, message: str):
    with pytest.raises(UserError, match=message):
        FolderData(**{"path": "x", "num_frames": 8} | options)


def test_settings_survive_json():
    data = FolderData(path="x", intervals=(1, 2), max_gap=3, gap_share=0.25)
    assert replace(data, intervals=cast("tuple[int, ...]", [1, 2])) == data
    settings = cast(Sequence[int], cast(dict, data_of("lerobot", intervals=(1, 2)).origin()["settings"])["intervals"])
    assert settings == [1, 2]


# ------------------------------------------------------------------------------------------------------------- recipes


def test_the_tokenizer_that_is_trained_first_sees_no_gaps():
    recipe = replace(magi(), data=data_of("lerobot", intervals=(1, 2), max_gap=8))
    first = tokenizer_stage(recipe)
    assert first is not None and isinstance(first.data, RecordedData)
    assert (first.data.max_gap, first.data.intervals, first.data.num_frames) == (0, (1, 2), 2)


def test_models_that_cannot_tell_a_gap_are_refused_and_those_without_intervals_warned():
    gaps = replace(nova(), data=data_of("lerobot", max_gap=8))
    with pytest.raises(
        UserError, match=r"data\.max_gap is for models that know which frame comes after a temporal gap"
    ):
        check_gaps(gaps)
    check_gaps(replace(magi(), data=gaps.data))
    varied = data_of("lerobot", intervals=(1, 2))
    warned = "several frame intervals, which this model does not read"
    assert any(warned in text for text in adapted(replace(nova(), data=varied)).warnings)
    assert not any(warned in text for text in adapted(replace(magi(), data=varied)).warnings)


def test_a_resumed_run_takes_the_flags_that_began_it():
    flags = [
        "--data",
        recorded("lerobot"),
        "--data.intervals",
        "1",
        "2",
        "--data.max-gap",
        "4",
        "--data.tasks-as-classes",
    ]
    recipe = resolve_recipe("magi", flags)
    data = recipe.data
    assert isinstance(data, LeRobotData)
    assert (data.intervals, data.max_gap, data.gap_share, data.tasks_as_classes) == ((1, 2), 4, 0.5, True)
    assert with_flags(recipe, "magi", flags) == recipe


# ---------------------------------------------------------------------------------------------------- tasks as classes


def task_episodes(tasks: Sequence[str]) -> list[DotEpisode]:
    return [dot_episode(seed, 12, task) for seed, task in enumerate(tasks)]


@pytest.mark.parametrize("version", ["v3.0", "v2.1"])
def test_tasks_are_classes_in_the_order_of_their_numbers(tmp_path: Path, version: str):
    tasks = ["push", "lift", "push", "drop"]
    path = str(write_lerobot(tmp_path, task_episodes(tasks), version=version, embedded=True))
    plain = LeRobotData(path=path, num_frames=12, height=32, width=48)
    data = replace(plain, tasks_as_classes=True)
    assert plain.class_names() == [] and set(plain.open()[range(4)]["label"].tolist()) == {-1}
    names, source = ["push", "lift", "drop"], data.open()
    assert data.class_names() == names == list(source.class_names) == list(data.survey().class_names)
    batch = source[range(4)]
    assert [names[label] for label in batch["label"].tolist()] == batch["caption"] == tasks
    assert data.describe()["class_names"] == names and not data.survey().has_captions
    cached = filled(data, tmp_path / "cache")
    assert cached.class_names == tuple(names) and cached.labels.tolist() == batch["label"].tolist()
    assert from_description(TokensData(path="x"), cached.info.data) == data


def test_tasks_that_cannot_be_classes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = LeRobotData(path=recorded("lerobot"), num_frames=12, tasks_as_classes=True)
    with pytest.raises(UserError, match=r"tasks_as_classes needs tasks, but the dataset .* states none"):
        data.open()
    monkeypatch.setattr("mutoscope.data.sources.lerobot_tables.MAX_TASK_CLASSES", 2)
    path = write_lerobot(tmp_path, task_episodes("abc"), embedded=True)
    with pytest.raises(UserError, match="at most 2 tasks, .* has 3: omit it, and train on the texts as captions"):
        replace(data, path=str(path)).open()
