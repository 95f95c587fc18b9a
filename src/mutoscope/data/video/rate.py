"""The frame rate of a video: what its header states, and what its frames show."""

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from mutoscope.data.video.decode import codec_name

if TYPE_CHECKING:
    from av.video.stream import VideoStream

DEFAULT_FPS = 25.0  # FFmpeg's own default
HIGHEST_FPS = 1000  # a header that states more holds a time base instead of a rate
RATE_TOLERANCE = 0.02  # header and frames may differ by this part before the frames are believed


def average_fps(stream: "VideoStream") -> float:
    """Average rate by the header in frames per second; 25 where the header states no usable rate.

    GIF has no rate, only delays, of which FFmpeg reports the shortest: there the packets are counted.
    """
    if codec_name(stream) == "gif" and stream.container.format.name == "gif":
        return _gif_fps(stream.container.name) or DEFAULT_FPS
    for rate in (stream.average_rate, stream.guessed_rate, stream.base_rate):
        if rate and 0 < rate <= HIGHEST_FPS:
            return float(rate)
    return DEFAULT_FPS


def _gif_fps(url: str) -> float | None:
    import av

    count, seconds = 0, 0.0
    with suppress(av.FFmpegError), av.open(url, metadata_errors="replace") as container:
        for packet in container.demux(video=0):
            if packet.size and packet.duration:
                count, seconds = count + 1, seconds + float(packet.duration * packet.time_base)
    return count / seconds if seconds else None


def measured_fps(times: Sequence[float], header_fps: float) -> float:
    """The header's rate, or the real average of a whole video where the two differ by more than 2 percent.

    times: seconds of every frame. Containers such as Matroska state a nominal rate, which is far from the average of a
    video with a variable rate.
    """
    if len(times) < 3 or times[-1] <= times[0]:
        return header_fps
    measured = (len(times) - 1) / (times[-1] - times[0])
    return measured if abs(measured / header_fps - 1) > RATE_TOLERANCE else header_fps
