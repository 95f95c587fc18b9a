"""How the windows of recordings vary in time: drawn frame intervals, and a temporal gap after the first frame.

Dynamic intervals are MAGI's (arXiv 2501.12389, section 3.3). A window with a gap is what a model sees late in a long
clip if it keeps the first frame beside the latest ones (`window_mode` "anchored"), as language models keep their first
tokens (attention sinks, arXiv 2309.17453).
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mutoscope.checks import NOT_NEGATIVE, SHARE, check_fields
from mutoscope.data.base import check_intervals
from mutoscope.data.sources.folder import clip_span
from mutoscope.errors import UserError

MIN_FRAMES_WITH_GAP = 3  # a first frame, the frame after the gap, and one frame to learn
GAP_SHARE = 0.5  # of the windows, as in the synthetic dataset: two clips of every four


class Window(NamedTuple):
    """Where the frames of a clip are in their video.

    start: number of the frame one step before the second one. interval: strides from one frame to the next. gap: frames
    of the clip omitted after the first one, which is that many steps before `start`.
    """

    start: int
    interval: int = 1
    gap: int = 0


@dataclass(frozen=True)
class TimeVariation:
    """What is drawn for each window: one of these intervals, and for a share of the windows a gap of up to max_gap."""

    intervals: tuple[int, ...] = ()
    max_gap: int = 0
    gap_share: float = GAP_SHARE

    def __post_init__(self) -> None:
        object.__setattr__(self, "intervals", tuple(self.intervals))  # JSON has no tuples
        check_fields(self, {"max_gap": NOT_NEGATIVE, "gap_share": SHARE})

    def __bool__(self) -> bool:
        """Whether windows vary at all."""
        return bool(self.intervals or self.max_gap)

    def check(self, num_frames: int, frame_stride: int, max_interval: int) -> None:
        """Raises UserError where clips with these settings cannot vary in this way."""
        check_intervals(self.intervals, frame_stride)
        if self.intervals and max_interval > 1:
            raise UserError("intervals and max_interval both say how far apart frames are: leave max_interval at 1.")
        if self.max_gap and num_frames < MIN_FRAMES_WITH_GAP:
            raise UserError(
                f"max_gap must be 0 for clips of fewer than {MIN_FRAMES_WITH_GAP} frames (the first one, the one after "
                f"the gap, and one to learn); found {self.max_gap} for num_frames {num_frames}."
            )

    def draw(
        self, window: Window, num_frames: int, frame_stride: int, available: int, rng: np.random.Generator
    ) -> Window:
        """The window with its interval and gap. available: frames of the video.

        The interval and the gap are independent draws, so that windows with a gap have all intervals.
        """
        interval = window.interval
        if self.intervals:
            drawn = self.intervals[int(rng.integers(len(self.intervals)))]
            fits = [n for n in self.intervals if clip_span(num_frames, frame_stride * n) <= available - window.start]
            interval = drawn if drawn in fits else max(fits, default=1)
        room = min(self.max_gap, window.start // (frame_stride * interval))  # clip frames before the window
        has_gap = rng.random() < self.gap_share and room > 0
        return Window(window.start, interval, int(rng.integers(1, room + 1)) if has_gap else 0)


STEADY = TimeVariation()  # interval 1, no gaps


def window_generator(seed: int, video: int, window: int) -> np.random.Generator:
    """The draws of one window: the same in every epoch, so that a token cache holds them."""
    return np.random.default_rng([seed, video, window])
