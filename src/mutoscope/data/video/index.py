"""Where the frames of a video are in time, from its packets or its container's own table, without decoding."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mutoscope.data.orientation import Orientation
from mutoscope.data.video.boxes import scan_boxes
from mutoscope.data.video.convert import orientation_of
from mutoscope.data.video.decode import choose_stream, codec_name, format_names, header_fps, open_container

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

# Containers whose packet times are known to be reliable enough to seek by.
SEEKABLE_FORMATS = frozenset("mov mp4 matroska webm".split())
# Codecs of which one packet is one frame (VP8 hides frames in packets of their own, which are recognised).
SEEKABLE_CODECS = frozenset("h264 hevc vp8 vp9 av1 mpeg4 mjpeg prores ffv1".split())
# Codecs that may state an orientation in the stream itself, once for many frames.
CODECS_WITH_ORIENTATION = frozenset(["h264", "hevc"])
VP8_SHOWN = 0x10  # bit of a frame's first byte (RFC 6386 §9.1)


@dataclass(frozen=True)
class FrameIndex:
    """Presentation times of the packets of one stream that are shown, in stream time units, without decoding.

    Packets that an edit list hides, or that hold a hidden frame, do not count. pts: sorted, one per packet;
    keyframe_pts: sorted, also of hidden packets, since decoding may begin there. `reliable` says whether frame i is the
    i-th time, as seeking needs it; where it is false, `pts` may be incomplete.
    span: seconds from the first to the last shown frame, None where packets have no usable times. last_length: seconds
    that the last frame is shown by its container, 0 if it does not say. stated_fps: rate in the header, None without
    one. orientation: stated by the first frame.
    """

    num_packets: int
    pts: np.ndarray
    keyframe_pts: np.ndarray
    reliable: bool
    span: float | None = None
    last_length: float = 0.0
    stated_fps: float | None = None
    orientation: Orientation | None = None


class Stamp(NamedTuple):
    """Times of one packet in stream time units; None where the container does not say."""

    pts: int | None
    dts: int | None
    length: int | None


def index_frames(path: str | Path, stream: int | None = None) -> FrameIndex:
    """Read all packets without decoding them. Raises UserError where the file cannot be opened or holds no video."""
    import av

    with open_container(path) as container:
        chosen = choose_stream(container, path, stream, [])
        codec = codec_name(chosen)
        seekable = bool(SEEKABLE_FORMATS & format_names(container)) and codec in SEEKABLE_CODECS
        shown: list[Stamp] = []
        keys: list[int] = []
        try:
            for packet in container.demux(chosen):
                if not packet.size:
                    continue
                seekable = seekable and packet.pts is not None and not packet.is_corrupt
                keys += [packet.pts] if packet.is_keyframe and packet.pts is not None else []
                shown += [Stamp(packet.pts, packet.dts, packet.duration)] if is_shown(packet, codec) else []
        except av.FFmpegError:
            seekable = False
        span, last_length = _timing(shown, float(chosen.time_base or 0))
        stated = header_fps(chosen)
        orientation = _first_orientation(container, chosen) if codec in CODECS_WITH_ORIENTATION else None
    pts = np.unique(np.array([stamp.pts for stamp in shown if stamp.pts is not None], dtype=np.int64))
    reliable = seekable and bool(keys) and 0 < len(pts) == len(shown)
    keyframe_pts = np.sort(np.array(keys, dtype=np.int64))
    return FrameIndex(len(shown), pts, keyframe_pts, reliable, span, last_length, stated, orientation)


def is_shown(packet: "Packet[VideoStream]", codec: str) -> bool:
    """Whether a packet gives a frame: edit lists hide packets, and VP8 has frames that only others refer to."""
    return not packet.is_discard and not (codec == "vp8" and not memoryview(packet)[0] & VP8_SHOWN)


def _timing(stamps: Sequence[Stamp], time_base: float) -> tuple[float | None, float]:
    """Seconds from the first to the last frame (None: unknown), and those that the last one is shown (0: unknown)."""
    shown_at = [stamp.pts if stamp.pts is not None else stamp.dts for stamp in stamps]
    decoded_at = [stamp.dts for stamp in stamps if stamp.dts is not None]
    times = np.array([time for time in shown_at if time is not None], dtype=np.int64)
    if len(times) < max(len(stamps), 1):
        return None, 0.0
    if len(decoded_at) < len(stamps) or (np.diff(decoded_at) >= 0).all():
        last = stamps[int(times.argmax())]
        return float(times.max() - times.min()) * time_base, float(last.length or 0) * time_base
    steps = np.diff(decoded_at)  # times begin again, as where recordings are joined: a usual step in between
    usual = np.median(steps[steps > 0]) if (steps > 0).any() else 0
    return float(np.where(steps > 0, steps, usual).sum()) * time_base, 0.0


def _first_orientation(container: "InputContainer", stream: "VideoStream") -> Orientation | None:
    """The orientation that the first frame of a container that was read already states."""
    import av

    with suppress(av.FFmpegError):
        container.seek(0)
        for frame in container.decode(stream):
            return orientation_of(frame)
    return None


def frames_in_table(path: Path) -> int:
    """`listed_frames` of a file's first video stream. Raises UserError where it cannot be opened or has none."""
    with open_container(path) as container:
        return listed_frames(container, choose_stream(container, path, None, []), path)


def listed_frames(container: "InputContainer", stream: "VideoStream", path: Path) -> int:
    """Frames that the container's own table lists as shown; 0 where it has no table, or one that is not complete.

    The number in a header also counts frames that an edit list hides, and in AVI moments without a new frame.
    """
    names, promised = format_names(container), stream.frames or 0
    if "mov" in names:
        whole = promised and not scan_boxes(path).is_fragmented
        return sum(not entry.is_discard for entry in stream.index_entries) if whole else 0
    if "avi" in names:
        entries = list(stream.index_entries)
        return len(entries) if entries and entries[-1].timestamp + 1 >= promised else 0
    return promised
