"""Memory and time of `mutoscope reconstruct`, and how much tiles and chunks change the result.

    python benchmarks/reconstruct.py vq-shapes benchmarks/results/reconstruct.json [--clips FOLDER] [--no-1080p]

Memory: one process per video, peak resident size as the verb reports it, on synthetic videos.
Windows: PSNR between the reconstruction in windows and that of the whole clip, which differ because GroupNorm
statistics are those of a window. Clips: frame count, size and rate of every readable real video in FOLDER.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from mutoscope import hub
from mutoscope.data.media import files_below
from mutoscope.data.sources.shapes.world import ShapesConfig, ShapesWorld
from mutoscope.data.video.read import VIDEO_SUFFIXES, VideoWriter, iter_frames, probe, read_video
from mutoscope.tokenizers.base import VideoTokenizer
from mutoscope.tokenizers.tiling import TilingConfig, encode_decode
from timing import Report, write_report

MEMORY_CASES = [(64, 240, 320), (512, 240, 320), (64, 240, 432), (512, 240, 432), (16, 1080, 1920), (64, 1080, 1920)]
WHOLE = TilingConfig(tile=4096, tile_overlap=0, chunk=4096, chunk_overlap=0)


def synthetic_video(num_frames: int, height: int, width: int) -> Iterator[np.ndarray]:
    """Frames of moving shapes at any size, clip after clip."""
    for index in range(-(-num_frames // 16)):
        clip = ShapesWorld(ShapesConfig(height, width, 16), seed=1).clip(index)
        yield from clip.frames[: num_frames - 16 * index]


def reconstruct(model: str, source: Path, target: Path) -> Report:
    """The report of the verb, run in a separate process."""
    command = [sys.executable, "-m", "mutoscope", "reconstruct", model, str(source), str(target), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return json.loads(done.stdout) if done.returncode == 0 else {"error": done.stderr.strip().splitlines()[-1]}


def memory_row(model: str, folder: Path, num_frames: int, height: int, width: int) -> Report:
    """Seconds and peak memory for one size and length."""
    source = folder / f"{num_frames}x{height}x{width}.mp4"
    with VideoWriter(source, fps=24) as writer:
        for frame in synthetic_video(num_frames, height, width):
            writer.write(frame)
    report = reconstruct(model, source, folder / "out.mp4")
    keys = ("frames", "height", "width", "seconds", "peak_memory_bytes", "error")
    return {key: report[key] for key in keys if key in report}


def clip_row(model: str, source: Path, folder: Path) -> Report:
    """Whether the round trip of a real video keeps its frames, size and rate."""
    target = folder / "out.webm"
    report = reconstruct(model, source, target)
    if "error" in report:
        return {"file": source.name, **report}
    with iter_frames(source) as frames:
        count = sum(1 for _ in frames)
    written, original = read_video(target), probe(source)
    return {
        "file": source.name,
        "frames": [count, len(written.frames)],
        "size": [f"{report['height']}x{report['width']}", "x".join(map(str, written.frames.shape[1:3]))],
        "fps": [round(float(original.fps), 3), round(float(written.fps), 3)],
        "psnr_db": report["psnr_db"],
        "seconds": report["seconds"],
        "peak_memory_bytes": report["peak_memory_bytes"],
    }


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(np.square((a.astype(np.float64) - b) / 255).mean()))


def window_row(tokenizer: VideoTokenizer, name: str, frames: np.ndarray, tile: int, chunk: int) -> Report:
    """One video reconstructed as a whole and in windows."""
    whole = encode_decode(tokenizer, frames, WHOLE)
    pieces = encode_decode(tokenizer, frames, TilingConfig(tile=tile, chunk=chunk))
    return {
        "video": name,
        "tile": tile,
        "chunk": chunk,
        "psnr_whole_db": psnr(whole, frames),
        "psnr_windows_db": psnr(pieces, frames),
        "psnr_between_db": psnr(whole, pieces),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--clips", type=Path, help="folder of real videos")
    parser.add_argument("--no-1080p", action="store_true", help="omit the slow sizes")
    arguments = parser.parse_args()
    tokenizer = hub.load_tokenizer(arguments.model)
    videos = {"moving shapes": np.stack(list(synthetic_video(48, 128, 128)))}
    files = files_below(arguments.clips, VIDEO_SUFFIXES) if arguments.clips else []
    for path in islice((p for p in files if "carphone" in p.name or "bunny" in p.name), 2):
        videos[path.name] = read_video(path, max_frames=48).frames
    cases = [case for case in MEMORY_CASES if not (arguments.no_1080p and case[1] == 1080)]
    sections: dict[str, list[Report]] = {"windows": [], "clips": [], "memory": []}
    result: Report = {
        "model": arguments.model,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        **sections,
    }

    def add(section: str, row: Report) -> None:
        """Writes every row as soon as it is measured: the large videos take many minutes."""
        sections[section].append(row)
        write_report(arguments.out, result, indent=1)
        print(json.dumps(row), flush=True)

    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        folder = Path(name)
        for label, frames in videos.items():
            for tile, chunk in ((4096, 16), (64, 4096), (64, 16)):
                add("windows", window_row(tokenizer, label, frames, tile, chunk))
        for path in files:
            add("clips", clip_row(arguments.model, path, folder))
        for case in cases:
            add("memory", memory_row(arguments.model, folder, *case))


if __name__ == "__main__":
    main()
