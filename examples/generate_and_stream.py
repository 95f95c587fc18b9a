"""Generate one clip of a class, then stream a longer one frame by frame and steer it while it runs.

    python examples/generate_and_stream.py --out outputs/example --num-frames 48

Both models are bundled: `par-shapes-4x` decodes a clip in 131 steps and returns it as a whole; `magi-shapes` generates
frame after frame, so that each frame can be shown, and the next ones changed, before the clip has an end. A minute on
two CPU cores. Writes spin.mp4 and stream.mp4.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mutoscope import VideoPipeline
from mutoscope.data.video.write import VideoWriter

SCALE = 8  # the bundled models generate 32x32 pixels; each is enlarged to a square


def generate(out: Path) -> np.ndarray:
    """Write a clip of a class; returns its frames (t, h, w, 3)."""
    pipeline = VideoPipeline.from_pretrained("par-shapes-4x")
    clip = pipeline(class_label="square-spin", seed=0)
    clip.save(out / "spin.mp4", scale=SCALE)
    return clip.frames


def steered_frames(first_frame: np.ndarray, num_frames: int) -> Iterator[np.ndarray]:
    """Frames (h, w, 3) that continue `first_frame` (1, h, w, 3); after half of them the class is changed."""
    pipeline = VideoPipeline.from_pretrained("magi-shapes")
    stream = pipeline.stream(context=first_frame, class_label="square-glide", num_frames=num_frames, seed=0)
    for number, frame in enumerate(stream):
        yield frame
        if number == num_frames // 2:
            stream.change(class_label="square-spin")  # from the next frame on


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/example"), help="folder for the videos")
    parser.add_argument("--num-frames", type=int, default=48, help="length of the stream")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    frames = generate(options.out)
    print(f"{options.out / 'spin.mp4'}: {len(frames)} frames")

    start = time.perf_counter()
    with VideoWriter(options.out / "stream.mp4", fps=8, scale=SCALE) as writer:
        for number, frame in enumerate(steered_frames(frames[:1], options.num_frames), start=1):
            writer.write(frame)
            print(f"frame {number} after {time.perf_counter() - start:.2f} s", flush=True)


if __name__ == "__main__":
    main()
