"""mutoscope record: episodes of an environment as a LeRobot dataset, to train on or to compare with."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import mutoscope.commands.common as common
from mutoscope.errors import UserError

if TYPE_CHECKING:
    from mutoscope.worlds.record import RecordConfig


def record(
    env: str,
    out: str,
    /,
    *,
    episodes: int = 100,
    max_frames: int = 200,
    policy: str | None = None,
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

    ENV is doom-basic, doom-health-gathering, doom-my-way-home, doom-defend-the-line or another scenario of ViZDoom,
    doom for these four in turn, or any Gymnasium environment that renders rgb_array. The same seed gives the same
    frames. An interrupted recording continues when it is started again.

    Args:
        env: name of the environment, or several with commas between, which episodes take in turn
        out: folder of the dataset, which must not exist
        episodes: how many, of all environments together
        max_frames: longest episode
        policy: random (held keys), scripted (Doom only: sees monsters, packs and walls), mixed (both in turn), or a
            function of yours as file.py:function or module:function; several with commas between are taken in turn
            (default: mixed for Doom, else random)
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
    from mutoscope.worlds.record import record as write_recording

    config = _config(env, episodes, max_frames, policy, height, width, frame_skip, keys, _json(options), endless, seed)
    target = Path(out).expanduser()
    hub.check_writable_folder(target.parent)
    start = time.perf_counter()
    report = write_recording(
        config, target, num_workers, lambda items, total: common.progress(items, total, "record", "episode")
    )
    return report | {"seconds": time.perf_counter() - start}


def _config(
    env: str,
    episodes: int,
    max_frames: int,
    policy: str | None,
    height: int | None,
    width: int | None,
    frame_skip: int | None,
    keys: tuple[str, ...],
    options: dict[str, object],
    endless: bool,
    seed: int,
) -> "RecordConfig":
    from mutoscope.worlds.catalog import EnvironmentSpec, environment_names
    from mutoscope.worlds.record import RecordConfig

    names = environment_names(env)
    specs = tuple(EnvironmentSpec(name, height, width, frame_skip, keys, options) for name in names)
    default = "mixed" if all(name.startswith("doom-") for name in names) else "random"
    return RecordConfig(specs, policy or default, episodes, max_frames, seed, endless)


def _json(text: str | None) -> dict[str, object]:
    """The value of --options."""
    if text is None:
        return {}
    try:
        values = json.loads(text)
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
