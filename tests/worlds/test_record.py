"""Recordings: the same frames from the same seed, actions beside the frames they are done in, resume, endings."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mutoscope
from mutoscope.data.video.read import read_video
from mutoscope.errors import UserError
from mutoscope.worlds import record as recording
from mutoscope.worlds.catalog import EnvironmentSpec, environment_names, open_environment
from mutoscope.worlds.lerobot_writer import combined, encode_episode, pixel_statistics, row_statistics
from mutoscope.worlds.policies import Replayed, policies_for
from mutoscope.worlds.record import RecordConfig, play, record
from worlds.toy import DOT, SIZE, register

DOT_ENV = "mutoscope-test/Dot-v0"


@pytest.fixture(autouse=True)
def _environments():
    register()


def config(episodes: int = 3, max_frames: int = 12, **changes) -> RecordConfig:
    spec = EnvironmentSpec(DOT_ENV, keys=("dx", "dy"))
    return RecordConfig((spec,), changes.pop("policy", "random"), episodes, max_frames, **changes)


def alike(first: Path, second: Path) -> bool:
    """Whether two recordings hold the same frames, whatever the encoder made of them."""
    hashes = [json.loads((folder / "record.json").read_text())["frames_sha256"] for folder in (first, second)]
    return hashes[0] == hashes[1] != []


def corners(frames: np.ndarray) -> np.ndarray:
    """x and y of the white dot in every frame."""
    white = frames[..., 0] > 150
    return np.array([[one.any(0).argmax(), one.any(1).argmax()] for one in white])


def test_a_recording_opens_with_its_frames_names_and_texts(tmp_path: Path):
    report = record(config(), tmp_path / "out")
    found = mutoscope.open_recordings(tmp_path / "out")
    assert (found.format, found.fps, len(found)) == ("lerobot v3.0", 10, 3)
    assert found.action_names == ["dx", "dy"] and found.action_kind == "continuous"
    assert found[0].caption == DOT_ENV and found[0].read().shape[1:] == (SIZE, SIZE, 3)
    assert report["frames"] == sum(episode.num_frames for episode in found)
    assert (tmp_path / "out/contact_sheet.png").is_file() and not (tmp_path / "out/.parts").exists()


def test_row_t_leads_from_frame_t_to_the_next(tmp_path: Path):
    record(config(episodes=4, max_frames=20), tmp_path / "out")
    for episode in mutoscope.open_recordings(tmp_path / "out"):
        actions, at = episode.actions, corners(episode.read())
        assert actions is not None
        expected = np.clip(at[:-1] + np.round(actions[:-1]), 0, SIZE - DOT)
        assert np.array_equal(at[1:], expected)


def test_the_same_seed_gives_the_same_files_whatever_the_processes(tmp_path: Path):
    for name, workers in (("one", 1), ("two", 2)):
        # Another process knows the environment by its package.
        spec = EnvironmentSpec("CartPole-v1", height=40)
        record(RecordConfig((spec,), "random", 3, 6), tmp_path / name, workers)
    first, second = (sorted((tmp_path / n).rglob("*.parquet")) for n in ("one", "two"))
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]  # statistics of all frames among them
    assert alike(tmp_path / "one", tmp_path / "two")


def test_another_seed_gives_other_frames(tmp_path: Path):
    record(config(1), tmp_path / "a")
    record(config(1, seed=1), tmp_path / "b")
    assert not alike(tmp_path / "a", tmp_path / "b")


def test_an_interrupted_recording_equals_an_uninterrupted_one(tmp_path: Path):
    def stopping(items, total):
        for number in items:
            yield number
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record(config(), tmp_path / "out", progress=stopping)
    report = record(config(), tmp_path / "out")
    record(config(), tmp_path / "whole")
    assert report["recorded_now"] == 2
    for name in ("data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert alike(tmp_path / "out", tmp_path / "whole")


def test_an_interrupted_recording_refuses_other_settings(tmp_path: Path):
    def stopping(items, total):
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        record(config(), tmp_path / "out", progress=stopping)
    with pytest.raises(UserError, match="other settings \\(seed\\)"):
        record(config(seed=5), tmp_path / "out")


def test_a_finished_recording_and_a_full_folder_are_refused(tmp_path: Path):
    record(config(1), tmp_path / "out")
    with pytest.raises(UserError, match="finished recording"):
        record(config(1), tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("")
    with pytest.raises(UserError, match="not empty"):
        record(config(1), tmp_path / "full")


def test_an_ended_episode_is_short_and_an_endless_one_begins_anew():
    spec = EnvironmentSpec(DOT_ENV, keys=("dx", "dy"))
    environment = open_environment(spec)
    run = lambda observation, rng: [2, 0]  # noqa: E731  (to the right, where the episode ends)
    short = play(environment, run, config(max_frames=40), 0)
    assert short.done[-1] and not short.done[:-1].any() and len(short.frames) < 40
    long = play(environment, run, config(max_frames=40, endless=True), 0)
    assert len(long.frames) == len(long.actions) == 40 and long.done.sum() >= 2
    # After an ending, the next frame is that of a new beginning, not one step further.
    ends = np.flatnonzero(long.done)
    at = corners(np.stack(long.frames))
    assert all(at[end + 1, 0] < SIZE - DOT for end in ends if end + 1 < 40)


def test_policies_take_turns_and_a_function_of_ones_own_plays(tmp_path: Path):
    (tmp_path / "mine.py").write_text("def still(observation, rng):\n    return {'dx': 1.0}\n")
    record(config(2, policy=f"{tmp_path}/mine.py:still,random"), tmp_path / "out")
    first, second = (episode.actions for episode in mutoscope.open_recordings(tmp_path / "out"))
    assert first is not None and second is not None
    assert (first == [1, 0]).all() and not (second == [1, 0]).all()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def p(o, rng): return {'jump': 1}", "named an action 'jump'"),
        ("def p(o, rng): return [1]", "expected 2 finite numbers: dx, dy"),
        ("def p(o, rng): return [1, float('nan')]", "finite numbers"),
        ("def p(o, rng): return 'left'", "no row of numbers"),
        ("def q(o, rng): return [1, 0]", "no function 'p'"),
        ("import nothing_of_that_name", "cannot be imported"),
    ],
)
def test_what_a_policy_gets_wrong_is_a_sentence(tmp_path: Path, source: str, message: str):
    (tmp_path / "mine.py").write_text(source)
    with pytest.raises(UserError, match=message):
        record(config(1, policy=f"{tmp_path}/mine.py:p"), tmp_path / "out")


def test_videos_are_near_lossless_and_split_by_size(tmp_path: Path):
    rng = np.random.default_rng(0)
    frames = [np.kron(rng.integers(0, 256, (6, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8) for _ in range(9)]
    encode_episode(frames, 8.75, tmp_path / "a.mp4")
    found = read_video(tmp_path / "a.mp4").frames
    assert np.abs(found.astype(int) - np.stack(frames)).mean() < 2


def test_episodes_in_several_files_are_read_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    form = recording.DatasetForm
    monkeypatch.setattr(recording, "DatasetForm", lambda *a: form(*a, num_bytes=1))
    record(config(3), tmp_path / "out")
    assert len(list((tmp_path / "out").rglob("*.mp4"))) == 3
    record(config(3), tmp_path / "one")
    for a, b in zip(
        mutoscope.open_recordings(tmp_path / "out"), mutoscope.open_recordings(tmp_path / "one"), strict=True
    ):
        assert np.abs(a.read().astype(int) - b.read()).mean() < 1


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(0, 2**31))
def test_statistics_of_parts_combine_to_those_of_the_whole(lengths: list[int], seed: int):
    rng = np.random.default_rng(seed)
    parts = [rng.normal(size=(length, 2)) for length in lengths]
    whole, found = row_statistics(np.concatenate(parts)), combined([row_statistics(part) for part in parts])
    for name in ("min", "max", "mean", "std", "count"):
        assert np.allclose(found[name], whole[name])


def test_pixel_statistics_are_exact():
    frames = np.random.default_rng(0).integers(0, 256, (3, 5, 7, 3)).astype(np.uint8)
    found, values = pixel_statistics(list(frames)), frames.reshape(-1, 3) / 255
    assert np.allclose(np.array(found["mean"]).ravel(), values.mean(0))
    assert np.allclose(np.array(found["std"]).ravel(), values.std(0))
    assert np.array(found["q50"]).shape == (3, 1, 1) and found["count"] == [3]


def test_the_dataset_says_how_it_was_recorded(tmp_path: Path):
    record(config(1, seed=3), tmp_path / "out")
    values = json.loads((tmp_path / "out/record.json").read_text())
    assert values["seed"] == 3 and values["environments"][0]["name"] == DOT_ENV and "gymnasium" in values["versions"]


def test_environments_of_a_recording_agree_in_keys_rate_and_size(tmp_path: Path):
    specs = (EnvironmentSpec("CartPole-v1", 32), EnvironmentSpec("Acrobot-v1", 32))
    with pytest.raises(UserError, match="two datasets"):
        record(RecordConfig(specs, "random", 2, 4), tmp_path / "out")


def test_names_of_environments_are_lists_and_doom_stands_for_three():
    assert environment_names("a, b,a") == ("a", "b")
    assert len(environment_names("doom")) == 3 and all(n.startswith("doom-") for n in environment_names("doom"))
    with pytest.raises(UserError, match="Name an environment"):
        environment_names(" ,")


def test_mixed_policies_alternate():
    assert len(policies_for("mixed")) == 2


def test_repeated_actions_are_the_same_in_every_episode_and_go_on_through_endings():
    rows = ((2.0, 0.0),) * 20 + ((-1.0, 1.0),) * 4
    environment = open_environment(EnvironmentSpec(DOT_ENV, keys=("dx", "dy")))
    settings = config(max_frames=30, endless=True, actions=rows)
    for number in range(2):
        [factory] = recording.factories_for(settings)
        played = play(environment, factory(environment), settings, number)
        assert played.done[:20].any()  # the row's number goes on where an episode begins anew
        expected = np.array([*rows, *[(0.0, 0.0)] * 6], np.float32)  # then nothing is done
        assert np.array_equal(played.actions, expected)


def test_repeated_actions_of_another_environment_are_refused():
    environment = open_environment(EnvironmentSpec(DOT_ENV, keys=("dx", "dy")))
    with pytest.raises(UserError, match="rows of 3 numbers, .* has 2: dx, dy"):
        Replayed(np.zeros((4, 3), np.float32), environment)
