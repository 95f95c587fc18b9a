"""LeRobot datasets as recordings: one entry per episode, read by seeking in files that hold many.

Frame t of an episode is the video frame shown at `from_timestamp + timestamp[t]`, within 0.1 ms; a frame further off is
an error, since it would pair images with the actions of other frames.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Float64, Int64

from mutoscope.data.media import covering_pixels, decode_image, stacked
from mutoscope.data.sources.datasets.listing import Listing, RecordedActions
from mutoscope.data.sources.folder import FileProblem, MediaFile
from mutoscope.data.sources.lerobot_tables import (
    ActionFeature,
    Camera,
    DatasetInfo,
    EpisodeEntry,
    EpisodeList,
    list_episodes,
    read_info,
    split_numbers,
    task_classes,
)
from mutoscope.data.sources.parquet import EpisodeRows
from mutoscope.data.sources.readers import MAX_CACHED_INDICES, Clip
from mutoscope.data.sources.video_times import VideoTimes, last_whole_frame
from mutoscope.data.video.read import FrameStream
from mutoscope.errors import UserError, reason

TIME_TOLERANCE = 1e-4  # seconds, as the lerobot package checks
ALL_EPISODES = "all"
MAX_CACHED_EPISODES = 512


@dataclass(frozen=True)
class EpisodeFile(MediaFile):
    """One episode. path: its file of frames: a video, or the table of frames where images are embedded."""

    episode: int = 0
    length: int = 0
    data: Path = Path()
    from_seconds: float = 0.0


@dataclass
class LeRobotReader:
    """Episodes of one camera. Keeps positions and actions of some episodes, and no frames."""

    folder: Path
    camera: Camera
    actions: ActionFeature | None = None
    _tables: dict[Path, EpisodeRows] = field(default_factory=dict, repr=False)
    _videos: dict[Path, VideoTimes] = field(default_factory=dict, repr=False)
    _numbers: dict[int, np.ndarray] = field(default_factory=dict, repr=False)
    _rows: dict[int, np.ndarray] = field(default_factory=dict, repr=False)

    def num_frames(self, file: MediaFile) -> int:
        """As the table of episodes states it, which was compared with the rows."""
        return _episode(file).length

    def fps(self, file: MediaFile) -> float | None:
        return None

    def read(
        self, file: MediaFile, start: int, max_frames: int, stride: int, size: tuple[int, int] | None
    ) -> tuple[Clip, int]:
        episode = _episode(file)
        chosen = range(start, episode.length, stride)[:max_frames]
        if not chosen:
            return stacked([], size), episode.length
        if self.camera.embedded:
            return self._images(episode, chosen, size), episode.length
        return self._video_frames(episode, chosen, size)

    def extras(self, file: MediaFile, frames: Sequence[int]) -> dict[str, np.ndarray]:
        if self.actions is None:
            return {}
        episode = _episode(file)
        if episode.episode not in self._rows:
            _limit(self._rows, MAX_CACHED_EPISODES)
            self._rows[episode.episode] = self._action_rows(episode, self.actions)
        return {"actions": self._rows[episode.episode][list(frames)]}

    def table(self, path: Path) -> EpisodeRows:
        """The table of frames in a file. Raises UserError for a damaged one."""
        if path not in self._tables:
            _limit(self._tables, MAX_CACHED_INDICES)
            self._tables[path] = EpisodeRows(path)
        return self._tables[path]

    def _action_rows(self, file: EpisodeFile, actions: ActionFeature) -> Float32[np.ndarray, "t a"]:
        column = self.table(file.data).read(file.episode, [actions.key])[actions.key]
        try:
            rows = np.array(column.to_pylist(), dtype=np.float32)  # a null becomes NaN: unknown
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{file.name}: {actions.key} does not hold rows of numbers of one length ({reason(error)})."
            ) from None
        rows = rows.reshape(len(rows), -1)  # (t, a): actions of several axes are flattened
        if rows.shape != (file.length, len(actions.names)):
            raise UserError(
                f"{file.name}: {actions.key} has {rows.shape[0]} rows of {rows.shape[1]} numbers, expected "
                f"{file.length} of {len(actions.names)}."
            )
        return rows

    def _images(self, file: EpisodeFile, chosen: range, size: tuple[int, int] | None) -> Clip:
        cells = self.table(file.data).cells(file.episode, self.camera.key, chosen[0], chosen[-1] + 1)
        frames = [
            self._image(file, cell, number, size) for number, cell in enumerate(cells, chosen[0]) if number in chosen
        ]
        if len({frame.shape for frame in frames}) > 1:
            raise UserError(f"{file.name}: its images differ in size; they cannot be one video.")
        return stacked(frames, size)

    def _image(self, file: EpisodeFile, cell: object, number: int, size: tuple[int, int] | None) -> np.ndarray:
        """A cell of images: {"bytes": ..., "path": ...}, of which one may be missing."""
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        where = f"{file.name}: frame {number}"
        if data is None and isinstance(cell, dict) and cell.get("path"):
            data = _file_inside(self.folder, str(cell["path"]), where)
        if not isinstance(data, bytes):
            raise UserError(f"{where} holds no image.")
        try:
            return covering_pixels(decode_image(io.BytesIO(data)), size)
        except (OSError, ValueError, SyntaxError) as error:
            raise UserError(f"{where} is not an image that can be read ({reason(error)}).") from None

    def _video_frames(self, file: EpisodeFile, chosen: range, size: tuple[int, int] | None) -> tuple[Clip, int]:
        """Frames by seeking, and how many frames of the episode are known to be readable."""
        video, numbers = self._video(file.path), self._frame_numbers(file)
        wanted = numbers[list(chosen)]
        steps = np.diff(wanted)
        stride = int(steps[0]) if len(steps) and (steps == steps[0]).all() else 1
        count = (int(wanted[-1]) - int(wanted[0])) // stride + 1
        reader = FrameStream(
            file.path, start=int(wanted[0]), max_frames=count, stride=stride, size=size, keep_aspect=True,
            index=video.index,
        )  # fmt: skip
        with reader:
            try:
                frames = list(reader)
            except UserError:
                if not reader.frames_decoded:
                    raise
                frames = []  # the file ends before the first frame that is wanted
        if stride == 1:
            frames = [frames[at] for at in (wanted - wanted[0]).tolist() if at < len(frames)]
        whole = len(frames) == len(chosen)
        readable = file.length if whole else int((numbers < reader.frames_decoded).sum())
        return stacked(frames, size), readable

    def _video(self, path: Path) -> VideoTimes:
        if path not in self._videos:
            _limit(self._videos, MAX_CACHED_INDICES)
            self._videos[path] = VideoTimes.of(path)
        return self._videos[path]

    def _frame_numbers(self, file: EpisodeFile) -> Int64[np.ndarray, " t"]:
        """The number in the video file of every frame of an episode."""
        if file.episode not in self._numbers:
            _limit(self._numbers, MAX_CACHED_EPISODES)
            stamps = self.table(file.data).read(file.episode, ["timestamp"])["timestamp"].to_numpy()
            self._numbers[file.episode] = frames_at(file, stamps.astype(np.float32), self._video(file.path))
        return self._numbers[file.episode]


def frames_at(file: EpisodeFile, timestamps: Float32[np.ndarray, " t"], video: VideoTimes) -> Int64[np.ndarray, " t"]:
    """The number in the file of the frame shown at each time stamp of an episode.

    Raises UserError, naming episode and frame, where the nearest frame is more than the tolerance away: 0.1 ms, and the
    rounding of what stores the times: float32 in tables, and milliseconds in some containers.
    """
    wanted: Float64[np.ndarray, " t"] = file.from_seconds + timestamps.astype(np.float64).reshape(-1)
    numbers = video.nearest(wanted)
    off = np.abs(video.seconds[numbers] - wanted)
    allowed = TIME_TOLERANCE + video.rounding + np.spacing(np.abs(timestamps).reshape(-1)).astype(np.float64)
    if (bad := np.flatnonzero(~(off <= allowed))).size:
        t = int(bad[0])
        raise UserError(
            f"{file.path}: frame {t} of episode {file.episode} should be at {wanted[t]:.5f} s, but the nearest frame "
            f"of the video is at {video.seconds[numbers[t]]:.5f} s; more than {TIME_TOLERANCE} s apart, so that video "
            "and table are not of one recording: copy or record them again."
        )
    return numbers


def list_lerobot(
    folder: str | Path, camera: str | None = None, split: str = ALL_EPISODES, *, tasks_as_classes: bool = False
) -> Listing:
    """The whole episodes of a LeRobot dataset; the others are `missing`, each with the reason.

    camera: the key of a camera's feature or its last part; the first camera by default. split: one that info.json
    lists, or "all". tasks_as_classes: the tasks of the dataset are classes, and an episode is of the class of its first
    task. Raises UserError where info.json is damaged, for an unknown camera or split, or for tasks that cannot be
    classes.
    """
    folder = Path(folder)
    info = read_info(folder)
    chosen = info.camera(camera)
    found = list_episodes(info, chosen)
    reader = LeRobotReader(folder, chosen, info.actions)
    classes = task_classes(folder, found.tasks) if tasks_as_classes else []
    files, missing = _whole_episodes(info, found, reader, classes)
    if split != ALL_EPISODES and (ranges := split_numbers(info, split)) is not None:
        files = [file for file in files if any(_episode(file).episode in part for part in ranges)]
    names = info.camera_names()
    return Listing(
        "lerobot",
        folder,
        "" if split == ALL_EPISODES else split,
        files,
        classes,
        missing=missing,
        reader=reader,
        notes=(*_camera_notes(info, chosen, camera is None), *_class_notes(files, classes), *info.notes),
        frame_fields={"actions": len(info.actions.names)} if info.actions else {},
        fps=info.fps,
        format=f"lerobot {info.version}",
        cameras=tuple(names),
        camera=names[info.cameras.index(chosen)],
        actions=RecordedActions(info.actions.names, info.actions.kind) if info.actions else None,
        lengths_known=True,
        unit="episodes",
    )


def _camera_notes(info: DatasetInfo, chosen: Camera, by_default: bool) -> list[str]:
    others = [camera.key for camera in info.cameras if camera != chosen]
    return [f"the camera is {chosen.key}; others are {', '.join(others)}"] if others and by_default else []


def _class_notes(files: Sequence[MediaFile], classes: Sequence[str]) -> list[str]:
    without = sum(file.label < 0 for file in files) if classes else 0
    return [f"{without} of {len(files)} episodes have no task of the table, so no class"] if without else []


def _whole_episodes(
    info: DatasetInfo, found: EpisodeList, reader: LeRobotReader, classes: Sequence[str]
) -> tuple[list[MediaFile], list[FileProblem]]:
    """Episodes whose rows and frames are there, and why the others are not whole. classes: texts of tasks, by label."""
    ends: dict[Path, float | str] = {}
    problems: dict[Path, str] = {}
    files: list[MediaFile] = []
    missing: list[FileProblem] = []
    labels = {name: label for label, name in enumerate(classes)}
    for entry in found.entries:
        reason = _table_problem(entry, reader, problems) or _video_problem(entry, info.fps, ends)
        if reason:
            missing.append(FileProblem(f"episode {entry.number}", reason))
        else:
            files.append(_file(entry, found, reader, labels))
    unlisted = max(len(found.problems), info.num_episodes - len(found.entries))
    reasons = [*found.problems, *["it is not in the table of episodes"] * unlisted][:unlisted]
    missing += [FileProblem(str(info.folder), reason) for reason in reasons]
    return files, missing


def _file(entry: EpisodeEntry, found: EpisodeList, reader: LeRobotReader, labels: Mapping[str, int]) -> EpisodeFile:
    caption, first = entry.caption, entry.texts[0] if entry.texts else ""
    if not caption and found.tasks and "task_index" in reader.table(entry.data).columns:
        [task] = reader.table(entry.data).read(entry.number, ["task_index"], 0, 1)["task_index"].to_pylist()
        caption = found.tasks.get(task, "")
        first = caption.strip()
    path = entry.video or entry.data
    part = f"episode {entry.number}"
    label = labels.get(first, -1)
    return EpisodeFile(path, label, caption, part, entry.number, entry.length, entry.data, entry.from_seconds)


def _table_problem(entry: EpisodeEntry, reader: LeRobotReader, problems: dict[Path, str]) -> str | None:
    """Why the rows of an episode cannot be read, or None. problems: of files, found so far."""
    if entry.data not in problems:
        try:
            reader.table(entry.data)
        except UserError as error:
            problems[entry.data] = str(error)
    if entry.data in problems:
        return problems[entry.data]
    rows = reader.table(entry.data).length(entry.number)
    return None if rows == entry.length else f"{entry.data} holds {rows} of its {entry.length} rows"


def _video_problem(entry: EpisodeEntry, fps: float, ends: dict[Path, float | str]) -> str | None:
    """Why the frames of an episode cannot be read, or None. ends: last times of files, or why they cannot be read."""
    if entry.video is None:
        return None
    if entry.video not in ends:
        try:
            ends[entry.video] = last_whole_frame(entry.video)
        except UserError as error:
            ends[entry.video] = str(error)
    end = ends[entry.video]
    if isinstance(end, str):
        return end
    last = entry.from_seconds + (entry.length - 1.5) / fps
    return None if end > last else f"{entry.video} ends at {end:.2f} s, before its last frame"


def _file_inside(folder: Path, name: str, where: str) -> bytes:
    """The bytes of a file of the dataset. Raises UserError for a path that leads out of it."""
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise UserError(f"{where} is {name!r}, which leads out of the dataset's folder.")
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{where}: {path} cannot be read: {reason(error)}.") from None


def _episode(file: MediaFile) -> EpisodeFile:
    if not isinstance(file, EpisodeFile):
        raise TypeError(f"{file} is not an episode")
    return file


def _limit(cache: dict, size: int) -> None:
    """Room for one more entry: the oldest one goes."""
    if len(cache) >= size:
        cache.pop(next(iter(cache)))
