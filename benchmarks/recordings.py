"""Random windows of a LeRobot dataset: read by seeking, against decoding whole files; and memory.

    python benchmarks/recordings.py OUT.json [--episodes 200] [--frames 150] [--windows 400] [--codec libsvtav1]

The dataset (v3.0, written here by PyAV and pyarrow, 20 episodes per file, a keyframe every 2 frames as lerobot writes)
is read as clips of 16 frames at random episodes and starts, on one thread, with their actions. The baseline decodes a
window's whole file with PyAV and converts the same 16 frames. Both read the same windows; resident memory is that of
the process that seeks, after its first 10 windows and at its end.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import av
import numpy as np
import pyarrow
import pyarrow.parquet
from jaxtyping import UInt8

from mutoscope.data.sources.lerobot import EpisodeFile, list_lerobot
from timing import Report, write_report

HEIGHT, WIDTH, FPS, PER_FILE, CLIP = 96, 128, 30, 20, 16
CAMERA = "observation.images.front"


def episode_frames(seed: int, count: int) -> UInt8[np.ndarray, "t h w 3"]:
    """A bright spot that moves over a textured ground."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(40, 160, (HEIGHT // 8, WIDTH // 8, 3))
    ground = coarse.repeat(8, axis=0).repeat(8, axis=1).astype(np.uint8)
    frames = np.broadcast_to(ground, (count, HEIGHT, WIDTH, 3)).copy()
    steps = rng.integers(-2, 3, (count, 2)).cumsum(axis=0)
    for frame, (dy, dx) in zip(frames, steps, strict=True):
        y, x = (HEIGHT // 2 + dy) % (HEIGHT - 12), (WIDTH // 2 + dx) % (WIDTH - 12)
        frame[y : y + 12, x : x + 12] = 250
    return frames


def write_dataset(folder: Path, episodes: int, count: int, codec: str) -> None:
    """A dataset of one camera with actions of three numbers."""
    listed: list[dict[str, object]] = []
    for number in range(0, episodes, PER_FILE):
        part = range(number, min(number + PER_FILE, episodes))
        at = {"chunk_index": 0, "file_index": number // PER_FILE}
        video = folder / f"videos/{CAMERA}/chunk-000/file-{at['file_index']:03d}.mp4"
        write_video(video, (frame for episode in part for frame in episode_frames(episode, count)), codec)
        rows = [
            {"timestamp": np.float32(t / FPS), "frame_index": t, "episode_index": episode, "index": episode * count + t,
             "task_index": 0, "action": [float(t % 7), float(episode), float(t % 2)]}
            for episode in part for t in range(count)
        ]  # fmt: skip
        table(folder / f"data/chunk-000/file-{at['file_index']:03d}.parquet", rows, count)
        for offset, episode in enumerate(part):
            begin = offset * count / FPS
            entry: dict[str, object] = {"episode_index": episode, "tasks": ["move"], "length": count}
            entry |= {f"data/{name}": value for name, value in at.items()}
            entry |= {f"videos/{CAMERA}/{name}": value for name, value in at.items()}
            entry |= {f"videos/{CAMERA}/from_timestamp": begin, f"videos/{CAMERA}/to_timestamp": begin + count / FPS}
            listed.append(entry)
    table(folder / "meta/episodes/chunk-000/file-000.parquet", listed)
    table(folder / "meta/tasks.parquet", [{"task_index": 0, "__index_level_0__": "move"}])
    info = {
        "codebase_version": "v3.0", "fps": FPS, "total_episodes": episodes,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": {
            CAMERA: {"dtype": "video", "shape": [HEIGHT, WIDTH, 3]},
            "action": {"dtype": "float32", "shape": [3], "names": ["x", "y", "press"]},
        },
    }  # fmt: skip
    (folder / "meta/info.json").write_text(json.dumps(info))


def write_video(path: Path, frames: Iterator[UInt8[np.ndarray, "h w 3"]], codec: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = cast(av.VideoStream, container.add_stream(codec, rate=FPS))
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        stream.options = {"g": "2", "crf": "30", "preset": "12" if codec == "libsvtav1" else "ultrafast"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def table(path: Path, rows: list[dict[str, object]], rows_per_group: int | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=rows_per_group)


def whole_file_window(file: EpisodeFile, start: int) -> UInt8[np.ndarray, "t h w 3"]:
    """The plain way: decode the file and keep the frames of the window."""
    first = round(file.from_seconds * FPS) + start
    with av.open(str(file.path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        frames = enumerate(container.decode(video=0))
        kept = [frame.to_ndarray(format="rgb24") for n, frame in frames if first <= n < first + CLIP]
    return np.stack(kept)


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--frames", type=int, default=150)
    parser.add_argument("--windows", type=int, default=400)
    parser.add_argument("--baseline-windows", type=int, default=12)
    parser.add_argument("--codec", default="libsvtav1")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_dataset(folder, args.episodes, args.frames, args.codec)
        report = measure(folder, args.frames, args.windows, args.baseline_windows)
    write_report(args.out, {"codec": args.codec, "machine": platform.processor(), **report})
    print(json.dumps(report, indent=2))


def measure(folder: Path, count: int, num_windows: int, num_baseline: int) -> Report:
    began = time.perf_counter()
    listing = list_lerobot(folder)
    opened = time.perf_counter() - began
    rng = np.random.default_rng(0)
    starts = rng.integers(0, count - CLIP, num_windows)
    windows = list(zip(rng.integers(0, len(listing.files), num_windows), starts, strict=True))
    memory: list[int] = []
    began, cpu = time.perf_counter(), time.process_time()
    clips = []
    for number, (episode, start) in enumerate(windows):
        frames, _ = listing.reader.read(listing.files[episode], int(start), CLIP, 1, None)
        listing.reader.extras(listing.files[episode], range(start, start + CLIP))
        clips += [frames] if number < num_baseline else []
        memory += [resident_bytes()] if number in (9, num_windows - 1) else []
    seeking, seeking_cpu = time.perf_counter() - began, time.process_time() - cpu
    began, cpu = time.perf_counter(), time.process_time()
    for clip, (episode, start) in zip(clips, windows, strict=False):
        file = listing.files[episode]
        assert isinstance(file, EpisodeFile)
        np.testing.assert_array_equal(whole_file_window(file, int(start)), clip)
    whole, whole_cpu = time.perf_counter() - began, time.process_time() - cpu
    return {
        "episodes": len(listing.files), "frames_per_episode": count, "clip": CLIP, "size": [HEIGHT, WIDTH],
        "bytes": sum(path.stat().st_size for path in folder.rglob("*.mp4")), "seconds_to_open": round(opened, 3),
        "windows": num_windows, "windows_per_second_seeking": round(num_windows / seeking, 2),
        "baseline_windows": num_baseline, "windows_per_second_whole_files": round(num_baseline / whole, 3),
        "ratio": round(num_windows / seeking / (num_baseline / whole), 1),
        "ratio_of_processor_time": round(num_windows / seeking_cpu / (num_baseline / whole_cpu), 1),
        "resident_bytes_after_10_windows": memory[0], "resident_bytes_at_end": memory[-1],
    }  # fmt: skip


if __name__ == "__main__":
    main()
