"""From a file to decoded frames: opening, choosing a stream, decoding in order, seeking.

`read.py` has the public functions; `index.py` says where frames are without decoding, `damage.py` what is missing.
PyAV is imported inside the functions so that the package works without it.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mutoscope.data.video.boxes import Beginning, scan_boxes
from mutoscope.data.video.tables import check_tables
from mutoscope.errors import UserError

if TYPE_CHECKING:
    from types import ModuleType

    from av.container import Container, InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

    from mutoscope.data.video.index import FrameIndex

    NumberedFrame = tuple[int, float, VideoFrame]  # number, seconds after the first frame, frame

# Formats FFmpeg opens although nobody means a video by them: text drawn as a screen, play lists that open other files.
NOT_VIDEO_FORMATS = frozenset("tty hls concat dash sdp rtsp lavfi ffmetadata".split())
# Containers that store one frame per packet whole: an incomplete packet is the last one of a file that was cut.
WHOLE_PACKETS = frozenset("mov matroska".split())
DEFAULT_FPS = 25.0  # FFmpeg's own default
MAX_FRAME_PIXELS = 2**25  # 8192×4096; a decoder may hold 16 earlier frames
LIMITS = {"max_pixels": str(MAX_FRAME_PIXELS)}  # of FFmpeg's decoders, whatever a header or a later frame declares
HIGHEST_FPS = 1000  # a header that states more holds a time base instead of a rate


@dataclass
class DecodeState:
    """Findings of one pass over a stream so far."""

    num_decoded: int = 0  # frames from the start of the stream to the last decoded one
    num_patched: int = 0  # frames in which the decoder covered up damage
    num_discarded: int = 0  # packets the container marks as not to be shown
    last_seconds: float = 0.0  # time of the last decoded frame after the first one
    last_length: float = 0.0  # seconds that the last decoded frame is shown; 0 if the container does not say
    end_stamp: float = 0.0  # end of the last decoded frame by the container's clock, which may not begin with 0
    whole: bool = False  # the stream was decoded from its first frame to its last
    error: str | None = None
    notes: list[str] = field(default_factory=list)


def check_file(path: str | Path) -> Path:
    """The path as a Path; UserError where it is missing, a folder or empty."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"there is no file {path}; check the path")
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a video file; name one file in it")
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty (0 bytes), so it holds no video; replace the file")
    return path


def require_av(path: str | Path) -> "ModuleType":
    """PyAV, or a UserError that says how to get it."""
    try:
        import av
    except ImportError:
        raise UserError(f"{path} is a video, which needs PyAV; install it with: pip install av") from None
    return av


def open_container(path: str | Path) -> "InputContainer":
    """Open with FFmpeg. The `file:` prefix keeps a colon in a name from being taken for a protocol."""
    path = check_file(path)
    av = require_av(path)
    try:
        check_tables(path)
        container = av.open(f"file:{path}", metadata_errors="replace", options=LIMITS)
    except (OSError, av.FFmpegError) as error:  # some of PyAV's errors are OSErrors too
        container = _open_beginning(path)
        if container is None:
            raise UserError(_why_not_opened(path, error)) from None
    if NOT_VIDEO_FORMATS & format_names(container):
        container.close()
        raise UserError(f"{path} is not a video (FFmpeg takes it for {container.format.name}); name a video file")
    return container


def _why_not_opened(path: Path, error: Exception) -> str:
    reason = getattr(error, "strerror", None) or type(error).__name__
    if isinstance(error, OSError):
        return f"{path} cannot be read: {reason}"
    return f"{path} is not a video that can be opened ({reason}); it may be cut off or another kind of file"


def _open_beginning(path: Path) -> "InputContainer | None":
    """The whole fragments of an MP4 file that was cut within one, which FFmpeg may refuse; None for other files."""
    import av

    with suppress(OSError, av.FFmpegError):
        boxes = scan_boxes(path)
        if boxes.is_fragmented and boxes.is_cut:
            return av.open(Beginning(path, boxes.whole_bytes), mode="r", metadata_errors="replace", options=LIMITS)
    return None


def format_names(container: "Container") -> set[str]:
    """FFmpeg's names of the container's format."""
    return set(container.format.name.split(","))


def video_streams(container: "InputContainer") -> "list[VideoStream]":
    """Video streams without cover images, which containers also store as video."""
    from av.stream import Disposition

    return [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]


def choose_stream(container: "InputContainer", path: str | Path, stream: int | None, notes: list[str]) -> "VideoStream":
    """The first video stream, or the one whose container index is `stream`; a note where there was a choice."""
    candidates = video_streams(container)
    indices = [s.index for s in candidates]
    if not candidates:
        kinds = sorted({s.type for s in container.streams}) or ["nothing"]
        raise UserError(f"{path} holds no video stream (found: {', '.join(kinds)}); name a video file")
    if stream is None:
        if len(candidates) > 1:
            others = ", ".join(map(str, indices[1:]))
            notes.append(f"{path} holds {len(candidates)} video streams; using stream {indices[0]} (others: {others})")
        stream = indices[0]
    if stream not in indices:
        raise UserError(f"{path} has no video stream {stream}; its video streams are {', '.join(map(str, indices))}")
    chosen = candidates[indices.index(stream)]
    if chosen.codec_context is None:
        raise UserError(f"{path} is in a codec that FFmpeg does not know, or is damaged; convert it to H.264 first")
    # One thread: a decoder with threads that is still waiting for garbage collection when a loader worker is forked
    # hangs that worker, which has none of the threads it would wait for.
    chosen.codec_context.thread_count = 1
    if (pixels := chosen.codec_context.width * chosen.codec_context.height) > MAX_FRAME_PIXELS:
        size = f"{chosen.codec_context.width}×{chosen.codec_context.height}"
        raise UserError(f"{path} has frames of {size}, {pixels:,} pixels; at most {MAX_FRAME_PIXELS:,} are read")
    chosen.codec_context.options = dict(LIMITS)
    return chosen


def codec_name(stream: "VideoStream") -> str:
    """h264, vp9, av1 ...: the format, not the library that decodes it."""
    return stream.codec_context.codec.canonical_name


def header_fps(stream: "VideoStream") -> float | None:
    """The rate that the header states, which may be far from the real one; None where it states no usable rate.

    GIF has no rate, only delays, of which FFmpeg reports the shortest.
    """
    if "gif" in format_names(stream.container):
        return None
    for rate in (stream.average_rate, stream.guessed_rate, stream.base_rate):
        if rate and 0 < rate <= HIGHEST_FPS:
            return float(rate)
    return None


def decode_stream(
    container: "InputContainer",
    stream: "VideoStream",
    fps: float,
    state: DecodeState,
    start: int = 0,
    index: "FrameIndex | None" = None,
) -> "Iterator[NumberedFrame]":
    """(number, seconds after the first frame, frame) from frame `start` on, in decoding order.

    Presentation times may go backwards in damaged or old files, so frames are numbered by counting. A decoder error
    ends the stream and is kept in `state.error`: frames after a damaged packet can no longer be numbered.
    """
    if index is not None and index.reliable and 0 < start < len(index.pts):
        decoded = _decode_after_seek(container, stream, fps, state, start, index)
        if decoded is not None:
            yield from decoded
            return
        container.seek(0)
    yield from _numbered(_decode_packets(container, stream, state), 0, start, None, fps, state)


def _decode_packets(container: "InputContainer", stream: "VideoStream", state: DecodeState) -> "Iterator[VideoFrame]":
    import av

    whole_packets = bool(WHOLE_PACKETS & format_names(container))
    try:
        for packet in container.demux(stream):
            if whole_packets and packet.size and packet.is_corrupt:
                state.error = "the last packet is not whole"
                yield from _kept_back(stream, packet.pts)
                return
            state.num_discarded += bool(packet.size and packet.is_discard)
            yield from packet.decode()
    except av.FFmpegError as error:
        state.error = error.strerror or type(error).__name__


def _kept_back(stream: "VideoStream", cut_at: int | None) -> "Iterator[VideoFrame]":
    """Frames that the decoder keeps back to put them in order, as far as they are before a cut packet.

    Of later ones the frames in between may be missing, so that they could not be numbered.
    """
    for frame in stream.codec_context.decode(None):
        if cut_at is None or frame.pts is None or frame.pts >= cut_at:
            return
        yield frame


def _numbered(
    frames: "Iterator[VideoFrame]", first: int, start: int, origin: int | None, fps: float, state: DecodeState
) -> "Iterator[NumberedFrame]":
    """Count frames from `first` and give those from `start` on. origin: time stamp of the stream's first frame."""
    seconds = None
    for number, frame in enumerate(frames, first):
        state.num_decoded = number + 1
        state.num_patched += frame.is_corrupt
        origin = frame.pts if origin is None else origin
        seconds = _seconds(frame, origin, seconds, number, fps)
        state.last_seconds = seconds
        state.last_length = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else 0.0
        begin = float(origin * frame.time_base) if origin is not None and frame.time_base else 0.0
        state.end_stamp = begin + seconds + (state.last_length or 1 / fps)
        if number >= start:
            yield number, seconds, frame
    state.whole = first == 0


def _seconds(frame: "VideoFrame", origin: int | None, previous: float | None, number: int, fps: float) -> float:
    """Seconds after the first frame. A stamp that is missing or goes backwards becomes one frame after the previous."""
    if frame.pts is None or origin is None or not frame.time_base:
        return number / fps if previous is None else previous + 1 / fps
    seconds = float((frame.pts - origin) * frame.time_base)
    return seconds if previous is None or seconds > previous else previous + 1 / fps


def _decode_after_seek(
    container: "InputContainer",
    stream: "VideoStream",
    fps: float,
    state: DecodeState,
    start: int,
    index: "FrameIndex",
) -> "Iterator[NumberedFrame] | None":
    """Decode from the last keyframe before frame `start`; None where the first frame shows that the seek failed."""
    import av

    target = index.pts[start]
    before = index.keyframe_pts[index.keyframe_pts <= target]
    if not len(before) or before[-1] <= index.pts[0]:
        return None  # decoding begins with the first keyframe anyway
    try:
        container.seek(int(before[-1]), stream=stream)
    except av.FFmpegError:
        return None
    frames = _decode_packets(container, stream, state)
    # Pictures that lead the keyframe of an open group may have lost their references; they come before `target`.
    first = next(frames, None)
    if first is None or first.pts is None or first.pts > target or first.pts not in index.pts:
        state.error = None
        return None
    number = int(np.searchsorted(index.pts, first.pts))

    def rest() -> "Iterator[VideoFrame]":
        yield first
        yield from frames

    return _numbered(rest(), number, start, int(index.pts[0]), fps, state)
