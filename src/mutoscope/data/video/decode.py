"""From a file to decoded frames: opening, choosing a stream, decoding in order, seeking, noticing damage.

`read.py` has the public functions; this file holds the parts that know how containers and decoders misbehave.
PyAV is imported inside the functions so that the package works without it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mutoscope.data.media import covering_size
from mutoscope.errors import UserError

if TYPE_CHECKING:
    from types import ModuleType

    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

    NumberedFrame = tuple[int, float, VideoFrame]  # number, seconds after the first frame, frame

# Formats FFmpeg opens although nobody means a video by them: text drawn as a screen, play lists that open other files.
NOT_VIDEO_FORMATS = frozenset("tty hls concat dash sdp rtsp lavfi ffmetadata".split())
# Containers whose packet times are known to be reliable enough to seek by.
SEEKABLE_FORMATS = frozenset("mov mp4 matroska webm".split())
# Codecs of which one packet is one shown frame (VP8 hides frames in packets of their own).
SEEKABLE_CODECS = frozenset("h264 hevc vp9 av1 mpeg4 mjpeg prores ffv1".split())
HDR_TRANSFERS = {16: "PQ", 18: "HLG"}


@dataclass(frozen=True)
class FrameIndex:
    """Presentation times of all packets of one stream, in stream time units, from reading packets without decoding.

    pts: sorted, one per packet; keyframe_pts: sorted. `reliable` says whether frame i is the i-th time, as
    seeking needs it; where it is false only `num_packets` means something.
    """

    num_packets: int
    pts: np.ndarray
    keyframe_pts: np.ndarray
    reliable: bool


@dataclass
class DecodeState:
    """Findings of one pass over a stream so far."""

    num_decoded: int = 0  # frames from the start of the stream to the last decoded one
    num_patched: int = 0  # frames in which the decoder covered up damage
    num_discarded: int = 0  # packets the container marks as not to be shown
    end_seconds: float = 0.0  # end of the last decoded frame, from the start of the stream
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
        container = av.open(f"file:{path}", metadata_errors="replace")
    except OSError as error:  # some of PyAV's errors are OSErrors too
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except av.FFmpegError as error:
        reason = error.strerror or type(error).__name__
        raise UserError(
            f"{path} is not a video that can be opened ({reason}); it may be cut off or another kind of file"
        ) from None
    if NOT_VIDEO_FORMATS & set(container.format.name.split(",")):
        container.close()
        raise UserError(f"{path} is not a video (FFmpeg takes it for {container.format.name}); name a video file")
    return container


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
    return chosen


def codec_name(stream: "VideoStream") -> str:
    """h264, vp9, av1 ...: the format, not the library that decodes it."""
    return stream.codec_context.codec.canonical_name


def stream_seconds(container: "InputContainer", stream: "VideoStream") -> float | None:
    """Length of the stream by its header, in seconds; None where the header has none."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    tag = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))  # as Matroska has it
    if tag:
        return int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3])
    return container.duration / 1_000_000 if container.duration else None


def index_frames(path: str | Path, stream: int | None = None) -> FrameIndex:
    """Read all packets without decoding them. Raises UserError where the file cannot be opened or holds no video."""
    import av

    with open_container(path) as container:
        chosen = choose_stream(container, path, stream, [])
        formats = set(container.format.name.split(","))
        seekable = bool(SEEKABLE_FORMATS & formats) and codec_name(chosen) in SEEKABLE_CODECS
        times, keys, count = [], [], 0
        try:
            for packet in container.demux(chosen):
                if not packet.size:
                    continue
                count += 1
                seekable = seekable and packet.pts is not None and not packet.is_discard
                if seekable:
                    times.append(packet.pts)
                    keys += [packet.pts] if packet.is_keyframe else []
        except av.FFmpegError:
            seekable = False
    pts = np.unique(np.array(times, dtype=np.int64))
    reliable = seekable and bool(keys) and len(pts) == count
    return FrameIndex(count, pts, np.sort(np.array(keys, dtype=np.int64)), reliable)


def decode_stream(
    container: "InputContainer",
    stream: "VideoStream",
    fps: float,
    state: DecodeState,
    start: int = 0,
    index: FrameIndex | None = None,
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

    try:
        for packet in container.demux(stream):
            state.num_discarded += bool(packet.size and packet.is_discard)
            yield from packet.decode()
    except av.FFmpegError as error:
        state.error = error.strerror or type(error).__name__


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
        length = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else 1 / fps
        state.end_seconds = seconds + length
        if number >= start:
            yield number, seconds, frame


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
    index: FrameIndex,
) -> "Iterator[NumberedFrame] | None":
    """Decode from the last keyframe before frame `start`; None where the first frame shows that the seek failed."""
    import av

    target = index.pts[start]
    before = index.keyframe_pts[index.keyframe_pts <= target]
    if not len(before) or before[-1] == index.pts[0]:
        return None  # the stream begins with this keyframe
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


def damage_note(container: "InputContainer", stream: "VideoStream", path: str | Path, state: DecodeState) -> str | None:
    """One sentence where a stream read to its end holds clearly less than its header promises, else None."""
    count, promised = state.num_decoded, (stream.frames or 0) - state.num_discarded
    of_promised = f" of the {promised} in its header" if promised > count else ""
    if state.error:
        return f"{path} is damaged: {count} frames{of_promised} decode, then: {state.error}"
    if promised - count > max(1, 0.02 * promised):
        return f"{path} is damaged or cut off: only {count} frames{of_promised} decode"
    seconds = stream_seconds(container, stream)
    if seconds and state.end_seconds and seconds - state.end_seconds > max(0.5, 0.1 * seconds):
        end = f"{state.end_seconds:.2f} s of the {seconds:.2f} s in its header"
        return f"{path} may be cut off: its {count} frames end at {end}"
    if state.num_patched:
        return f"{path} is damaged: {state.num_patched} of its {count} frames were patched by the decoder"
    return None


def frame_notes(stream: "VideoStream", frame: "VideoFrame", path: str | Path) -> list[str]:
    """Differences between a viewer's image and the array: non-square pixels, high dynamic range, odd rotation."""
    notes = []
    aspect: Fraction | None = stream.codec_context.sample_aspect_ratio
    if aspect and aspect != 1:
        ratio = f"{aspect.numerator}:{aspect.denominator}"
        notes.append(f"{path} has non-square pixels ({ratio}); frames are kept as stored, as datasets do")
    if frame.color_trc in HDR_TRANSFERS:
        notes.append(f"{path} is high dynamic range ({HDR_TRANSFERS[frame.color_trc]}); converted without tone mapping")
    if frame.rotation % 90:
        notes.append(f"{path} states a rotation of {frame.rotation} degrees; the nearest quarter turn is applied")
    return notes


def rgb_array(
    frame: "VideoFrame", stored_size: tuple[int, int], size: tuple[int, int] | None, keep_aspect: bool
) -> np.ndarray:
    """Upright uint8 (h, w, 3). stored_size: (h, w) of the stream's first frame, which later frames must match."""
    turns = round(frame.rotation / 90) % 4
    height, width = stored_size
    if size is not None:
        wanted = size if turns % 2 == 0 else (size[1], size[0])
        height, width = covering_size(stored_size, wanted) if keep_aspect else wanted
    array = frame.to_ndarray(format="rgb24", width=width, height=height, threads=1)  # (h, w, 3)
    return np.ascontiguousarray(np.rot90(array, k=turns))
