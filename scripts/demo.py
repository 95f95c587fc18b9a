"""A minute of Mutoscope: films of named classes, a predicted future, and the tokenizer's round trip of your own video.

    python scripts/demo.py --out outputs --video my.mp4        (or: make demo VIDEO=my.mp4)

Everything generated comes from two small bundled models; nothing is downloaded.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mutoscope import ShapesConfig, ShapesWorld, UserError, VideoPipeline, read_video, write_video
from mutoscope.data.sources.shapes.world import HELD_BACK_SEED
from mutoscope.data.video.read import contact_sheet

SCALE = 8  # the model's small films are saved enlarged, each pixel a square
CLASS_LABELS = ("square-spin", "circle-orbit", "triangle-bounce", "cross-swing")
ROUND_TRIP_FRAMES = 48  # at most so many of your video, so that the demo stays short


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs"), help="folder for the films")
    parser.add_argument("--video", type=Path, help="a video of yours for the tokenizer's round trip")
    parser.add_argument("--class-model", default="par-shapes-4x", help="what makes films of named classes")
    parser.add_argument("--model", default="magvit-shapes", help="what predicts the future of a frame")
    arguments = parser.parse_args()
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
        class_conditional(VideoPipeline.from_pretrained(arguments.class_model), arguments.out)
        pipeline = VideoPipeline.from_pretrained(arguments.model)
        frame_prediction(pipeline, arguments.out)
        if arguments.video:
            round_trip(pipeline, arguments.video, arguments.out)
    except (UserError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    return 0


def class_conditional(pipeline: VideoPipeline, out: Path) -> None:
    """One film for each of a few named classes, and all of them on one sheet."""
    films = []
    for label in CLASS_LABELS:
        generation = pipeline.generate(class_label=label, seed=1)
        [clip] = generation.clips
        save_film(out / f"class-{label}.mp4", clip.frames, clip.fps, generation.seconds, SCALE)
        films.append(clip.frames)
    save_sheet(out / "classes.png", films, CLASS_LABELS)


def frame_prediction(pipeline: VideoPipeline, out: Path) -> None:
    """The future of one given frame, beside what really happened in the built-in world (a clip never trained on)."""
    size = ShapesConfig(pipeline.index.height, pipeline.index.width, pipeline.index.num_frames)
    real = ShapesWorld(size, HELD_BACK_SEED).clip(3).frames
    generation = pipeline.generate(context=real[:1], seed=1)
    [clip] = generation.clips
    save_film(out / "prediction.mp4", side_by_side(real, clip.frames), clip.fps, generation.seconds, SCALE)
    save_sheet(out / "prediction.png", [real, clip.frames], ["what happened", "predicted from the first frame"])


def round_trip(pipeline: VideoPipeline, video: Path, out: Path) -> None:
    """A real video through the tokenizer and back, beside the original."""
    source = read_video(video, max_frames=ROUND_TRIP_FRAMES)
    start = time.perf_counter()
    result = pipeline.reconstruct(source)
    seconds = time.perf_counter() - start
    save_film(out / "round-trip.mp4", side_by_side(source.frames, result.frames), result.fps, seconds)


def side_by_side(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Two clips (t, h, w, 3) in one, with a narrow grey bar between them."""
    bar = np.full((*left.shape[:2], 2, 3), 128, dtype=np.uint8)
    return np.concatenate([left, bar, right], axis=2)  # (t, h, 2 w + 2, 3)


def save_film(path: Path, frames: np.ndarray, fps: float, seconds: float, scale: int = 1) -> None:
    """Write a film and say how long its frames took to make (decoding of tokens included, writing not)."""
    for warning in write_video(path, frames, fps, scale=scale):
        print(f"demo: {warning}", file=sys.stderr)
    print(f"{path}  {len(frames)} frames in {seconds:.2f} s, {len(frames) / seconds:.1f} frames/s")


def save_sheet(path: Path, films: Sequence[np.ndarray], labels: Sequence[str]) -> None:
    Image.fromarray(contact_sheet(films, scale=2, labels=labels)).save(path)
    print(f"{path}  contact sheet")


if __name__ == "__main__":
    sys.exit(main())
