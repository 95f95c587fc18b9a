"""Video files in and out.

In: `read_video`, `iter_frames` (bounded memory), `probe` (header only). Out: `write_video`, `VideoWriter`, `VideoClip`,
`contact_sheet`, kept in `video_write.py` and `contact_sheet.py` and offered here too.

Frames are uint8 (t, h, w, 3) RGB, upright (the file's rotation is applied), in the order in which the decoder gives
them. 10-bit and HDR frames are converted by FFmpeg's default matrix without tone mapping; pixels are taken as square.
"""

import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypedDict, Unpack

import numpy as np
from jaxtyping import Float, UInt8

from mutoscope.data.media import IMAGE_SUFFIXES, VIDEO_SUFFIXES, covering_size, upright_rgb
from mutoscope.data.video.contact_sheet import contact_sheet
from mutoscope.data.video.decode import (
    DecodeState,
    FrameIndex,
    check_file,
    choose_stream,
    codec_name,
    damage_note,
    decode_stream,
    frame_notes,
    index_frames,
    open_container,
    rgb_array,
    stream_seconds,
    video_streams,
)
from mutoscope.data.video.rate import average_fps, measured_fps
from mutoscope.data.video.write import VideoClip, VideoWriter, described, write_video
from mutoscope.errors import UserError

if TYPE_CHECKING:
    from av.container import InputContainer

# Number, seconds after the first frame, conversion to RGB.
SourceFrame = tuple[int, float, Callable[[], np.ndarray]]

__all__ = [
    "IMAGE_SUFFIXES", "VIDEO_SUFFIXES", "FrameIndex", "FrameStream", "Video", "VideoClip", "VideoInfo", "VideoWriter",
    "contact_sheet", "index_frames", "iter_frames", "probe", "read_video", "write_video",
]  # fmt: skip

SEEK_AFTER = 64  # below this many frames decoding from the start costs less than reading every packet for an index
IMAGE_FPS = 1.0
MAX_BYTES_AHEAD = 2**33  # a damaged header may promise any number of frames


@dataclass(frozen=True, eq=False, repr=False)
class Video:
    """Decoded frames. fps: average rate of these frames; times: seconds of each frame after the file's first one.

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
    """A header. height and width as stored (before rotation); num_frames is 0 and seconds None if unknown."""

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
    """Read the header only. Counts in headers may be missing or wrong; only decoding shows the truth.

    Raises UserError where the file is missing, a folder, empty, not a video or without a video stream.
    """
    with open_container(path) as container:
        chosen = choose_stream(container, path, stream, [])
        context = chosen.codec_context
        return VideoInfo(
            path=str(path),
            num_frames=chosen.frames or 0,
            fps=average_fps(chosen),
            height=context.height,
            width=context.width,
            seconds=stream_seconds(container, chosen),
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

    fps is known from the start (the header's average rate, over `stride`, or the requested rate); `warnings` and
    `times` grow while frames are read and are complete at the end.
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
        self._container: InputContainer | None = None
        self._state = DecodeState()
        if self.path.suffix.lower() in IMAGE_SUFFIXES:
            self.source_fps = IMAGE_FPS
            source = _image_frames(self.path, size, keep_aspect)
        else:
            self._container = open_container(self.path)
            self._stream = choose_stream(self._container, path, stream, self.warnings)
            self.source_fps = average_fps(self._stream)
            start_frame = start if fps is None else 0
            source = self._video_frames(self._container, index if fps is None else None, start_frame)
        self.fps = (fps or self.source_fps) / stride
        if fps is not None:
            source = at_constant_rate(source, fps, 1 / self.source_fps)
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

    def expected_frames(self) -> int:
        """How many frames this will give by the header, which may be wrong; at least 1."""
        count = 1.0
        if self._container is not None:
            count = self._stream.frames or (stream_seconds(self._container, self._stream) or 0) * self.source_fps
        count = math.ceil((count * self.fps * self.stride / self.source_fps - self.start) / self.stride)
        return max(1, min(count, self.max_frames or count))

    def close(self) -> None:
        """Close the file; iterating further raises StopIteration."""
        self._frames.close()
        self._close_container()

    def _selected(self, source: Iterator[SourceFrame]) -> Generator[np.ndarray, None, None]:
        """Apply start, stride and max_frames; only selected frames are converted to RGB."""
        seen = -1
        for seen, seconds, to_array in source:
            if seen < self.start or (seen - self.start) % self.stride:
                continue
            self.times.append(seconds)
            yield to_array()
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
        """(number, seconds after the first frame, conversion to RGB), with one warning where the file is damaged."""
        if index is None and start >= SEEK_AFTER:
            index = index_frames(self.path, self._stream.index)
        state = self._state
        stored_size = None
        decoded = decode_stream(container, self._stream, self.source_fps, state, start, index)
        for number, seconds, frame in decoded:
            if stored_size is None:
                stored_size = (frame.height, frame.width)
                self.warnings += frame_notes(self._stream, frame, self.path)
            elif stored_size != (frame.height, frame.width) and not state.notes:
                state.notes.append(f"{self.path} changes size at frame {number}; all frames take the size of the first")
                self.warnings += state.notes
            yield number, seconds, lambda f=frame, s=stored_size: rgb_array(f, s, self.size, self.keep_aspect)
        note = damage_note(container, self._stream, self.path, state)
        if state.num_decoded == 0:
            raise UserError(f"{self.path} holds no frame that can be decoded ({state.error or 'the stream is empty'})")
        self.warnings += [note] if note else []
        container.close()


def iter_frames(path: str | Path, **options: Unpack[FrameOptions]) -> FrameStream:
    """Frames of a video or still image one by one, in bounded memory. Options are those of `read_video`.

    The file is opened at once (errors come here); `.fps` is known immediately, `.warnings` fills up while reading.
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
    whole = start == 0 and max_frames is None and fps is None
    rate = measured_fps(reader.times, reader.fps) if whole else reader.fps
    return Video(frames, rate, np.array(reader.times), tuple(reader.warnings))


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


def at_constant_rate(source: Iterator[SourceFrame], fps: float, frame_seconds: float) -> Iterator[SourceFrame]:
    """Output frame j is the source frame nearest to j / fps seconds; the last source frame lasts frame_seconds."""
    number, previous = 0, None
    for _, seconds, to_array in source:
        if previous is not None:
            midpoint = (previous[0] + seconds) / 2
            while number / fps < midpoint - 1e-6:
                yield number, number / fps, previous[1]
                number += 1
        previous = (seconds, to_array)
    while previous is not None and number / fps < previous[0] + frame_seconds - 1e-6:
        yield number, number / fps, previous[1]
        number += 1


def _image_frames(path: Path, size: tuple[int, int] | None, keep_aspect: bool) -> Iterator[SourceFrame]:
    """A still image as a video of one frame (an animated image: of all its frames), upright by its EXIF tag."""
    from PIL import Image, ImageSequence

    try:
        with Image.open(path) as image:
            for number, frame in enumerate(ImageSequence.Iterator(image)):
                rgb = upright_rgb(frame)
                if size is not None:
                    height, width = covering_size((rgb.height, rgb.width), size) if keep_aspect else size
                    rgb = rgb.resize((width, height), Image.Resampling.BILINEAR)
                yield number, number / IMAGE_FPS, lambda image=rgb: np.array(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is not an image that can be read ({error})") from None
