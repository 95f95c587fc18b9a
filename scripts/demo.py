"""A minute of Mutoscope: films of named classes, a predicted future, and the tokenizer's round trip of your own video.

    python scripts/demo.py --out outputs --video my.mp4        (or: make demo VIDEO=my.mp4)

Everything generated comes from the bundled model `magvit-shapes`; nothing is downloaded.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from mutoscope import ShapesConfig, ShapesWorld, UserError, VideoPipeline, read_video, write_video
from mutoscope.data.shapes import HELD_BACK_SEED
from mutoscope.data.video_io import contact_sheet

MODEL = "magvit-shapes"
SCALE = 8  # films of 32×32 pixels are saved enlarged, each pixel a square
CLASS_LABELS = ("square-spin", "circle-orbit", "triangle-bounce", "cross-swing")


def timed(work: Callable[[], list]) -> tuple[list, float]:
    start = time.perf_counter()
    clips = work()
    return clips, time.perf_counter() - start


def report(path: Path, num_frames: int, seconds: float) -> None:
    print(f"{path}  {num_frames} frames in {seconds:.2f} s = {num_frames / seconds:.1f} frames/s")


def save_sheet(path: Path, rows: list[np.ndarray], scale: int) -> None:
    """One contact sheet: a row of frames for each clip."""
    sheet = contact_sheet(rows)
    Image.fromarray(sheet.repeat(scale, axis=0).repeat(scale, axis=1)).save(path)
    print(path)


def side_by_side(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Two clips (t, h, w, 3) in one, with a narrow grey bar between them."""
    bar = np.full((*left.shape[:2], 2, 3), 128, dtype=np.uint8)
    return np.concatenate([left, bar, right], axis=2)  # (t, h, 2 w + 2, 3)


def class_conditional(pipeline: VideoPipeline, out: Path) -> None:
    """One film for each of a few named classes."""
    films = []
    for label in CLASS_LABELS:
        [clip], seconds = timed(lambda label=label: [pipeline(class_label=label, seed=1)])
        path = out / f"class-{label}.mp4"
        write_video(path, clip.frames, clip.fps, scale=SCALE)
        report(path, len(clip.frames), seconds)
        films.append(clip.frames)
    save_sheet(out / "classes.png", films, scale=4)


def frame_prediction(pipeline: VideoPipeline, out: Path) -> None:
    """The future of one given frame, beside what really happened in the built-in world (a clip never trained on)."""
    real = ShapesWorld(ShapesConfig(), seed=HELD_BACK_SEED).clip(3).frames
    [clip], seconds = timed(lambda: [pipeline(context=real[:1], seed=1)])
    path = out / "prediction.mp4"
    write_video(path, side_by_side(real, clip.frames), clip.fps, scale=SCALE)
    report(path, len(clip.frames), seconds)
    save_sheet(out / "prediction.png", [real, clip.frames], scale=4)


def round_trip(pipeline: VideoPipeline, video: Path, out: Path) -> None:
    """A real video through the tokenizer and back, beside the original."""
    source = read_video(video)
    [result], seconds = timed(lambda: [pipeline.reconstruct(source.frames)])
    path = out / "round-trip.mp4"
    write_video(path, side_by_side(source.frames, result.frames), source.fps)
    report(path, len(result.frames), seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs"), help="folder for the films")
    parser.add_argument("--video", type=Path, help="a video of yours for the tokenizer's round trip")
    arguments = parser.parse_args()
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
        pipeline = VideoPipeline.from_pretrained(MODEL)
        class_conditional(pipeline, arguments.out)
        frame_prediction(pipeline, arguments.out)
        if arguments.video:
            round_trip(pipeline, arguments.video, arguments.out)
    except UserError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
