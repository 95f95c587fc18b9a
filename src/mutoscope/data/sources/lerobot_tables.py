"""The tables of a LeRobot dataset (v2.0, v2.1, v3.0): features, episodes with their files and texts.

Every path comes from the templates in info.json. Reads tables only, and no frame of any video.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path, PurePosixPath
from string import Formatter
from typing import Any, cast

from mutoscope.actions import Kind
from mutoscope.data.media import files_below
from mutoscope.data.sources.parquet import Row, read_rows, require_pyarrow
from mutoscope.data.text_files import read_json_lines, read_text
from mutoscope.errors import UserError, reason
from mutoscope.json_config import parse_json

INFO = "meta/info.json"
TEMPLATE_FIELDS = frozenset("video_key chunk_index file_index episode_chunk episode_index".split())
ACTION_FEATURES = ("action", "actions")
DEFAULT_CHUNK_SIZE = 1000
MAX_TASK_CLASSES = 1000  # as many classes as ImageNet has; more tasks are texts that a model should read
DRIVE = re.compile("[A-Za-z]:")  # begins an absolute path on Windows


@dataclass(frozen=True)
class Camera:
    """One camera. key: its feature; embedded: frames are images in the table of frames instead of a video."""

    key: str
    embedded: bool

    def is_called(self, name: str) -> bool:
        """Whether a name is the key or its last parts."""
        return self.key == name or self.key.endswith(f".{name}")


@dataclass(frozen=True)
class ActionFeature:
    """The column of actions: its key, the name of every number, and the kind where the dtype states it."""

    key: str
    names: tuple[str, ...]
    kind: Kind | None


MAX_EPISODES = 1_000_000  # each that has no entry in the tables is reported
MAX_ACTION = 4096  # numbers in an action: a hand with all its joints has 100
PLACE = re.compile(r"\{\w+(?::0?\d{0,2}d?)?\}")  # a wider one would fill memory, an attribute lead elsewhere


@dataclass(frozen=True)
class DatasetInfo:
    """What info.json states. Raises UserError where it lacks what reading needs."""

    folder: Path
    version: str
    fps: float
    data_path: str
    video_path: str | None
    chunk_size: int
    num_episodes: int
    splits: Mapping[str, str]
    cameras: tuple[Camera, ...]
    actions: ActionFeature | None
    notes: tuple[str, ...] = ()

    def path(self, template: str, **fields: str | int) -> Path:
        """A file of the dataset. Raises UserError for a template that leads out of the folder."""
        try:
            if {"{", "}"} & set(PLACE.sub("", template)):
                raise ValueError("its places must be such as {chunk_index:03d}")
            relative = template.format(**fields)
        except (KeyError, ValueError, IndexError, TypeError) as error:
            raise UserError(
                f"{self.folder / INFO}: the template {template!r} cannot be filled in ({reason(error)})."
            ) from None
        parts = PurePosixPath(relative.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts or DRIVE.match(relative):
            raise UserError(f"{self.folder / INFO}: {relative!r} leads out of the dataset's folder.")
        return self.folder / parts

    def camera(self, name: str | None) -> Camera:
        """The camera of this name, the first one by default. Raises UserError for an unknown one, with all names."""
        if not self.cameras:
            raise UserError(f"{self.folder} holds no camera: no feature of {INFO} is a video or an image in colour.")
        if name is None:
            return self.cameras[0]
        exact = [camera for camera in self.cameras if camera.key == name]
        found = exact or [camera for camera in self.cameras if camera.is_called(name)]
        if len(found) != 1:
            problem = "more than one camera" if found else "no camera"
            keys = ", ".join(camera.key for camera in self.cameras)
            raise UserError(f"{self.folder} has {problem} called {name!r}; its cameras are {keys}.")
        return found[0]

    def camera_names(self) -> list[str]:
        """The cameras by the last part of their keys, or by the whole keys where the last parts are equal."""
        short = [camera.key.rsplit(".", 1)[-1] for camera in self.cameras]
        return short if len(set(short)) == len(short) else [camera.key for camera in self.cameras]


@dataclass(frozen=True)
class EpisodeEntry:
    """One episode as the tables state it.

    texts: of its tasks, in order. video: file of the camera's frames, None where they are in the table of frames.
    from_seconds: time of its first frame in that file.
    """

    number: int
    length: int
    texts: tuple[str, ...]
    data: Path
    video: Path | None
    from_seconds: float = 0.0

    @property
    def caption(self) -> str:
        """All its texts; "" without any."""
        return "; ".join(self.texts)


@dataclass
class EpisodeList:
    """The episodes that the tables list, what the tables lack, and the texts of tasks by number."""

    entries: list[EpisodeEntry] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    tasks: dict[int, str] = field(default_factory=dict)


def is_lerobot(folder: str | Path) -> bool:
    """Whether a folder is a LeRobot dataset."""
    return (Path(folder) / INFO).is_file()


def read_info(folder: Path) -> DatasetInfo:
    """info.json. Raises UserError for another version, or where something is missing."""
    path = folder / INFO
    values = _json_object(path)
    version = str(values.get("codebase_version", ""))
    if not version.startswith(("v2.", "v3.")):
        raise UserError(
            f"{path} states version {version or 'none'}; v2.0, v2.1 and v3.0 can be read: convert the dataset with "
            "the lerobot package."
        )
    fps, features = values.get("fps"), values.get("features")
    if not isinstance(fps, int | float) or not 0 < fps < float("inf"):
        raise UserError(f'{path} must state "fps" as a positive number; found {fps!r}.')
    if not isinstance(features, dict) or not all(isinstance(feature, dict) for feature in features.values()):
        raise UserError(f'{path} must hold "features", an object of objects.')
    data_path = _template(values.get("data_path"), path, "data_path")
    if data_path is None:
        raise UserError(f'{path} must state "data_path", the template of the files of frames.')
    splits, chunk_size = values.get("splits"), values.get("chunks_size")
    cameras, notes = _cameras(features)
    actions, more_notes = _actions(features)
    return DatasetInfo(
        folder=folder,
        version=version,
        fps=float(fps),
        data_path=data_path,
        video_path=_template(values.get("video_path"), path, "video_path"),
        chunk_size=chunk_size if isinstance(chunk_size, int) and chunk_size > 0 else DEFAULT_CHUNK_SIZE,
        num_episodes=_num_episodes(values.get("total_episodes"), path),
        splits={str(k): str(v) for k, v in splits.items()} if isinstance(splits, dict) else {},
        cameras=cameras,
        actions=actions,
        notes=(*notes, *more_notes),
    )


def _template(value: object, path: Path, name: str) -> str | None:
    """A template of paths with known fields only: a field such as {video_key.__class__} is none."""
    if value is None:
        return None
    try:
        found = {field for _, field, _, _ in Formatter().parse(str(value)) if field is not None}
    except ValueError as error:
        raise UserError(f"{path}: {name} {value!r} is no template ({reason(error)}).") from None
    if unknown := found - TEMPLATE_FIELDS:
        known = ", ".join(sorted(TEMPLATE_FIELDS))
        raise UserError(f"{path}: {name} has the unknown field {sorted(unknown)[0]!r}; known are {known}.")
    return str(value)


def _cameras(features: Mapping[str, Mapping[str, Any]]) -> tuple[tuple[Camera, ...], list[str]]:
    """The cameras in order, and a note for each camera of depth, whose numbers are no colours."""
    cameras, notes = [], []
    for key, feature in features.items():
        if feature.get("dtype") not in ("video", "image"):
            continue
        info = feature.get("info") or feature.get("video_info") or {}
        if info.get("video.is_depth_map") or info.get("is_depth_map"):
            notes.append(f"the camera {key} holds depth instead of colour and is not read")
        else:
            cameras.append(Camera(key, feature["dtype"] == "image"))
    return tuple(cameras), notes


def _actions(features: Mapping[str, Mapping[str, Any]]) -> tuple[ActionFeature | None, list[str]]:
    key = next((name for name in ACTION_FEATURES if name in features), None)
    if key is None:
        return None, []
    feature = features[key]
    dtype, shape = str(feature.get("dtype")), feature.get("shape")
    if not dtype.startswith(("float", "int", "uint", "bool")):
        return None, [f"the feature {key} is of dtype {dtype} and is not read as actions"]
    sizes = shape if isinstance(shape, list) and all(isinstance(n, int) and n > 0 for n in shape) else [1]
    if (size := prod(sizes)) > MAX_ACTION:
        raise UserError(f"The feature {key} declares {size:,} numbers in an action; at most {MAX_ACTION:,} are read.")
    names = action_names(feature.get("names"), size)
    return ActionFeature(key, names, "buttons" if dtype == "bool" else None), []


def action_names(names: object, size: int) -> tuple[str, ...]:
    """Names of the numbers of an action: from a list, nested lists or an object of lists; else action_0 ..."""
    found = list(_texts(names))
    if len(found) == size and len(set(found)) == size:
        return tuple(found)
    return tuple(f"action_{number}" for number in range(size))


def _texts(names: object) -> Iterator[str]:
    """The texts in nested lists and objects. An object of numbers maps names to positions."""
    if isinstance(names, str):
        yield names
    elif isinstance(names, dict):
        values = list(names.values())
        if values and all(isinstance(value, int) for value in values):
            yield from sorted(names, key=lambda name: names[name])
        else:
            for value in values:
                yield from _texts(value)
    elif isinstance(names, list):
        for value in names:
            yield from _texts(value)


# --------------------------------------------------------------------------------------------------------- episodes


def list_episodes(info: DatasetInfo, camera: Camera) -> EpisodeList:
    """The episodes in order, with the files of one camera."""
    require_pyarrow(info.folder)
    newest = info.version.startswith("v3.")
    found = EpisodeList(tasks=_read_tasks(info.folder, newest))
    rows = _rows_of_v3(info.folder, found) if newest else _rows_of_v2(info, found)
    for row in rows:
        number, length = _whole(row.get("episode_index")), _whole(row.get("length"))
        if number is None or not length:
            found.problems.append("an episode without number or length")
            continue
        entry = _entry_of_v3 if newest else _entry_of_v2
        try:
            found.entries.append(entry(info, camera, row, number, length, _task_texts(row, found.tasks)))
        except KeyError as error:
            found.problems.append(f"episode {number}: its row lacks {error}")
    found.entries.sort(key=lambda entry: entry.number)
    return found


def _rows_of_v3(folder: Path, found: EpisodeList) -> Iterator[Row]:
    for path in files_below(folder / "meta" / "episodes", {".parquet"}):
        try:
            yield from read_rows(path, without="stats/")
        except UserError as error:
            found.problems.append(str(error))


def _rows_of_v2(info: DatasetInfo, found: EpisodeList) -> Iterator[Row]:
    path = info.folder / "meta" / "episodes.jsonl"
    if not path.is_file():
        found.problems.append(f"there is no file {path}")
        return
    yield from read_json_lines(path)


def _entry_of_v3(
    info: DatasetInfo, camera: Camera, row: Row, number: int, length: int, texts: tuple[str, ...]
) -> EpisodeEntry:
    common = {"episode_index": number, "episode_chunk": number // info.chunk_size, "video_key": camera.key}
    data = info.path(info.data_path, **common, **_file_number(row, "data"))
    if camera.embedded:
        return EpisodeEntry(number, length, texts, data, None)
    prefix = f"videos/{camera.key}"
    video = info.path(_video_template(info), **common, **_file_number(row, prefix))
    return EpisodeEntry(number, length, texts, data, video, float(row[f"{prefix}/from_timestamp"]))


def _entry_of_v2(
    info: DatasetInfo, camera: Camera, row: Row, number: int, length: int, texts: tuple[str, ...]
) -> EpisodeEntry:
    chunk = number // info.chunk_size
    fields = {"episode_index": number, "episode_chunk": chunk, "chunk_index": chunk, "file_index": number}
    data = info.path(info.data_path, **fields, video_key=camera.key)
    video = None if camera.embedded else info.path(_video_template(info), **fields, video_key=camera.key)
    return EpisodeEntry(number, length, texts, data, video)


def _video_template(info: DatasetInfo) -> str:
    if info.video_path is None:
        raise UserError(f'{info.folder / INFO} names cameras with videos, but no "video_path", the template of files.')
    return info.video_path


def _file_number(row: Row, prefix: str) -> dict[str, int]:
    return {name: int(row[f"{prefix}/{name}"]) for name in ("chunk_index", "file_index")}


def _read_tasks(folder: Path, newest: bool) -> dict[int, str]:
    """Texts by number. A dataset without the table has none: episodes state their texts themselves."""
    path = folder / "meta" / ("tasks.parquet" if newest else "tasks.jsonl")
    try:
        rows = read_rows(path) if newest else read_json_lines(path)
    except UserError:
        return {}
    tasks: dict[int, str] = {}
    for row in rows:
        number = _whole(row.get("task_index"))
        texts = [value for name, value in row.items() if name != "task_index" and isinstance(value, str)]
        text = row.get("task") or row.get("__index_level_0__") or next(iter(texts), "")
        if number is not None:
            tasks[number] = str(text)
    return tasks


def _task_texts(row: Row, tasks: Mapping[int, str]) -> tuple[str, ...]:
    """The different texts of an episode; numbers are looked up in the table of tasks."""
    values = row.get("tasks")
    listed = values if isinstance(values, list) else [values]
    texts = [tasks.get(value, "") if isinstance(value, int) else str(value or "") for value in listed]
    return tuple(dict.fromkeys(text.strip() for text in texts if text.strip()))


def task_classes(folder: Path, tasks: Mapping[int, str]) -> list[str]:
    """The texts of the tasks as names of classes, in the order of their numbers; equal texts are one class.

    Raises UserError for a dataset without tasks, or with too many.
    """
    names = list(dict.fromkeys(tasks[number].strip() for number in sorted(tasks) if tasks[number].strip()))
    if not names:
        raise UserError(f"tasks_as_classes needs tasks, but the dataset {folder} states none: omit it.")
    if len(names) > MAX_TASK_CLASSES:
        raise UserError(
            f"tasks_as_classes allows at most {MAX_TASK_CLASSES:,} tasks, {folder} has {len(names):,}: omit it, and "
            "train on the texts as captions."
        )
    return names


# ------------------------------------------------------------------------------------------------------------- files


def _json_object(path: Path) -> dict[str, Any]:
    text = read_text(path)
    try:
        values = parse_json(text)
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({reason(error)}); copy it again.") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} is not a JSON object.")
    return cast(dict[str, Any], values)


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _num_episodes(value: object, path: Path) -> int:
    """Episodes by info.json, 0 where it does not say. Raises UserError for more than a dataset has."""
    if (count := _whole(value) or 0) > MAX_EPISODES:
        raise UserError(f"{path} states {count:,} episodes; at most {MAX_EPISODES:,} are read.")
    return count


def split_numbers(info: DatasetInfo, split: str) -> Sequence[range] | None:
    """The episode numbers of a split as info.json states them; None where the dataset is not divided.

    Raises UserError for an unknown split.
    """
    if len(info.splits) < 2 and (split == "train" or split in info.splits):
        return None
    if split not in info.splits:
        known = ", ".join(info.splits) or "train"
        raise UserError(f"{info.folder} has the splits {known}; found {split!r}.")
    ranges = []
    for part in info.splits[split].split(","):
        first, colon, end = part.strip().partition(":")
        if not colon or not (first or "0").isdigit() or not (end or "0").isdigit():
            raise UserError(f'{info.folder / INFO}: split {split!r} must be "first:end"; found {part!r}.')
        ranges.append(range(int(first or 0), int(end) if end else info.num_episodes))
    return ranges
