"""Episodes to a LeRobot v3.0 dataset, which the lerobot package and our readers open.

Episodes come encoded, one H.264 file each (`EpisodePart`); their packets are copied into files of many episodes, so
that writing the dataset costs no second encoding. `meta/info.json` is written last: a folder without it is no dataset.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from jaxtyping import Float32, UInt8

from mutoscope.actions import Kind
from mutoscope.data.video.decode import require_av
from mutoscope.errors import UserError
from mutoscope.writing import writing

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.video.stream import VideoStream

VERSION = "v3.0"
CAMERA = "observation.images.screen"
CHUNK_SIZE = 1_000  # files in a chunk, as in the lerobot package
DATA_MB, VIDEO_MB = 100, 200  # sizes of files at which the next one begins, as in the lerobot package
ROW_BYTES, TABLE_BYTES = 64, 2**17  # about, of a frame in the tables, and of the tables' headers
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-000/file-000.parquet"
TIME_BASE = 90_000  # ticks per second in the videos: whole numbers of ticks per frame at all usual rates
QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
COUNTERS = ("timestamp", "frame_index", "episode_index", "index", "task_index")

# The lerobot package writes files without colour tags, and its readers ignore them: BT.601 is what they assume.
BT601, LIMITED_RANGE = 6, 1

# Near-lossless: full colour resolution and a mean error below one level (44 to 47 dB on Doom's frames). A key frame
# every eighth frame keeps seeking cheap.
PIXEL_FORMAT = "yuv444p"
H264_OPTIONS = {"crf": "4", "preset": "veryfast", "g": "8", "bf": "0", "threads": "1", "sc_threshold": "0"}

Statistics = dict[str, list[Any]]


@dataclass(frozen=True)
class EpisodePart:
    """One recorded episode: its video file, and what was done in every frame."""

    video: Path
    task: str
    actions: Float32[np.ndarray, "t a"]
    rewards: Float32[np.ndarray, " t"]
    done: np.ndarray
    """bool (t): the environment ended after this frame's action"""
    pixels: Statistics
    """statistics of the frames, see `pixel_statistics`"""
    sha256: str = ""
    """of the frames before they were encoded"""

    def __len__(self) -> int:
        return len(self.actions)


@dataclass(frozen=True)
class DatasetForm:
    """What all episodes of a dataset share."""

    fps: float
    height: int
    width: int
    action_names: tuple[str, ...]
    action_kind: Kind
    robot_type: str
    num_bytes: int = VIDEO_MB * 2**20
    """size of a video file at which the next one begins"""


@dataclass
class _Place:
    """Where an episode is stored."""

    video_file: int
    from_timestamp: float
    first_row: int = 0


def encode_episode(frames: Sequence[UInt8[np.ndarray, "h w 3"]], fps: float, path: Path) -> None:
    """Frames as one near-lossless H.264 file."""
    av = require_av(path)
    with writing(path, temporary=path), av.open(f"file:{path}", "w", format="mp4") as container:
        stream = cast("VideoStream", container.add_stream("libx264", rate=exact_rate(fps)))
        stream.height, stream.width, stream.pix_fmt = frames[0].shape[0], frames[0].shape[1], PIXEL_FORMAT
        stream.options = dict[str, object](H264_OPTIONS)
        context = stream.codec_context
        context.thread_count = 1
        context.colorspace = context.color_primaries = context.color_trc = BT601
        context.color_range = LIMITED_RANGE
        for number, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(yuv444_planes(array), format=PIXEL_FORMAT)
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def yuv444_planes(frame: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "3 h w"]:
    """Luma and colour differences by BT.601 in limited range, the same on every machine.

    FFmpeg's own conversion rounds differently with the alignment of the memory, so that equal frames of two processes
    would not give equal files.
    """
    red, green, blue = np.moveaxis(frame.astype(np.float64), -1, 0)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    planes = (16 + luma * 219 / 255, 128 + (blue - luma) / 1.772 * 224 / 255, 128 + (red - luma) / 1.402 * 224 / 255)
    return np.rint(np.stack(planes)).astype(np.uint8)


def exact_rate(fps: float) -> Fraction:
    """A rate as a fraction that containers hold."""
    return Fraction(fps).limit_denominator(1001)


def pixel_statistics(frames: Sequence[UInt8[np.ndarray, "h w 3"]]) -> Statistics:
    """Exact statistics of each colour channel in [0, 1], as (channel, 1, 1) lists, from histograms of 256 levels."""
    channels = np.stack(frames).reshape(-1, 3).T  # (3, t*h*w)
    measured = [_of_histogram(np.bincount(channel, minlength=256)) for channel in channels]
    shaped: Statistics = {name: [[[one[name]]] for one in measured] for name in measured[0]}
    return shaped | {"count": [len(frames)]}


def _of_histogram(counts: np.ndarray) -> dict[str, float]:
    """Statistics of levels 0 ... 255, scaled to [0, 1], from how often each occurs."""
    levels, present = np.arange(256) / 255, np.flatnonzero(counts)
    mean = float(np.average(levels, weights=counts))
    numbers = {"min": float(levels[present[0]]), "max": float(levels[present[-1]]), "mean": mean}
    numbers["std"] = float(np.sqrt(np.average((levels - mean) ** 2, weights=counts)))
    below = np.cumsum(counts)
    return numbers | {
        name: float(levels[np.searchsorted(below, share * below[-1])]) for name, share in QUANTILES.items()
    }


def row_statistics(rows: np.ndarray) -> Statistics:
    """Statistics of a column over an episode, one number per axis."""
    values = np.asarray(rows, dtype=np.float64).reshape(len(rows), -1)
    numbers = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
    numbers |= {name: np.quantile(values, share, axis=0) for name, share in QUANTILES.items()}
    return {name: value.tolist() for name, value in numbers.items()} | {"count": [len(values)]}


def combined(parts: Sequence[Statistics]) -> Statistics:
    """Statistics of a whole dataset from those of its episodes; quantiles are averaged, as the lerobot package does."""
    counts = np.array([part["count"][0] for part in parts], dtype=np.float64)
    shares = counts / counts.sum()

    def stacked(name: str) -> np.ndarray:
        return np.array([part[name] for part in parts])

    means, shape = stacked("mean"), (-1, *[1] * (stacked("mean").ndim - 1))
    weights = shares.reshape(shape)
    mean = (means * weights).sum(0)
    variance = ((stacked("std") ** 2 + (means - mean) ** 2) * weights).sum(0)
    numbers = {"min": stacked("min").min(0), "max": stacked("max").max(0), "mean": mean, "std": np.sqrt(variance)}
    numbers |= {name: (stacked(name) * weights).sum(0) for name in QUANTILES}
    return {name: value.tolist() for name, value in numbers.items()} | {"count": [int(counts.sum())]}


def write_dataset(folder: Path, parts: Sequence[EpisodePart], form: DatasetForm) -> None:
    """All files of a dataset below an existing folder; `meta/info.json` comes last.

    Raises UserError without episodes, and where the disk is full or cannot be written.
    """
    if not parts:
        raise UserError("A dataset needs at least one episode.")
    needed = sum(part.video.stat().st_size + ROW_BYTES * len(part) for part in parts) + TABLE_BYTES
    with writing(folder, needed), _removed_unless_whole(folder):
        places = _write_videos(folder, parts, form)
        tasks = list(dict.fromkeys(part.task for part in parts))
        statistics = _write_rows(folder, parts, form, tasks)
        _write_episodes(folder, parts, places, statistics)
        _write_tasks(folder, tasks)
        whole = {name: combined([one[name] for one in statistics]) for name in statistics[0]}
        _write_json(folder / "meta/stats.json", whole)
        _write_json(folder / "meta/info.json", _info(parts, form, tasks))


@contextmanager
def _removed_unless_whole(folder: Path) -> Iterator[None]:
    """The files of a dataset whose writing failed are of no use: its parts, from which it is written again, stay."""
    try:
        yield
    except BaseException:
        for name in ("videos", "data", "meta"):
            shutil.rmtree(folder / name, ignore_errors=True)
        raise


# ---------------------------------------------------------------------------------------------------------------------
# Videos


def _write_videos(folder: Path, parts: Sequence[EpisodePart], form: DatasetForm) -> list[_Place]:
    places: list[_Place] = []
    for number, group in enumerate(_groups(parts, form.num_bytes)):
        path = folder / VIDEO_PATH.format(video_key=CAMERA, **_file_numbers(number))
        path.parent.mkdir(parents=True, exist_ok=True)
        starts = _join(group, path, exact_rate(form.fps))
        places += [_Place(number, start) for start in starts]
    rows = 0
    for place, part in zip(places, parts, strict=True):
        place.first_row = rows
        rows += len(part)
    return places


def _groups(parts: Sequence[EpisodePart], num_bytes: int) -> Iterator[list[EpisodePart]]:
    """Episodes that share a video file."""
    group: list[EpisodePart] = []
    size = 0
    for part in parts:
        length = part.video.stat().st_size
        if group and size + length > num_bytes:
            yield group
            group, size = [], 0
        group.append(part)
        size += length
    yield group


def _join(parts: Sequence[EpisodePart], path: Path, rate: Fraction) -> list[float]:
    """Copies the packets of several files into one; returns the second at which each begins."""
    av = require_av(path)
    starts, frames = [], 0
    with av.open(f"file:{path}", "w", format="mp4", options={"movflags": "+faststart"}) as container:
        with av.open(f"file:{parts[0].video}") as first:
            stream = cast("VideoStream", container.add_stream_from_template(first.streams.video[0]))
        for part in parts:
            with av.open(f"file:{part.video}") as source:
                _copy(source, container, stream, frames, rate)
            starts.append(float(frames / rate))
            frames += len(part)
    return starts


def _copy(source: Any, container: "OutputContainer", stream: "VideoStream", first: int, rate: Fraction) -> None:
    """Packets of one episode, moved to the frames from `first` on. There are no B-frames: order is time."""
    number = first
    ticks = Fraction(1, TIME_BASE)
    for packet in source.demux(source.streams.video[0]):
        if packet.size == 0:
            continue
        begin, end = round(number / rate / ticks), round((number + 1) / rate / ticks)
        packet.time_base, packet.pts, packet.dts, packet.duration = ticks, begin, begin, end - begin
        packet.stream = stream
        container.mux(packet)
        number += 1


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def _write_rows(
    folder: Path, parts: Sequence[EpisodePart], form: DatasetForm, tasks: Sequence[str]
) -> list[dict[str, Statistics]]:
    """The table of frames; returns the statistics of every episode. One group of rows per episode."""
    import pyarrow
    from pyarrow import parquet

    path = folder / DATA_PATH.format(**_file_numbers(0))
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = pyarrow.schema(
        [
            ("action", pyarrow.list_(pyarrow.float32(), len(form.action_names))),
            ("next.reward", pyarrow.float32()),
            ("next.done", pyarrow.bool_()),
            ("timestamp", pyarrow.float32()),
            *((name, pyarrow.int64()) for name in COUNTERS[1:]),
        ]
    )
    statistics, first = [], 0
    with parquet.ParquetWriter(path, schema) as writer:
        for number, part in enumerate(parts):
            columns = _columns(part, number, first, tasks.index(part.task), form.fps)
            arrays = [_array(columns[name], schema.field(name).type) for name in schema.names]
            writer.write_table(pyarrow.Table.from_arrays(arrays, schema=schema))
            statistics.append({CAMERA: part.pixels} | {name: row_statistics(rows) for name, rows in columns.items()})
            first += len(part)
    return statistics


def _columns(part: EpisodePart, number: int, first: int, task: int, fps: float) -> dict[str, np.ndarray]:
    count = len(part)
    steps = np.arange(count)
    return {
        "action": part.actions,
        "next.reward": part.rewards.astype(np.float32),
        "next.done": part.done.astype(bool),
        "timestamp": (steps / fps).astype(np.float32),
        "frame_index": steps,
        "episode_index": np.full(count, number),
        "index": steps + first,
        "task_index": np.full(count, task),
    }


def _array(values: np.ndarray, kind: Any) -> Any:
    import pyarrow

    if values.ndim == 2:
        return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(values.reshape(-1)), values.shape[1])
    return pyarrow.array(values, type=kind)


def _write_episodes(
    folder: Path,
    parts: Sequence[EpisodePart],
    places: Sequence[_Place],
    statistics: Sequence[Mapping[str, Statistics]],
) -> None:
    rows = []
    for number, (part, place, measured) in enumerate(zip(parts, places, statistics, strict=True)):
        video = {f"videos/{CAMERA}/{name}": index for name, index in _file_numbers(place.video_file).items()}
        video |= {f"videos/{CAMERA}/from_timestamp": place.from_timestamp}
        row: dict[str, Any] = {
            "episode_index": number,
            "tasks": [part.task],
            "length": len(part),
            "data/chunk_index": 0,
            "data/file_index": 0,
            "dataset_from_index": place.first_row,
            "dataset_to_index": place.first_row + len(part),
            **video,
        }
        row |= {f"stats/{key}/{name}": value for key, one in measured.items() for name, value in one.items()}
        rows.append(row | {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0})
    _write_table(folder / EPISODES_PATH, rows)


def _write_tasks(folder: Path, tasks: Sequence[str]) -> None:
    """The texts are the index of a pandas table in the lerobot package, hence the column's name and the metadata."""
    pandas = {
        "index_columns": ["__index_level_0__"],
        "column_indexes": [{"name": None, "field_name": None, "pandas_type": "unicode", "numpy_type": "object",
                            "metadata": {"encoding": "UTF-8"}}],
        "columns": [{"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64",
                     "metadata": None},
                    {"name": None, "field_name": "__index_level_0__", "pandas_type": "unicode",
                     "numpy_type": "object", "metadata": None}],
        "creator": {"library": "pyarrow", "version": ""},
        "pandas_version": "2.0.0",
    }  # fmt: skip
    rows = [{"task_index": number, "__index_level_0__": task} for number, task in enumerate(tasks)]
    _write_table(folder / "meta/tasks.parquet", rows, {"pandas": json.dumps(pandas)})


def _write_table(path: Path, rows: Sequence[Mapping[str, Any]], metadata: Mapping[str, str] | None = None) -> None:
    import pyarrow
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.Table.from_pylist([dict(row) for row in rows])
    parquet.write_table(table.replace_schema_metadata(dict(metadata)) if metadata else table, path)


def _write_json(path: Path, values: Mapping[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=4) + "\n", encoding="utf-8")


def _file_numbers(number: int) -> dict[str, int]:
    return {"chunk_index": number // CHUNK_SIZE, "file_index": number % CHUNK_SIZE}


def _info(parts: Sequence[EpisodePart], form: DatasetForm, tasks: Sequence[str]) -> dict[str, object]:
    fps: float | int = int(form.fps) if form.fps == int(form.fps) else form.fps
    features: dict[str, object] = {
        CAMERA: {
            "dtype": "video",
            "shape": [form.height, form.width, 3],
            "names": ["height", "width", "channels"],
            "info": {
                "video.height": form.height,
                "video.width": form.width,
                "video.codec": "h264",
                "video.pix_fmt": PIXEL_FORMAT,
                "video.is_depth_map": False,
                "video.fps": fps,
                "video.channels": 3,
                "has_audio": False,
            },
        },
        "action": {"dtype": "float32", "shape": [len(form.action_names)], "names": list(form.action_names)},
        "next.reward": {"dtype": "float32", "shape": [1], "names": None},
        "next.done": {"dtype": "bool", "shape": [1], "names": None},
    }
    features |= {
        name: {"dtype": "float32" if name == "timestamp" else "int64", "shape": [1], "names": None} for name in COUNTERS
    }
    return {
        "codebase_version": VERSION,
        "robot_type": form.robot_type,
        "total_episodes": len(parts),
        "total_frames": sum(map(len, parts)),
        "total_tasks": len(tasks),
        "chunks_size": CHUNK_SIZE,
        "data_files_size_in_mb": DATA_MB,
        "video_files_size_in_mb": VIDEO_MB,
        "fps": fps,
        "splits": {"train": f"0:{len(parts)}"},
        "data_path": DATA_PATH,
        "video_path": VIDEO_PATH,
        "features": features,
    }
