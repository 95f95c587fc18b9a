"""Recording: episodes by several processes, each kept as a finished part, then one LeRobot dataset.

Parts are written below OUT/.parts under a temporary name and renamed, so that an interrupted recording continues with
the episodes that are missing. The seed of an episode is the recording's seed plus the episode's number: the same seed
gives the same frames, whichever process records it.
"""

import _thread
import hashlib
import io
import json
import multiprocessing
import shutil
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from mutoscope.checks import COUNT, SEED, Range, check_fields
from mutoscope.data.media import write_png
from mutoscope.data.sources.parquet import require_pyarrow
from mutoscope.data.video.contact_sheet import contact_sheet
from mutoscope.declared import read_npz
from mutoscope.errors import UserError, reason
from mutoscope.json_config import read_json
from mutoscope.ownership import is_temporary, owned, temporary_beside
from mutoscope.worlds.base import Environment, Policy, PolicyFactory
from mutoscope.worlds.catalog import EnvironmentSpec, open_environment
from mutoscope.worlds.lerobot_writer import (
    DatasetForm,
    EpisodePart,
    encode_episode,
    pixel_statistics,
    write_dataset,
)
from mutoscope.worlds.policies import Replayed, checked_row, policies_for
from mutoscope.writing import new_folder, write_whole

PARTS, SETTINGS, INFO, SHEET = ".parts", "record.json", "meta/info.json", "contact_sheet.png"
SHEET_ROWS, SHEET_FRAMES = 8, 10
CHUNK = 8  # episodes of one environment that a process records before it opens one anew
RANGES = {
    "episodes": COUNT,
    "max_frames": Range(low=2, high=1_000_000),
    "seed": SEED,
}


@dataclass(frozen=True)
class RecordConfig:
    """Everything that decides the frames of a recording."""

    environments: tuple[EnvironmentSpec, ...]
    """episodes take them in turn"""
    policy: str
    """see `worlds.policies.policies_for`; the episodes of each environment take the policies in turn"""
    episodes: int
    """of all environments together"""
    max_frames: int
    """length at which an episode is cut off"""
    seed: int = 0
    endless: bool = False
    """an environment that ends begins anew within the same episode, which then has `max_frames` frames; next.done
    marks the frames after which it did"""
    actions: tuple[tuple[float, ...], ...] = ()
    """these rows are done in every episode, instead of a policy's; the last frame follows the last row"""

    def __post_init__(self) -> None:
        check_fields(self, RANGES)

    def environment(self, episode: int) -> EnvironmentSpec:
        """The environment of an episode."""
        return self.environments[episode % len(self.environments)]


def record(
    config: RecordConfig,
    out: Path,
    num_workers: int = 1,
    progress: Callable[[Iterator[int], int], Iterator[int]] = lambda items, total: items,
) -> dict[str, object]:
    """Record a dataset at `out`, or continue one that was interrupted; returns a report.

    progress: wraps the iterator over finished episodes. Raises UserError where `out` holds something else, and for
    whatever an environment or a policy cannot do.
    """
    require_pyarrow(out)
    form = _form(config)  # opens every environment once: problems show before anything is written
    with owned(out, "record"):
        return _record(config, out, form, num_workers, progress)


def _record(
    config: RecordConfig,
    out: Path,
    form: DatasetForm,
    num_workers: int,
    progress: Callable[[Iterator[int], int], Iterator[int]],
) -> dict[str, object]:
    """`record` for the one process that writes into `out`."""
    _claim(out, config)
    missing = [i for i in range(config.episodes) if not _part_file(out, i).exists()]
    for _ in progress(_recorded(config, out, missing, num_workers), len(missing)):
        pass
    parts = [_load_part(out, i) for i in range(config.episodes)]
    write_dataset(out, parts, form)
    _write_sheet(out, parts)
    # The encoder's bytes may differ from run to run; these hashes are those of the frames themselves.
    _write_json(out / SETTINGS, _described(config) | {"frames_sha256": [part.sha256 for part in parts]})
    # In one step: a recording that is killed meanwhile is finished, and its parts are what a dead process left.
    unneeded = temporary_beside(out / PARTS)
    (out / PARTS).rename(unneeded)
    shutil.rmtree(unneeded)
    return {
        "output": str(out),
        "environments": [spec.name for spec in config.environments],
        "episodes": len(parts),
        "frames": sum(map(len, parts)),
        "fps": form.fps,
        "height": form.height,
        "width": form.width,
        "actions": {"names": list(form.action_names), "kind": form.action_kind},
        "action_share": {
            name: round(float(np.mean([part.actions[:, i].mean() for part in parts])), 4)
            for i, name in enumerate(form.action_names)
        },
        "endings": int(sum(part.done.sum() for part in parts)),
        "recorded_now": len(missing),
        "bytes": sum(file.stat().st_size for file in out.rglob("*") if file.is_file()),
    }


def _form(config: RecordConfig) -> DatasetForm:
    """What the episodes share. Raises UserError where two environments differ in keys, rate or size."""
    forms: list[DatasetForm] = []
    for spec in config.environments:
        with closing(open_environment(spec)) as environment:
            for factory in factories_for(config):
                factory(environment)  # refuses an environment that it is not for
            height, width = environment.reset(config.seed).frame.shape[:2]
            keys = environment.action_names, environment.action_kind
            forms.append(DatasetForm(environment.fps, height, width, *keys, spec.name))
        if (mine := forms[-1].action_names) != (others := forms[0].action_names):
            raise UserError(
                f"{spec.name} answers to {', '.join(mine)}, {forms[0].robot_type} to {', '.join(others)}: record them "
                "as two datasets."
            )
        if forms[-1].fps != forms[0].fps or (height, width) != (forms[0].height, forms[0].width):
            raise UserError(
                f"{spec.name} has {height}x{width} frames at {forms[-1].fps:g} per second, {forms[0].robot_type} "
                f"{forms[0].height}x{forms[0].width} at {forms[0].fps:g}: state --height, --width and --frame-skip."
            )
    return replace(forms[0], robot_type=",".join(form.robot_type for form in forms))


# ---------------------------------------------------------------------------------------------------------------------
# The folder


def _claim(out: Path, config: RecordConfig) -> None:
    """The folder for a new recording, or one that was interrupted and has the same settings."""
    settings = out / PARTS / SETTINGS
    if (out / INFO).exists() and not settings.exists():
        raise UserError(f"{out} holds a finished recording; name another folder.")
    if settings.exists():
        found = read_json(settings)
        if found != _described(config):
            changed = [name for name, value in _described(config).items() if found.get(name) != value]
            raise UserError(
                f"{out} holds an interrupted recording with other settings ({', '.join(changed)}): repeat its command, "
                "or name another folder."
            )
        return
    if out.exists() and any(not is_temporary(entry) for entry in out.iterdir() if not _is_empty_start(entry)):
        raise UserError(f"{out} is not empty; name a new folder.")
    new_folder(out / PARTS)
    _write_json(settings, _described(config))


def _is_empty_start(entry: Path) -> bool:
    """Whether an entry of the folder is the folder of parts before its first file."""
    return entry.name == PARTS and entry.is_dir() and all(map(is_temporary, entry.iterdir()))


def _described(config: RecordConfig) -> dict[str, object]:
    """The settings as JSON values, with the versions that decide what an environment shows."""
    values = json.loads(json.dumps(asdict(config)))
    return values | {"versions": {name: _version(name) for name in ("vizdoom", "gymnasium")}}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _write_json(path: Path, values: dict[str, object]) -> None:
    write_whole(path, json.dumps(values, indent=2) + "\n")


def _part_file(out: Path, episode: int) -> Path:
    return out / PARTS / f"{episode:06d}.npz"


def _load_part(out: Path, episode: int) -> EpisodePart:
    path = _part_file(out, episode)
    try:
        found = read_npz(path)
        return EpisodePart(
            path.with_suffix(".mp4"),
            str(found["task"]),
            found["actions"],
            found["rewards"],
            found["done"],
            json.loads(str(found["pixels"])),
            str(found["sha256"]),
        )
    except (OSError, ValueError, LookupError, zipfile.BadZipFile, RecursionError) as error:
        raise UserError(f"{path} is damaged ({reason(error)}): delete it, and its episode is recorded again.") from None


# ---------------------------------------------------------------------------------------------------------------------
# Episodes


def _recorded(config: RecordConfig, out: Path, missing: Sequence[int], num_workers: int) -> Iterator[int]:
    """Records the missing episodes, in this process or in several; yields their numbers as they are finished."""
    if num_workers <= 1:
        recorder = _Recorder(config, out)
        try:
            yield from map(recorder.episode, missing)
        finally:
            recorder.close()
        return
    # New processes instead of forks: an environment's threads and windows do not survive a fork.
    context = multiprocessing.get_context("spawn")
    alike = [[i for i in missing if i % len(config.environments) == n] for n in range(len(config.environments))]
    chunks = [group[i : i + CHUNK] for group in alike for i in range(0, len(group), CHUNK)]
    with ProcessPoolExecutor(num_workers, context) as pool:
        waiting: set[Future[Sequence[int]]] = {pool.submit(_record_chunk, config, out, chunk) for chunk in chunks}
        try:
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (episode for future in done for episode in future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class _Recorder:
    """Records episodes one after the other; environments stay open between them."""

    def __init__(self, config: RecordConfig, out: Path) -> None:
        self.config, self.out = config, out
        self.policies = factories_for(config)
        self.opened: dict[str, Environment] = {}

    def close(self) -> None:
        for environment in self.opened.values():
            environment.close()
        self.opened.clear()

    def episode(self, number: int) -> int:
        """Record one episode into its part."""
        spec = self.config.environment(number)
        if spec.name not in self.opened:
            self.opened[spec.name] = open_environment(spec)
        environment = self.opened[spec.name]
        played = play(environment, self._policy(number, environment), self.config, number)
        path = _part_file(self.out, number)
        encode_episode(played.frames, environment.fps, path.with_suffix(".mp4"))
        content = io.BytesIO()
        np.savez(
            content,
            task=np.array(environment.task),
            actions=played.actions,
            rewards=played.rewards,
            done=played.done,
            pixels=np.array(json.dumps(pixel_statistics(played.frames))),
            sha256=np.array(hashlib.sha256(np.stack(played.frames).tobytes()).hexdigest()),
        )
        write_whole(path, content.getvalue())
        return number

    def _policy(self, number: int, environment: Environment) -> Policy:
        turn = number // len(self.config.environments)
        return self.policies[turn % len(self.policies)](environment)


def factories_for(config: RecordConfig) -> tuple[PolicyFactory, ...]:
    """The policies that episodes take in turn, or the one that repeats the recording's actions."""
    if not config.actions:
        return policies_for(config.policy)
    rows = np.array(config.actions, np.float32)
    return (lambda environment: Replayed(rows, environment),)


@dataclass(frozen=True)
class Played:
    """One episode in memory. Row t of `actions` was done in frame t and led to frame t + 1."""

    frames: list[UInt8[np.ndarray, "h w 3"]]
    actions: np.ndarray
    rewards: np.ndarray
    done: np.ndarray


def play(environment: Environment, policy: Policy, config: RecordConfig, number: int) -> Played:
    """Plays one episode, at most `config.max_frames` frames of it."""
    seed = config.seed + number
    rng = np.random.default_rng([config.seed, number])
    observation, frames, rows, rewards, done, restarts = environment.reset(seed), [], [], [], [], 0
    while True:
        frames.append(observation.frame)
        rows.append(checked_row(policy(observation, rng), environment))
        if len(frames) == config.max_frames:  # the last row leads nowhere
            rewards.append(0.0)
            done.append(False)
            break
        transition = environment.step(rows[-1])
        rewards.append(transition.reward)
        done.append(transition.ended)
        observation = transition.observation
        if transition.ended and not config.endless:
            break
        if transition.ended:
            restarts += 1
            # Another seed for every new beginning, far from the seeds of other episodes.
            observation = environment.reset(seed + restarts * 1_000_003)
    return Played(frames, np.stack(rows), np.array(rewards, np.float32), np.array(done))


def _record_chunk(config: RecordConfig, out: Path, episodes: Sequence[int]) -> Sequence[int]:
    """Records some episodes in a process of the pool."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    recorder = _Recorder(config, out)
    try:
        return [recorder.episode(episode) for episode in episodes]
    finally:
        recorder.close()


def _end_with_parent() -> None:
    """A killed recording leaves no process behind that goes on writing, and no engine of an environment."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        _thread.interrupt_main()


def _write_sheet(out: Path, parts: Sequence[EpisodePart]) -> None:
    """A contact sheet of the first episodes, at equal distances in time."""
    from mutoscope.data.video.read import read_video

    clips = []
    for part in parts[:SHEET_ROWS]:
        frames = read_video(part.video).frames
        clips.append(frames[np.linspace(0, len(frames) - 1, min(SHEET_FRAMES, len(frames))).astype(int)])
    labels = [part.task for part in parts[:SHEET_ROWS]]
    write_png(out / SHEET, contact_sheet(clips, columns=SHEET_FRAMES, labels=labels))
