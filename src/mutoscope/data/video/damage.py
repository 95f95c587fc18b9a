"""Whether a video holds less than its file promises, in one sentence.

Promises are compared with what is shown: hidden frames of edit lists, moments without a new frame in AVI, and
containers that begin after 0 are intact.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from mutoscope.data.video.boxes import is_cut_riff, scan_boxes
from mutoscope.data.video.decode import DecodeState, format_names, open_container
from mutoscope.data.video.index import listed_frames

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

# A stream may end this much before its promise: rounded durations, a last frame that other tracks outlast.
SECONDS_ALLOWED, PART_ALLOWED = 0.5, 0.1
FRAMES_ALLOWED, FRAME_PART_ALLOWED = 1, 0.02


def damage_note(container: "InputContainer", stream: "VideoStream", path: Path, state: DecodeState) -> str | None:
    """One sentence where a stream read to its end holds clearly less than its file promises, else None."""
    count, promised = state.num_decoded, promised_frames(container, stream, path, state)
    of_promised = f" of the {promised} in its header" if promised > count else ""
    missing = promised - count
    if _ends_early(container, path) and (missing > 0 or not promised):
        return f"{path} is cut off: the {count} frames{of_promised} before the cut are read"
    if state.error:
        return f"{path} is damaged: {count} frames{of_promised} decode, then: {state.error}"
    if missing > max(FRAMES_ALLOWED, FRAME_PART_ALLOWED * promised):
        return f"{path} is damaged or cut off: only {count} frames{of_promised} decode"
    if (end := _early_end(container, stream, path, state)) is not None:
        return f"{path} may be cut off: its {count} frames end at {end[0]:.2f} s of the {end[1]:.2f} s in its header"
    if state.num_patched:
        return f"{path} is damaged: {state.num_patched} of its {count} frames were patched by the decoder"
    return None


def promised_frames(container: "InputContainer", stream: "VideoStream", path: Path, state: DecodeState) -> int:
    """Frames that should be shown; 0 where nothing says."""
    return max(0, listed_frames(container, stream, path) - (0 if _has_table(container) else state.num_discarded))


def _ends_early(container: "InputContainer", path: Path) -> bool:
    """Whether the file ends within one of its own parts."""
    names = format_names(container)
    return scan_boxes(path).is_cut if "mov" in names else "avi" in names and is_cut_riff(path)


def _has_table(container: "InputContainer") -> bool:
    return bool(format_names(container) & {"mov", "avi"})


def _early_end(
    container: "InputContainer", stream: "VideoStream", path: Path, state: DecodeState
) -> tuple[float, float] | None:
    """(end of the last frame, promised end) in seconds, where the former is clearly earlier; else None."""
    promised, is_of_stream = promised_end(container, stream)
    # Matroska states the time of the end, most others a length: the later of both counts there.
    later = 0.0 if "matroska" in format_names(container) else state.last_seconds + state.last_length
    end = max(state.end_stamp, later)
    allowed = max(SECONDS_ALLOWED, PART_ALLOWED * promised)
    if promised - end <= allowed or "avi" in format_names(container):  # which may end with moments without a frame
        return None
    if not is_of_stream and promised - last_end(path) <= allowed:
        return None  # the sound, or another stream, is as long as promised
    return end, promised


def promised_end(container: "InputContainer", stream: "VideoStream") -> tuple[float, bool]:
    """Seconds that the header states, 0 without any, and whether it states them for this stream alone."""
    whole = container.duration / 1_000_000 if container.duration else 0.0
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base), True
    tag = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))  # as Matroska has it
    if tag is None:
        return whole, False
    seconds = int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3])
    return (min(seconds, whole) if whole else seconds), True


def last_end(path: Path) -> float:
    """Time by the container's clock at which the last packet of any stream ends."""
    import av

    end = 0.0
    with open_container(path) as container:
        try:
            for packet in container.demux():
                if packet.pts is not None and packet.time_base:
                    end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        except av.FFmpegError:
            pass
    return end
