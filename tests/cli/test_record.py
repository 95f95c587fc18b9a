"""mutoscope record: environments as recordings that every other verb reads."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gymnasium", reason="gymnasium is needed to record its environments")
pytest.importorskip("pyarrow", reason="pyarrow is needed to write LeRobot datasets")

import mutoscope
from worlds.toy import SIZE, register

DOT_ENV = "mutoscope-test/Dot-v0"
KEYS = {
    "output", "environments", "episodes", "frames", "fps", "height", "width", "actions", "action_share", "endings",
    "recorded_now", "bytes", "seconds",
}  # fmt: skip
SMALL = ("--episodes", 2, "--max-frames", 6, "--keys", "dx", "dy")


@pytest.fixture(autouse=True)
def _environments():
    register()


def test_the_report_of_a_recording(run, out):
    report = run("record", DOT_ENV, out / "dots", *SMALL, "--seed", 4, "--json").report
    assert set(report) == KEYS
    assert (report["environments"], report["episodes"], report["recorded_now"]) == ([DOT_ENV], 2, 2)
    assert (report["fps"], report["height"], report["width"]) == (10, SIZE, SIZE)
    assert report["actions"] == {"names": ["dx", "dy"], "kind": "continuous"} and set(report["action_share"]) == {
        "dx",
        "dy",
    }
    assert report["bytes"] > 0 and report["output"] == str(out / "dots")
    found = mutoscope.open_recordings(out / "dots")
    assert sum(episode.num_frames for episode in found) == report["frames"]
    assert json.loads((out / "dots/record.json").read_text())["seed"] == 4


def test_the_summary_for_people(run, out):
    done = run("record", DOT_ENV, out / "dots", *SMALL)
    lines = done.out.splitlines()
    assert done.status == 0 and lines[0] == str(out / "dots")
    assert "2 episodes" in lines[1] and f"{SIZE}x{SIZE} at 10 per second" in lines[1]
    assert lines[2].startswith("mean of each action: dx ")


def test_inspect_reads_what_record_writes(run, out):
    assert run("record", DOT_ENV, out / "dots", *SMALL).status == 0
    report = run("inspect", out / "dots", "--json").report
    assert report["episodes"] == 2 and report["actions"]["names"] == ["dx", "dy"]
    assert report["format"] == "lerobot v3.0"


def test_actions_are_done_in_every_episode_and_each_leads_to_a_frame(run, out):
    """Afterwards the same grammar steers a model: see `mutoscope generate --actions`."""
    arguments = ("--actions", "dx=-1*3 dy=2 .", "--episodes", 2, "--keys", "dx", "dy")
    report = run("record", DOT_ENV, out / "dots", *arguments, "--json").report
    assert report["frames"] == 2 * 6
    for episode in mutoscope.open_recordings(out / "dots"):
        expected = [[-1, 0]] * 3 + [[0, 2], [0, 0], [0, 0]]  # the last frame's action leads nowhere
        np.testing.assert_array_equal(episode.actions, expected)


def test_actions_come_from_a_file_by_name(run, out, tmp_path):
    (tmp_path / "moves.csv").write_text("DY,dx\n1,0\n0,-2\n")
    report = run(
        "record",
        DOT_ENV,
        out / "dots",
        "--actions",
        tmp_path / "moves.csv",
        "--episodes",
        1,
        "--keys",
        "dx",
        "dy",
        "--json",
    ).report
    assert report["frames"] == 3
    actions = mutoscope.open_recordings(out / "dots")[0].actions
    np.testing.assert_array_equal(actions, [[0, 1], [-2, 0], [0, 0]])


def test_the_same_command_gives_the_same_files(run, out):
    files = []
    for name in "ab":
        assert run("record", DOT_ENV, out / name, *SMALL).status == 0
        files.append({path.relative_to(out / name): path.read_bytes() for path in (out / name).rglob("*.parquet")})
    assert files[0] == files[1] != {}


def test_an_interrupted_recording_goes_on(run, out, monkeypatch):
    from mutoscope.worlds import record

    play, played = record.play, []

    def stopped(*arguments):
        if played:
            raise KeyboardInterrupt
        played.append(1)
        return play(*arguments)

    monkeypatch.setattr(record, "play", stopped)
    interrupted = run("record", DOT_ENV, out / "dots", *SMALL)
    assert interrupted.status not in (0, 1, 2) and "Traceback" not in interrupted.err
    monkeypatch.setattr(record, "play", play)
    report = run("record", DOT_ENV, out / "dots", *SMALL, "--json").report
    assert (report["episodes"], report["recorded_now"]) == (2, 1)


def test_options_reach_the_environment(run, out):
    report = run("record", DOT_ENV, out / "dots", *SMALL, "--options", '{"frame_size": 40}', "--json").report
    assert (report["height"], report["width"]) == (40, 40)
    keys = ("--options", '{"actions": "discrete"}', "--episodes", 1, "--max-frames", 4)
    report = run("record", DOT_ENV, out / "keys", *keys, "--json").report
    assert report["actions"] == {"names": ["noop", "left", "right"], "kind": "buttons"}


def test_a_finished_recording_is_never_overwritten(run, out):
    assert run("record", DOT_ENV, out / "dots", *SMALL).status == 0
    assert "finished recording" in run("record", DOT_ENV, out / "dots", *SMALL).error


@pytest.mark.parametrize(
    ("package", "environment"), [("gymnasium", "CartPole-v1"), ("vizdoom", "doom-basic"), ("pyarrow", DOT_ENV)]
)
def test_a_missing_package_is_named_with_its_extra(run, out, monkeypatch, package, environment):
    monkeypatch.setitem(sys.modules, package, None)
    error = run("record", environment, out / "x").error
    assert package in error and ("mutoscope[worlds]" in error or "mutoscope[data]" in error)
    assert not os.listdir(out)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_folder_is_refused(run, out):
    out.chmod(0o500)
    assert str(out) in run("record", DOT_ENV, out / "x").error


def test_a_policy_that_fails_is_a_sentence_and_the_recording_can_go_on(run, out, tmp_path):
    (tmp_path / "mine.py").write_text("def play(observation, rng):\n    raise RuntimeError('no idea')\n")
    error = run("record", DOT_ENV, out / "x", *SMALL, "--policy", f"{tmp_path}/mine.py:play").error
    assert "no idea" in error


@pytest.mark.slow
def test_doom_takes_its_three_scenarios_in_turn(run, out: Path):
    pytest.importorskip("vizdoom")
    report = run("record", "doom", out / "doom", "--episodes", 3, "--max-frames", 4, "--height", 48, "--json").report
    assert len(report["environments"]) == 3 and report["actions"]["names"] == ["left", "right", "forward", "attack"]
    captions = [episode.caption for episode in mutoscope.open_recordings(out / "doom")]
    assert captions == ["basic", "health-gathering", "defend-the-center"]
