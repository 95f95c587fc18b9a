"""The frame size, the rate and the length of clips for a recording, chosen for the machine that trains on it."""

import itertools
import math
from typing import Literal

Machine = Literal["cpu", "gpu"]

PIXELS = {"cpu": 64 * 80, "gpu": 128 * 160}  # of a frame: two cores or one GPU train these sizes in an evening
DETAIL = 0.3  # cost of other numbers of pixels against that of another aspect, which crops; 64x80 for 4:3 on a CPU
LOWEST_FPS = 8.0  # frames of a clip are as far apart as this allows: neighbours at 30 frames/s hardly differ


def frame_size(recorded: tuple[int, int], multiple: int, machine: Machine) -> tuple[int, int]:
    """(height, width) in multiples of `multiple`, close to the recording's aspect; not larger than the recording.

    recorded: (height, width) of its frames. Among all sizes the one with the smallest sum of
    |log(aspect / aspect of the recording)| and 0.3 · |log(pixels / pixels of the machine)| is taken.
    """
    aspect, pixels = recorded[0] / recorded[1], min(PIXELS[machine], math.prod(recorded))
    rows, columns = (range(multiple, max(side, multiple) + 1, multiple) for side in recorded)

    def cost(size: tuple[int, int]) -> float:
        return abs(math.log(size[0] / size[1] / aspect)) + DETAIL * abs(math.log(math.prod(size) / pixels))

    return min(itertools.product(rows, columns), key=cost)


def frame_stride(fps: float, num_frames: int, available: int | None) -> int:
    """Frames of the recording from one frame of a clip to the next.

    The largest stride at which a clip has at least 8 frames per second, and still fits into `available` frames (None:
    into any number).
    """
    stride = max(1, int(fps / LOWEST_FPS))
    fits = stride if available is None or num_frames < 2 else max(1, (available - 1) // (num_frames - 1))
    return min(stride, fits)


def clip_length(wanted: int, available: int | None, temporal_stride: int, num_alone: int) -> int:
    """Frames per clip: those wanted, or the most that the videos have and the tokenizer encodes without padding.

    num_alone: frames that the tokenizer encodes alone before its groups of `temporal_stride`.
    """
    frames = wanted if available is None else min(wanted, available)
    groups = max((frames - num_alone) // temporal_stride, 0 if num_alone else 1)
    return num_alone + groups * temporal_stride


def window_step(span: int, num_videos: int, frames: int, most: int) -> int:
    """Frames from the start of one window to the next: a quarter of a window, or more where there would be too many.

    span: frames of the recording that a window covers; frames: of a typical video; most: windows in all.
    """
    room = max(num_videos * max(frames - span, 0), 1)  # first frames beyond each video's first window
    return max(1, span // 4, math.ceil(room / max(most - num_videos, 1)))
