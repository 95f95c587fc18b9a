"""mutoscope record: episodes of an environment as a LeRobot dataset, to train on or to compare with."""

import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import mutoscope.commands.common as common
from mutoscope.errors import UserError
from mutoscope.json_config import parse_json

if TYPE_CHECKING:
    from mutoscope.worlds.catalog import EnvironmentSpec


def record(
    env: str,
    out: str,
    /,
    *,
    episodes: int = 100,
    max_frames: int = 200,
    policy: str | None = None,
    actions: str | None = None,
    height: int | None = None,
    width: int | None = None,
    frame_skip: int | None = None,
    keys: tuple[str, ...] = (),
    options: str | None = None,
    endless: bool = False,
    seed: int = 0,
    num_workers: int = 1,
) -> common.Report:
    """Record episodes of an environment as a LeRobot v3.0 dataset.

    ENV is doom-basic, doom-health-gathering, doom-defend-the-center or another scenario of ViZDoom,
    doom for these three in turn, or any Gymnasium environment that renders rgb_array. The same seed gives the same
    frames. An interrupted recording continues when it is started again.

    Args:
        env: name of the environment, or several with commas between, which episodes take in turn
        out: folder of the dataset, which must not exist
        episodes: how many, of all environments together
        max_frames: longest episode
        policy: random (held keys), scripted (Doom only: sees monsters, packs and walls), mixed (both in turn), or a
            function of yours as file.py:function or module:function; several with commas between are taken in turn
            (default: mixed for Doom, else random)
        actions: what is done in every episode instead of a policy, as in `mutoscope generate`: "left*20 attack*5", or a
            file with one row per frame (.csv, .json, .npy); each leads to one more frame
        height: of the frames (default: 120 for Doom, else as rendered; with --width alone the aspect is kept)
        width: of the frames
        frame_skip: steps of the environment per frame, during which an action is held (default: 4 for Doom, else 1)
        keys: names of the actions, where the environment does not tell them
        options: arguments of a Gymnasium environment as a JSON object
        endless: an environment that ends begins anew within the same episode, for worlds that never stop
        seed: of the first episode; the next has the next seed
        num_workers: processes that record
    """
    common.check_range("--episodes", episodes, low=1)
    common.check_range("--max-frames", max_frames, low=2)
    common.check_range("--height", height, low=16, high=4096)
    common.check_range("--width", width, low=16, high=4096)
    common.check_range("--frame-skip", frame_skip, low=1, high=1000)
    common.check_range("--num-workers", num_workers, low=1, high=256)
    common.check_seed(seed)

    from mutoscope import hub
    from mutoscope.worlds.catalog import EnvironmentSpec
    from mutoscope.worlds.record import RecordConfig
    from mutoscope.worlds.record import record as write_recording

    if actions is not None and policy is not None:
        raise UserError("--policy and --actions both say what is done: omit one.")
    specs = environments(env, EnvironmentSpec("", height, width, frame_skip, keys, _json(options)))
    rows = action_rows(actions, specs[0])
    if rows:
        max_frames = len(rows) + 1
    if policy is None:
        policy = "mixed" if all(spec.name.startswith("doom-") for spec in specs) else "random"
    config = RecordConfig(specs, policy, episodes, max_frames, seed, endless, rows)
    target = Path(out).expanduser()
    hub.check_writable_folder(target)
    start = time.perf_counter()
    report = write_recording(
        config, target, num_workers, lambda items, total: common.progress(items, total, "record", "episode")
    )
    return report | {"seconds": time.perf_counter() - start}


def environments(names: str, like: "EnvironmentSpec") -> "tuple[EnvironmentSpec, ...]":
    """The environments of the argument ENV, with the settings of `like`."""
    from mutoscope.worlds.catalog import environment_names

    return tuple(replace(like, name=name) for name in environment_names(names))


def action_rows(actions: str | None, spec: "EnvironmentSpec") -> tuple[tuple[float, ...], ...]:
    """The rows of --actions by the names of an environment's actions; none without --actions."""
    if actions is None:
        return ()
    from mutoscope.actions import ActionSpec
    from mutoscope.families.actions import read_actions
    from mutoscope.worlds.catalog import open_environment

    with closing(open_environment(spec)) as environment:
        known = ActionSpec.plain(environment.action_names, environment.action_kind, environment.fps)
    [rows] = read_actions(actions, known).clips
    if np.isnan(rows).any():
        raise UserError("An environment needs to know every action: remove '?' from --actions.")
    return tuple(tuple(row) for row in rows.tolist())


def _json(text: str | None) -> dict[str, object]:
    """The value of --options."""
    if text is None:
        return {}
    try:
        values = parse_json(text)
    except ValueError as error:
        raise UserError(f"--options is not JSON ({error}); write it as '{{\"name\": value}}'.") from None
    if not isinstance(values, dict):
        raise UserError(f"--options must be a JSON object, such as '{{\"name\": value}}'; found {text}.")
    return values


def summary(report: common.Report) -> str:
    shares = ", ".join(f"{name} {share:g}" for name, share in report["action_share"].items())
    return (
        f"{report['output']}\n{report['episodes']} episodes, {report['frames']} frames of "
        f"{report['height']}x{report['width']} at {report['fps']:g} per second, "
        f"{common.human_bytes(report['bytes'])}, in {report['seconds']:.1f} s\nmean of each action: {shares}"
    )
