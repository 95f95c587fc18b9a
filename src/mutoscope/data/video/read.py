"""Video files in and out.

In: `read_video`, `iter_frames` (bounded memory), `probe` and `measure` (what a file holds). Out: `write_video`,
`VideoWriter`, `VideoClip`, `contact_sheet`, kept in `write.py` and `contact_sheet.py` and offered here too.

Frames are uint8 (t, h, w, 3) RGB, upright (turned and mirrored as the file says), in the order in which the decoder
gives them. Colour matrix and range are the file's, BT.601 where it states none, as FFmpeg and most datasets have it.
HDR frames are converted without tone mapping; pixels are taken as square; transparency is dropped.
"""

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self, TypedDict, Unpack

import numpy as np
from jaxtyping import Float, UInt8

from mutoscope.data.media import IMAGE_SUFFIXES, VIDEO_SUFFIXES, covering_size, resized
from mutoscope.data.orientation import UPRIGHT, Orientation
from mutoscope.data.video.contact_sheet import contact_sheet
from mutoscope.data.video.convert import INTERLACED, frame_notes, orientation_of, rgb_array
from mutoscope.data.video.damage import damage_note, promised_end
from mutoscope.data.video.decode import (
    DEFAULT_FPS,
    DecodeState,
    check_file,
    choose_stream,
    codec_name,
    decode_stream,
    header_fps,
    open_container,
    video_streams,
)
from mutoscope.data.video.index import FrameIndex, index_frames, listed_frames
from mutoscope.data.video.measure import Measured, average_rate, measure, measured_fps, rate_of_packets
from mutoscope.data.video.stills import still_frames
from mutoscope.data.video.write import VideoClip, VideoWriter, described, write_video
from mutoscope.errors import UserError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame

__all__ = [
    "IMAGE_SUFFIXES", "VIDEO_SUFFIXES", "FrameIndex", "FrameStream", "Measured", "Video", "VideoClip", "VideoInfo",
    "VideoWriter", "contact_sheet", "index_frames", "iter_frames", "measure", "probe", "read_video", "write_video",
]  # fmt: skip

SEEK_AFTER = 64  # below this many frames decoding from the start costs less than reading every packet for an index
MAX_BYTES_AHEAD = 2**33  # a damaged header may promise any number of frames


class ToArray(Protocol):
    """Conversion of a decoded frame to upright RGB at the requested size."""

    def __call__(self) -> UInt8[np.ndarray, "h w 3"]: ...


class SourceFrame(NamedTuple):
    """A decoded frame: its number, seconds after the first frame, seconds that it is shown (0: unknown)."""

    number: int
    seconds: float
    length: float
    to_array: ToArray


@dataclass(frozen=True, eq=False, repr=False)
class Video:
    """Decoded frames. fps: average rate of the whole file, over the stride, or the rate to which they were resampled;
    times: seconds of each frame after the file's first one.

    warnings: sentences about the file (damage, several streams, non-square pixels ...), empty for a plain one.
    """

    frames: UInt8[np.ndarray, "t h w 3"]
    fps: float
    times: Float[np.ndarray, "t"]
    warnings: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Video({described(self.frames, self.fps)})"

    def __len__(self) -> int:
        return len(self.frames)


@dataclass(frozen=True)
class VideoInfo:
    """What a video holds by its packets. height and width as stored (before rotation).

    num_frames: frames that are shown, 0 where packets do not tell. fps: their average rate. seconds: from the first
    frame to the end of the last, None if unknown.
    """

    path: str
    num_frames: int
    fps: float
    height: int
    width: int
    seconds: float | None
    codec: str
    pixel_format: str | None
    container: str
    stream: int
    video_streams: tuple[int, ...]


def probe(path: str | Path, stream: int | None = None) -> VideoInfo:
    """Read header and packets, and decode nothing: what is damaged shows only while decoding (see `measure`).

    Raises UserError where the file is missing, a folder, empty, not a video or without a video stream.
    """
    path = check_file(path)
    index = index_frames(path, stream)
    with open_container(path) as container:
        chosen = choose_stream(container, path, stream, [])
        context = chosen.codec_context
        fps = rate_of_packets(index)
        count = listed_frames(container, chosen, path) or (index.num_packets if index.reliable else 0)
        return VideoInfo(
            path=str(path),
            num_frames=count,
            fps=fps or index.stated_fps or DEFAULT_FPS,
            height=context.height,
            width=context.width,
            seconds=index.num_packets / fps if fps else promised_end(container, chosen)[0] or None,
            codec=codec_name(chosen),
            pixel_format=context.pix_fmt,
            container=container.format.name,
            stream=chosen.index,
            video_streams=tuple(s.index for s in video_streams(container)),
        )


class FrameOptions(TypedDict, total=False):
    """Options of `read_video`, which documents them."""

    start: int
    max_frames: int | None
    stride: int
    fps: float | None
    size: tuple[int, int] | None
    keep_aspect: bool
    stream: int | None
    index: FrameIndex | None


class FrameStream:
    """Frames of one file, one at a time: iterate it, or use it in a `with` statement to close the file early.

    `warnings` and `times` grow while frames are read and are complete at the end.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        start: int = 0,
        max_frames: int | None = None,
        stride: int = 1,
        fps: float | None = None,
        size: tuple[int, int] | None = None,
        keep_aspect: bool = False,
        stream: int | None = None,
        index: FrameIndex | None = None,
    ):
        if start < 0 or stride < 1 or (max_frames is not None and max_frames < 1):
            raise UserError(f"start must be >= 0, stride and max_frames >= 1; got {start}, {stride}, {max_frames}")
        if fps is not None and not fps > 0:
            raise UserError(f"fps must be greater than 0; got {fps}")
        self.path, self.start, self.max_frames, self.stride = check_file(path), start, max_frames, stride
        self.size, self.keep_aspect = size, keep_aspect
        self.warnings: list[str] = []
        self.times: list[float] = []
        self._requested_fps, self._source_fps = fps, None
        self._container: InputContainer | None = None
        self._state = DecodeState()
        self._noted: set[str] = set()
        if self.path.suffix.lower() in IMAGE_SUFFIXES:
            self._stated_fps = None
            source = self._image_frames()
        else:
            self._container = open_container(self.path)
            self._stream = choose_stream(self._container, path, stream, self.warnings)
            self._stream_index, self._stated_fps = self._stream.index, header_fps(self._stream)
            start_frame = start if fps is None else 0
            source = self._video_frames(self._container, index if fps is None else None, start_frame)
        if fps is not None:
            source = at_constant_rate(source, fps)
        self._frames = self._selected(source)

    def __iter__(self) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
        return self

    def __next__(self) -> UInt8[np.ndarray, "h w 3"]:
        return next(self._frames)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def frames_decoded(self) -> int:
        """Frames of the file from its first to the last one decoded so far; at the end, how many there are."""
        return self._state.num_decoded

    @property
    def fps(self) -> float:
        """The requested rate, or the measured average rate of the whole file, over `stride`.

        The first use reads all packets of the file, unless it has been decoded from its first frame to its last.
        """
        if self._requested_fps is not None:
            return self._requested_fps / self.stride
        if self._source_fps is None:
            self._source_fps = self._measured_fps()
        return self._source_fps / self.stride

    def _measured_fps(self) -> float:
        state = self._state
        if state.whole:
            return average_rate(state.num_decoded, state.last_seconds, state.last_length, self._stated_fps)
        if self.path.suffix.lower() in IMAGE_SUFFIXES:
            return measure(self.path).fps
        return measured_fps(self.path, self._stream_index)

    def expected_frames(self) -> int:
        """How many frames this will give by the header, which may be wrong; at least 1."""
        count, source_fps = 1.0, self._source_fps or self._stated_fps or DEFAULT_FPS
        if self._container is not None:
            seconds, _ = promised_end(self._container, self._stream)
            count = listed_frames(self._container, self._stream, self.path) or seconds * source_fps
        faster = (self._requested_fps or source_fps) / source_fps
        count = math.ceil((count * faster - self.start) / self.stride)
        return max(1, min(count, self.max_frames or count))

    def close(self) -> None:
        """Close the file; iterating further raises StopIteration."""
        self._frames.close()
        self._close_container()

    def _selected(self, source: Iterator[SourceFrame]) -> Generator[np.ndarray, None, None]:
        """Apply start, stride and max_frames; only selected frames are converted to RGB."""
        seen = -1
        for frame in source:
            seen = frame.number
            if seen < self.start or (seen - self.start) % self.stride:
                continue
            self.times.append(frame.seconds)
            yield frame.to_array()
            if len(self.times) == self.max_frames:
                self._close_container()
                return
        if not self.times:
            count = max(seen + 1, self.frames_decoded)
            raise UserError(f"start is frame {self.start} but {self.path} has {count} frames, counted from 0")

    def _close_container(self) -> None:
        if self._container is not None:
            self._container.close()

    def _video_frames(self, container: "InputContainer", index: FrameIndex | None, start: int) -> Iterator[SourceFrame]:
        """Frames with their conversion to RGB; `warnings` receive one sentence for each kind of trouble."""
        if index is None and start >= SEEK_AFTER:
            index = index_frames(self.path, self._stream.index)
        state, upright, turn = self._state, None, UPRIGHT
        if index is not None and index.orientation is not None:
            turn = index.orientation
        stored = (0, 0)
        fps = self._stated_fps or DEFAULT_FPS
        for number, seconds, frame in decode_stream(container, self._stream, fps, state, start, index):
            # Messages within H.264 and HEVC hold until another one comes.
            turned, turn = turn, orientation_of(frame) or turn
            if upright is None:
                stored = (frame.height, frame.width)
                upright = turn.size(*stored)
                self.warnings += frame_notes(self._stream, frame, self.path)
            elif turned != turn:
                self._note_once("orientation", f"changes its orientation at frame {number}; every frame is upright")
            elif stored != (frame.height, frame.width):
                self._note_once("size", f"changes size at frame {number}; all frames take the size of the first")
            if frame.interlaced_frame:
                self._note_once("interlaced", INTERLACED)
            yield SourceFrame(number, seconds, state.last_length, partial(self._rgb, frame, turn, upright))
        note = damage_note(container, self._stream, self.path, state)
        if state.num_decoded == 0:
            raise UserError(f"{self.path} holds no frame that can be decoded ({state.error or 'the stream is empty'})")
        self.warnings += [note] if note else []
        container.close()

    def _rgb(
        self, frame: "VideoFrame", orientation: Orientation, upright_size: tuple[int, int]
    ) -> UInt8[np.ndarray, "h w 3"]:
        try:
            return rgb_array(frame, orientation, upright_size, self.size, self.keep_aspect)
        except UserError as error:
            raise UserError(f"{self.path}: {error}") from None

    def _note_once(self, kind: str, note: str) -> None:
        if kind not in self._noted:
            self._noted.add(kind)
            self.warnings.append(f"{self.path} {note}")

    def _image_frames(self) -> Iterator[SourceFrame]:
        """A still image as a video of one frame, an animated image as one of all its frames."""
        seconds, first = 0.0, None
        for number, still in enumerate(still_frames(self.path, self.warnings)):
            pixels = np.array(still.image)
            first = pixels.shape[:2] if first is None else first
            if pixels.shape[:2] != first:
                self._note_once("size", f"changes size at frame {number}; all frames take the size of the first")
            yield SourceFrame(number, seconds, still.seconds, partial(self._scaled, pixels, first))
            seconds += still.seconds

    def _scaled(self, pixels: UInt8[np.ndarray, "_h _w 3"], first: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
        size = first
        if self.size is not None:
            size = covering_size(first, self.size) if self.keep_aspect else self.size
        return resized(pixels, size)


def iter_frames(path: str | Path, **options: Unpack[FrameOptions]) -> FrameStream:
    """Frames of a video or still image one by one, in bounded memory. Options are those of `read_video`.

    The file is opened at once (errors come here); `.fps` is measured when it is read, `.warnings` fills up meanwhile.
    """
    return FrameStream(path, **options)


def read_video(
    path: str | Path,
    *,
    start: int = 0,
    max_frames: int | None = None,
    stride: int = 1,
    fps: float | None = None,
    size: tuple[int, int] | None = None,
    keep_aspect: bool = False,
    stream: int | None = None,
    index: FrameIndex | None = None,
) -> Video:
    """Read frames start, start + stride, ... (at most max_frames of them) of a video, or a still image as one frame.

    fps: resample to this constant rate first, each output frame being the source frame nearest in time; start, stride
    and max_frames then count resampled frames. size: (h, w) to scale to while decoding; with keep_aspect the smallest
    size of the video's own shape that covers it. stream: container index of a video stream (default: the first one).
    index: from `index_frames`, to seek without reading all packets again.

    Reading from `start` gives exactly the frames that slicing the whole video would give. A damaged tail gives the
    frames before the damage and one warning.
    Raises UserError where the file is missing, a folder, empty, not a video, or without a frame that decodes.
    """
    with FrameStream(
        path,
        start=start,
        max_frames=max_frames,
        stride=stride,
        fps=fps,
        size=size,
        keep_aspect=keep_aspect,
        stream=stream,
        index=index,
    ) as reader:
        frames = _collect(reader)
        return Video(frames, reader.fps, np.array(reader.times), tuple(reader.warnings))


def _collect(reader: FrameStream) -> UInt8[np.ndarray, "t h w 3"]:
    """All frames in one array, never held twice: unused pages of an array allocated too long cost no memory."""
    first = next(reader)
    room = max(1, min(reader.expected_frames(), MAX_BYTES_AHEAD // first.nbytes))
    video, count = np.empty((room, *first.shape), dtype=np.uint8), 1  # (t, h, w, 3)
    video[0] = first
    for frame in reader:
        if count == len(video):
            video = np.concatenate([video, np.empty_like(video)])
        video[count] = frame
        count += 1
    return video[:count]


def at_constant_rate(source: Iterator[SourceFrame], fps: float) -> Iterator[SourceFrame]:
    """Output frame j is the source frame nearest to j / fps seconds.

    The last source frame lasts as long as its container says, at least as long as frames last on average; a source of
    one frame gives one frame.
    """
    number, previous, shortest = 0, None, 0.0
    for frame in source:
        if previous is not None:
            midpoint = (previous.seconds + frame.seconds) / 2
            while number / fps < midpoint - 1e-6:
                yield SourceFrame(number, number / fps, 1 / fps, previous.to_array)
                number += 1
            shortest = frame.seconds / frame.number
        previous = frame
    if previous is None:
        return
    end = previous.seconds + max(shortest, previous.length) if shortest else 1 / fps
    while number / fps < end - 1e-6:
        yield SourceFrame(number, number / fps, 1 / fps, previous.to_array)
        number += 1
