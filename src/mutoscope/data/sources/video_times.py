"""When the frames of a video file are shown, in seconds as the file states them, and where a file cut short ends."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from jaxtyping import Float64, Int64

from mutoscope.data.video.boxes import scan_boxes
from mutoscope.data.video.decode import check_file, choose_stream, open_container
from mutoscope.data.video.read import FrameIndex, index_frames, iter_frames
from mutoscope.errors import UserError

MP4_SUFFIXES = (".mp4", ".m4v", ".mov")
# Time units in seconds that round times more coarsely than 0.1 ms, and still finely enough to tell frames apart.
COARSE_UNIT, COARSEST_UNIT = 1e-4, 1.001e-3
SMALL = (2, 2)  # frames are scaled to this where only their times matter


@dataclass(frozen=True, eq=False)
class VideoTimes:
    """The time of every frame by number, and the index to seek by.

    rounding: how far a stored time may be from the true one, where the file's time unit is coarse (Matroska: 1 ms).
    """

    seconds: Float64[np.ndarray, " n"]
    index: FrameIndex
    rounding: float = 0.0

    @classmethod
    def of(cls, path: Path) -> Self:
        """Reads packets without decoding; a container without reliable times is decoded once.

        Raises UserError where the file cannot be read or holds no frame.
        """
        with open_container(path) as container:
            stream = choose_stream(container, path, None, [])
            unit, start = float(stream.time_base or 0), stream.start_time or 0
        index = index_frames(path)
        if index.reliable:
            seconds = index.pts * unit
        else:
            with iter_frames(path, size=SMALL) as reader:
                list(reader)
            seconds = start * unit + np.array(reader.times)
        if not len(seconds):
            raise UserError(f"{path} holds no frame that can be decoded.")
        return cls(seconds, index, unit / 2 if COARSE_UNIT < unit < COARSEST_UNIT else 0.0)

    def nearest(self, seconds: Float64[np.ndarray, " t"]) -> Int64[np.ndarray, " t"]:
        """The number of the frame nearest to each time."""
        later = np.searchsorted(self.seconds, seconds).clip(1, max(1, len(self.seconds) - 1))
        later = np.minimum(later, len(self.seconds) - 1)
        earlier = np.maximum(later - 1, 0)
        return np.where(seconds - self.seconds[earlier] < self.seconds[later] - seconds, earlier, later).astype(
            np.int64
        )


def last_whole_frame(path: Path) -> float:
    """The time of the last frame in a file that was cut short; infinity for a whole one, which is not looked into.

    Raises UserError for a file that is missing, empty or cannot be opened.
    """
    check_file(path)
    cut = is_cut(path)
    if path.suffix.lower() in MP4_SUFFIXES and not cut:
        return float("inf")
    times = VideoTimes.of(path).seconds
    return float(times[-2 if cut and len(times) > 1 else -1])  # a file that is cut may end within its last packet


def is_cut(path: Path) -> bool:
    """Whether a file is an MP4 that is cut off or still being written. Other containers do not show it."""
    if path.suffix.lower() not in MP4_SUFFIXES or not path.is_file():
        return False
    boxes = scan_boxes(path)
    return boxes.is_cut or not boxes.has_index
