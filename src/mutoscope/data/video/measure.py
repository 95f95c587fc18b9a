"""How many frames a video has, at which rate and for how long: one measure for reading, reports and training.

Headers state nominal rates: browsers write 1000 frames per second, screen recorders a highest rate, and edit lists hide
frames that the header counts. So the times of the packets decide, and where these are unusable, those of the frames.
"""

from dataclasses import dataclass
from math import fsum
from pathlib import Path

from mutoscope.data.media import IMAGE_SUFFIXES
from mutoscope.data.video.decode import (
    DEFAULT_FPS,
    DecodeState,
    check_file,
    choose_stream,
    decode_stream,
    header_fps,
    open_container,
)
from mutoscope.data.video.index import FrameIndex, index_frames
from mutoscope.data.video.stills import still_lengths
from mutoscope.errors import UserError


@dataclass(frozen=True)
class Measured:
    """num_frames: shown frames. fps: their average rate. seconds: from the first frame to the end of the last one."""

    num_frames: int
    fps: float
    seconds: float


def measure(path: str | Path, stream: int | None = None) -> Measured:
    """Count and time the frames of a video, an animated image or a still image (one frame, at 1 frame per second).

    Reads all packets, and decodes the video only where packets and frames may differ. stream: as `read_video`.
    Raises UserError as `read_video` does.
    """
    path = check_file(path)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        lengths = still_lengths(path)
        seconds = fsum(lengths)
        return Measured(len(lengths), len(lengths) / seconds, seconds)
    index = index_frames(path, stream)
    if not index.reliable:
        return _by_decoding(path, stream)
    return _measured(index.num_packets, index.span or 0.0, index.last_length, index.stated_fps)


def measured_fps(path: Path, stream: int | None = None) -> float:
    """The rate alone, for which times of packets suffice in more files than for `measure`."""
    index = index_frames(path, stream)
    return rate_of_packets(index) or _by_decoding(path, stream).fps


def rate_of_packets(index: FrameIndex) -> float | None:
    """The average rate of a video by its packets; None where they have no usable times."""
    if index.span is None:
        return None
    return average_rate(index.num_packets, index.span, index.last_length, index.stated_fps)


def average_rate(num_frames: int, span: float, last_length: float, stated: float | None) -> float:
    """Frames per second: the rate that the header states if all frames take as long as it says, else their own.

    span: seconds from the first to the last frame. last_length: seconds that the last frame is shown; where it is
    missing or much shorter than the average, that is taken instead. stated: None without a rate in the header. Rounded
    or misplaced times may add up to half a frame, in a long video to one frame.
    """
    if num_frames < 2 or span <= 0:
        return stated or DEFAULT_FPS
    step = span / (num_frames - 1)
    seconds = span + (last_length if last_length > step / 2 else step)
    allowed = min(max(0.5, 0.01 * num_frames), 1.02)
    fits = stated is not None and abs(num_frames - seconds * stated) < allowed
    return stated if stated is not None and fits else num_frames / seconds


def _measured(num_frames: int, span: float, last_length: float, stated: float | None) -> Measured:
    fps = average_rate(num_frames, span, last_length, stated)
    return Measured(num_frames, fps, num_frames / fps)


def _by_decoding(path: Path, stream: int | None) -> Measured:
    state = DecodeState()
    with open_container(path) as container:
        chosen = choose_stream(container, path, stream, [])
        stated = header_fps(chosen)
        for _ in decode_stream(container, chosen, stated or DEFAULT_FPS, state):
            pass
    if not state.num_decoded:
        raise UserError(f"{path} holds no frame that can be decoded ({state.error or 'the stream is empty'})")
    return _measured(state.num_decoded, state.last_seconds, state.last_length, stated)
