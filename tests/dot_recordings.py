"""Recordings of a white dot that moves exactly by its action, and writers of them in the formats that are read."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import Float32, UInt8

HEIGHT, WIDTH, DOT = 32, 48, 6
NAMES = ("dx", "dy", "press")


@dataclass(frozen=True, eq=False)
class DotEpisode:
    """Frame t + 1 is frame t moved by (dx, dy) = actions[t, :2] pixels; actions[t, 2] is a button."""

    frames: UInt8[np.ndarray, "t h w 3"]
    actions: Float32[np.ndarray, "t 3"]
    corners: np.ndarray
    """(t, 2): x and y of the dot's upper left corner."""
    task: str

    def __len__(self) -> int:
        return len(self.frames)


def dot_episode(seed: int, length: int, task: str = "", grey: int = 0) -> DotEpisode:
    """An episode of this many frames; its numbers are a function of the seed."""
    rng = np.random.default_rng(seed)
    corners, actions = [np.array([20, 12])], []
    for _ in range(length):
        low = np.maximum(-2, -corners[-1])
        high = np.minimum(2, np.array([WIDTH - DOT, HEIGHT - DOT]) - corners[-1])
        step = rng.integers(low, high + 1)
        actions.append([*step, rng.integers(2)])
        corners.append(corners[-1] + step)
    frames = np.full((length, HEIGHT, WIDTH, 3), grey, np.uint8)
    for frame, (x, y) in zip(frames, corners, strict=False):
        frame[y : y + DOT, x : x + DOT] = 255
    return DotEpisode(frames, np.array(actions, np.float32), np.array(corners[:length]), task)


def dot_corners(frames: UInt8[np.ndarray, "t h w 3"]) -> Float32[np.ndarray, "t 2"]:
    """x and y of the dot's upper left corner in every frame, from its centre of mass."""
    light = np.where(frames > 127, frames, 0).astype(np.float64).sum(-1)  # (t, h, w)
    total = light.sum((1, 2))
    x = (light.sum(1) * np.arange(frames.shape[2])).sum(1) / total
    y = (light.sum(2) * np.arange(frames.shape[1])).sum(1) / total
    return (np.stack([x, y], axis=1) - (DOT - 1) / 2).astype(np.float32)


def write_video(
    path: Path, frames: np.ndarray, fps: int = 10, start: float = 0.0, codec: str = "libx264", **options: str
) -> Path:
    """Frames as a file that loses little. start: seconds of the first frame."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = cast(av.VideoStream, container.add_stream(codec, rate=fps))
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        stream.options = cast(Any, {"crf": "12", "g": "4", "bf": "0"} | options)
        for number, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            frame.pts = number + round(start * fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_lerobot(
    folder: Path,
    episodes: Sequence[DotEpisode],
    *,
    version: str = "v3.0",
    fps: int = 10,
    cameras: Sequence[str] = ("observation.images.front",),
    embedded: bool = False,
    per_file: int = 2,
    per_chunk: int = 2,
    data_path: str | None = None,
    video_path: str | None = None,
    action: Mapping[str, Any] | None = None,
    info: Mapping[str, Any] | None = None,
) -> Path:
    """A LeRobot dataset. per_file: episodes in a file (v3.0); per_chunk: files in a chunk.

    action: overrides of the feature "action", with "rows" for its column (None: no such feature). info: overrides of
    info.json.
    """
    newest = version.startswith("v3")
    tables, videos = (
        ("data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
         "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4")
        if newest else
        ("data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
         "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4")
    )  # fmt: skip
    tables, videos = data_path or tables, video_path or videos
    feature: dict[str, Any] = {"dtype": "float32", "shape": [3], "names": list(NAMES)} | dict(action or {})
    rows_of = feature.pop("rows", lambda episode: episode.actions)
    pixels = {"dtype": "image" if embedded else "video", "shape": [HEIGHT, WIDTH, 3]}
    features = {camera: dict(pixels) for camera in cameras} | {"action": feature}
    tasks = list(dict.fromkeys(episode.task for episode in episodes))
    per_file = per_file if newest else 1
    listed: list[dict[str, Any]] = []
    for first in range(0, len(episodes), per_file):
        part = episodes[first : first + per_file]
        number = first // per_file
        at = {"chunk_index": number // per_chunk, "file_index": number % per_chunk, "episode_index": first}
        at["episode_chunk"] = first // per_chunk
        frames: list[dict[str, Any]] = []
        seconds = 0.0
        for offset, episode in enumerate(part):
            rows = rows_of(episode)
            for t in range(len(episode)):
                row = {"timestamp": t / fps, "frame_index": t, "episode_index": first + offset, "index": t}
                row |= {"task_index": tasks.index(episode.task)}
                row |= {} if rows is None else {"action": np.asarray(rows[t]).tolist()}
                row |= {camera: png(episode.frames[t]) for camera in cameras if embedded}
                frames.append(row)
            entry = {"episode_index": first + offset, "tasks": [episode.task], "length": len(episode)}
            if newest:
                entry |= {"data/chunk_index": at["chunk_index"], "data/file_index": at["file_index"]}
                for camera in cameras if not embedded else ():
                    entry |= {f"videos/{camera}/{name}": at[name] for name in ("chunk_index", "file_index")}
                    entry |= {f"videos/{camera}/from_timestamp": seconds}
                    entry |= {f"videos/{camera}/to_timestamp": seconds + len(episode) / fps}
                entry |= {"stats/action/min": [0.0]}
            seconds += len(episode) / fps
            listed.append(entry)
        write_table(folder / tables.format(video_key="", **at), frames, len(part[0]))
        for camera in cameras if not embedded else ():
            write_video(folder / videos.format(video_key=camera, **at), np.concatenate([e.frames for e in part]), fps)
    numbered = [{"task_index": n, "task": task} for n, task in enumerate(tasks)]
    meta = folder / "meta"
    meta.mkdir(parents=True, exist_ok=True)
    if newest:
        write_table(meta / "episodes/chunk-000/file-000.parquet", listed)
        texts = [{"task_index": row["task_index"], "__index_level_0__": row["task"]} for row in numbered]
        write_table(meta / "tasks.parquet", texts)
    else:
        write_lines(meta / "episodes.jsonl", listed)
        write_lines(meta / "tasks.jsonl", numbered)
    values = {
        "codebase_version": version, "fps": fps, "features": features, "total_episodes": len(episodes),
        "chunks_size": per_chunk, "splits": {"train": f"0:{len(episodes)}"}, "data_path": tables,
        "video_path": None if embedded else videos,
    }  # fmt: skip
    if rows_of(episodes[0]) is None:
        del features["action"]
    (meta / "info.json").write_text(json.dumps(values | dict(info or {})))
    return folder


def png(frame: np.ndarray) -> dict[str, Any]:
    """A cell of an image feature."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "png")
    return {"bytes": buffer.getvalue(), "path": "frame.png"}


def write_table(path: Path, rows: Sequence[Mapping[str, Any]], rows_per_group: int | None = None) -> Path:
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.Table.from_pylist([dict(row) for row in rows])
    if "timestamp" in table.column_names:
        at = table.column_names.index("timestamp")
        table = table.set_column(at, "timestamp", table["timestamp"].cast(pyarrow.float32()))
    pyarrow.parquet.write_table(table, path, row_group_size=rows_per_group)
    return path


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path
