"""Frames to files: H.264 MP4 that browsers play, VP9 WebM, GIF, PNG contact sheet.

Every file is written under a hidden temporary name in the same folder and renamed when complete, so a target either
holds the whole video or its former content.
"""

import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self, cast

import numpy as np
from jaxtyping import UInt8

from mutoscope.data.video.contact_sheet import contact_sheet
from mutoscope.data.video.convert import full_chroma
from mutoscope.data.video.decode import require_av
from mutoscope.errors import UserError
from mutoscope.ownership import temporary_beside
from mutoscope.writing import writing

if TYPE_CHECKING:
    from av.video.frame import VideoFrame
    from av.video.plane import VideoPlane
    from av.video.stream import VideoStream
    from PIL.Image import Image

MAX_SHEET_FRAMES = 64
GIF_MAX_FPS = 50  # browsers slow down frames shown for less than 2/100 s
BT709 = 1  # code of ITU-R BT.709 in the colour tags of H.264 and VP9
LIMITED_RANGE = 1

# People rate models by these videos: quality close to transparent, files still small.
H264_OPTIONS = {"crf": "17", "preset": "medium"}
SITED_LEFT = {"chroma_sample_location": "left"}  # H.264's own default; VP9 has none, so that files say it
VP9_OPTIONS = {"crf": "20", "b:v": "0", "deadline": "good", "cpu-used": "4", "row-mt": "1"}


class Encoder(Protocol):
    """One open output file. `add` takes upright uint8 (h, w, 3); `finish` completes it; `discard` lets go of it."""

    def add(self, frame: np.ndarray) -> None: ...
    def finish(self) -> None: ...
    def discard(self) -> None: ...


class VideoWriter:
    """Write frames one at a time, in bounded memory; the suffix of `path` (.mp4 .webm .gif .png) names the format.

    Use it in a `with` statement: the file appears when the block ends, and not at all where it ends by an exception.
    fps may be a float or an exact Fraction. scale: whole-number enlargement that keeps pixels sharp.
    `warnings` lists what the format could not hold. Raises UserError for an unknown suffix, a folder that is missing
    or cannot be written, a full disk, and a video without frames.
    """

    def __init__(self, path: str | Path, fps: float | Fraction, scale: int = 1):
        self.path, self.scale = Path(path), scale
        self.warnings: list[str] = []
        self.num_frames = 0
        self.frame_shape: tuple[int, ...] | None = None
        self.fps = exact_fps(fps)
        self._check_target()
        self._temporary = temporary_beside(self.path, self.path.suffix)
        self._encoder: Encoder | None = None
        self._closed = False

    def _check_target(self) -> None:
        if self.path.suffix.lower() not in ENCODERS:
            raise UserError(f"cannot write {self.path}: the name must end in {', '.join(ENCODERS)}")
        if self.scale < 1 or self.scale != int(self.scale):
            raise UserError(f"scale must be a whole number of at least 1; got {self.scale}")
        if self.path.is_dir():
            raise UserError(f"cannot write {self.path}: it is a folder; name a file")
        if not self.path.parent.is_dir():
            raise UserError(f"cannot write {self.path}: there is no folder {self.path.parent}; create it first")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def write(self, frame: np.ndarray) -> None:
        """Add one frame, uint8 (h, w, 3); all frames must have the size of the first."""
        if self._closed:
            raise ValueError(f"{self.path} is closed")
        frame = np.asarray(frame)
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[-1] != 3 or 0 in frame.shape:
            raise ValueError(f"expected a frame of uint8 (h, w, 3), got {frame.dtype} {frame.shape}")
        if self.frame_shape not in (None, frame.shape):
            raise ValueError(f"frame {self.num_frames} has shape {frame.shape}, the first one has {self.frame_shape}")
        self.frame_shape = frame.shape
        if self.scale > 1:
            frame = frame.repeat(self.scale, axis=0).repeat(self.scale, axis=1)
        with self._abort_on_error():
            if self._encoder is None:
                encoder = ENCODERS[self.path.suffix.lower()]
                self._encoder = encoder(self._temporary, self.fps, frame.shape[:2], self.warnings)
            self._encoder.add(np.ascontiguousarray(frame))
        self.num_frames += 1

    def close(self) -> None:
        """Complete the file and give it its name; a second call has no effect."""
        if self._closed:
            return
        if self._encoder is None:
            raise UserError(f"cannot write {self.path}: there are no frames")
        with self._abort_on_error():
            self._encoder.finish()
            os.replace(self._temporary, self.path)
        self._closed = True

    def abort(self) -> None:
        """Drop the unfinished file; the target keeps its former content."""
        if self._closed:
            return
        self._discard()
        with suppress(OSError):
            self._temporary.unlink(missing_ok=True)

    def _discard(self) -> None:
        self._closed = True
        if self._encoder is not None:
            with suppress(Exception):
                self._encoder.discard()

    @contextmanager
    def _abort_on_error(self) -> Iterator[None]:
        with writing(self.path, temporary=self._temporary):
            try:
                yield
            except BaseException:
                self._discard()
                raise


def exact_fps(fps: float | Fraction) -> Fraction:
    """The rate as a fraction that containers hold, so that 29.97002997... stays 30000/1001."""
    rate = Fraction(fps).limit_denominator(1001) if np.isfinite(float(fps)) else Fraction(0)
    if rate <= 0:
        raise UserError(f"fps must be a number greater than 0; got {fps}")
    return rate


class FfmpegEncoder:
    """H.264 in MP4 or VP9 in WebM: 4:2:0, 8 bit, tagged BT.709 limited range as browsers expect."""

    def __init__(self, path: Path, fps: Fraction, size: tuple[int, int], warnings: list[str]):
        av = require_av(path)
        mp4 = path.suffix.lower() == ".mp4"
        height, width = size
        self.padding = (height % 2, width % 2) if mp4 else (0, 0)
        if any(self.padding):
            height, width = height + self.padding[0], width + self.padding[1]
            warnings.append(
                f"H.264 cannot hold odd sizes: {size[0]}x{size[1]} is written as {height}x{width} by repeating the "
                "last row or column (.webm and .gif keep the exact size)"
            )
        options = {"movflags": "+faststart"} if mp4 else {}
        self.container = av.open(f"file:{path}", "w", format="mp4" if mp4 else "webm", options=options)
        codec = "libx264" if mp4 else "libvpx-vp9"
        self.stream = cast("VideoStream", self.container.add_stream(codec, rate=fps))
        self.stream.height, self.stream.width, self.stream.pix_fmt = height, width, "yuv420p"
        self.stream.options = {**(H264_OPTIONS if mp4 else VP9_OPTIONS), **SITED_LEFT}
        context = self.stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = LIMITED_RANGE
        self.count = 0

    def add(self, frame: np.ndarray) -> None:
        if any(self.padding):
            frame = np.pad(frame, ((0, self.padding[0]), (0, self.padding[1]), (0, 0)), mode="edge")
        encoded = yuv420_frame(frame)
        encoded.pts = self.count
        self.count += 1
        self.container.mux(self.stream.encode(encoded))

    def finish(self) -> None:
        self.container.mux(self.stream.encode(None))
        self.container.close()

    def discard(self) -> None:
        self.container.close()


def yuv420_frame(frame: UInt8[np.ndarray, "h w 3"]) -> "VideoFrame":
    """BT.709, limited range, 4:2:0 with colour sited left: in the first column of each two, between both rows.

    swscale would site it in the middle, so that it converts to 4:4:4, and colour is averaged here.
    """
    import av

    full = av.VideoFrame.from_ndarray(frame, format="rgb24")
    full = full.reformat(format="yuv444p", dst_colorspace="itu709", interpolation=full_chroma("BICUBIC"), threads=1)
    luma, *chroma = (plane_array(plane) for plane in full.planes)
    encoded = av.VideoFrame(full.width, full.height, "yuv420p")
    for plane, values in zip(encoded.planes, (luma, *map(half_chroma, chroma)), strict=True):
        padded = np.zeros((plane.height, plane.line_size), np.uint8)
        padded[:, : values.shape[1]] = values
        plane.update(padded.tobytes())
    encoded.colorspace, encoded.color_range = BT709, LIMITED_RANGE
    return encoded


def plane_array(plane: "VideoPlane") -> UInt8[np.ndarray, "h w"]:
    """The samples of an 8-bit plane without the padding of its rows."""
    return np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]


def half_chroma(plane: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "half_h half_w"]:
    """A colour plane at half size: weights 1 2 1 about every second column, the mean of every two rows."""
    values = plane.astype(np.uint16)
    values = np.pad(values, ((0, values.shape[0] % 2), (1, 1)), mode="edge")
    across = values[:, :-2:2] + 2 * values[:, 1:-1:2] + values[:, 2::2]  # (h, half_w), four times too large
    return ((across[::2] + across[1::2] + 4) // 8).astype(np.uint8)


class GifEncoder:
    """An endlessly looping GIF with one palette per frame, exact frame count and exact total duration.

    Pillow's own animation writer merges equal frames; here every frame is kept. Frames of at most 256 colours are
    stored without loss.
    """

    def __init__(self, path: Path, fps: Fraction, size: tuple[int, int], warnings: list[str]):
        if max(size) > 65535:
            raise UserError(f"GIF cannot hold {size[0]}x{size[1]} frames; write .mp4 or .webm")
        if fps > GIF_MAX_FPS:
            warnings.append(f"GIF cannot play {float(fps):g} frames per second; it is written at {GIF_MAX_FPS}")
            fps = Fraction(GIF_MAX_FPS)
        self.fps, self.count = fps, 0
        self.file = open(path, "wb")  # noqa: SIM115 - closed by finish or discard
        screen = size[1].to_bytes(2, "little") + size[0].to_bytes(2, "little") + b"\x70\x00\x00"  # no global palette
        self.file.write(b"GIF89a" + screen + b"\x21\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00")  # loop for ever

    def add(self, frame: np.ndarray) -> None:
        from PIL import GifImagePlugin

        # Rounding the running time, not each delay, keeps the total exact.
        shown_from, shown_to = (round(100 * n / self.fps) for n in (self.count, self.count + 1))
        self.count += 1
        for block in GifImagePlugin.getdata(
            to_palette(frame), duration=10 * (shown_to - shown_from), include_color_table=True
        ):
            self.file.write(block)

    def finish(self) -> None:
        self.file.write(b"\x3b")
        self.file.close()

    def discard(self) -> None:
        self.file.close()


def to_palette(frame: UInt8[np.ndarray, "h w 3"]) -> "Image":
    """A Pillow palette image: exact up to 256 colours, median cut beyond."""
    from PIL import Image

    codes = frame.astype(np.uint32) @ np.array([65536, 256, 1], dtype=np.uint32)  # (h, w)
    colors, inverse = np.unique(codes, return_inverse=True)
    if len(colors) > 256:
        return Image.fromarray(frame).quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    image = Image.fromarray(inverse.reshape(codes.shape).astype(np.uint8)).convert("L")
    image.putpalette(np.stack([colors >> 16, (colors >> 8) & 255, colors & 255], axis=1).astype(np.uint8).tobytes())
    return image


class SheetEncoder:
    """A PNG contact sheet of at most 64 frames, evenly spaced where there are more."""

    def __init__(self, path: Path, fps: Fraction, size: tuple[int, int], warnings: list[str]):
        self.path, self.warnings = path, warnings
        self.frames: list[np.ndarray] = []
        self.count, self.step = 0, 1

    def add(self, frame: np.ndarray) -> None:
        if self.count % self.step == 0:
            self.frames.append(frame.copy())
        self.count += 1
        if len(self.frames) > 2 * MAX_SHEET_FRAMES:  # thin out, so that memory stays bounded
            self.frames, self.step = self.frames[::2], 2 * self.step

    def finish(self) -> None:
        from PIL import Image

        shown = self.frames
        if self.count > MAX_SHEET_FRAMES:
            chosen = np.linspace(0, len(shown) - 1, MAX_SHEET_FRAMES).round().astype(int)
            shown = [shown[i] for i in chosen]
            self.warnings.append(f"the contact sheet shows {len(shown)} of {self.count} frames")
        sheet = contact_sheet(np.stack(shown), columns=16 if len(shown) > 8 else 8)
        content = io.BytesIO()
        Image.fromarray(sheet).save(content, format="PNG")
        with writing(self.path, content.tell()):
            self.path.write_bytes(content.getvalue())

    def discard(self) -> None:
        self.frames = []


EncoderClass = Callable[[Path, Fraction, tuple[int, int], list[str]], Encoder]
ENCODERS: dict[str, EncoderClass] = {
    ".mp4": FfmpegEncoder,
    ".webm": FfmpegEncoder,
    ".gif": GifEncoder,
    ".png": SheetEncoder,
}


def write_video(
    path: str | Path,
    frames: UInt8[np.ndarray, "t h w 3"] | Iterable[UInt8[np.ndarray, "h w 3"]],
    fps: float | Fraction,
    scale: int = 1,
) -> list[str]:
    """Write frames (an array or any iterable of frames) and return the warnings; see `VideoWriter`."""
    with VideoWriter(path, fps, scale) as writer:
        for frame in frames:
            writer.write(frame)
    return writer.warnings


def described(frames: UInt8[np.ndarray, "t h w 3"], fps: float) -> str:
    """Size, rate and length of frames in one line, as representations of clips show them."""
    count, height, width = frames.shape[:3]
    seconds = f"{count / fps:.3g} s" if fps > 0 else "no rate"
    return f"{count} frames of {height}×{width}, {fps:g} fps, {seconds}"


@dataclass(frozen=True, eq=False, repr=False)
class VideoClip:
    """Frames with their rate, as a pipeline returns them."""

    frames: UInt8[np.ndarray, "t h w 3"]
    fps: float
    warnings: Sequence[str] = ()

    def __repr__(self) -> str:
        return f"VideoClip({described(self.frames, self.fps)})"

    def __len__(self) -> int:
        return len(self.frames)

    def save(self, path: str | Path, scale: int = 1) -> list[str]:
        """Write .mp4, .webm, .gif or a .png contact sheet by the suffix of `path`; returns warnings about changes."""
        return write_video(path, self.frames, self.fps, scale)
