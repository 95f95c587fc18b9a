"""Small real files of the kinds that break loaders, written by PyAV when a test needs them."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

av = pytest.importorskip("av", reason="PyAV is needed to make videos")


def moving_frames(count: int, height: int, width: int, start: int = 0) -> np.ndarray:
    """uint8 (t, h, w, 3) in which every frame differs; colours change slowly in space, as video codecs expect."""
    t, y, x = np.meshgrid(np.arange(start, start + count), np.arange(height), np.arange(width), indexing="ij")
    light = 130 + 70 * np.sin(0.2 * x + 0.4 * t)
    tints = [30 * np.sin(0.05 * y), 30 * np.cos(0.04 * x - 0.3 * t), 30 * np.sin(0.03 * (x + y))]
    return np.stack([light + tint for tint in tints], axis=-1).astype(np.uint8)


def encode(
    path: Path,
    frames: np.ndarray,
    fps: Fraction | int = 10,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    times: list[int] | None = None,
    rotation: int = 0,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Write frames with FFmpeg and nothing of this package. times: presentation times in ms, for a variable rate."""
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=fps)
        _, stream.height, stream.width, _ = frames.shape
        stream.pix_fmt, stream.options = pixel_format, options or {}
        if rotation:
            stream.set_display_rotation(rotation)
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for i, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            if times is not None:
                frame.time_base, frame.pts = Fraction(1, 1000), times[i]
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="session")
def moving() -> Callable[..., np.ndarray]:
    """The function `moving_frames`."""
    return moving_frames


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Path of a small file by the name of its kind; each is written once."""
    folder = tmp_path_factory.mktemp("samples")
    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in made:
            made[kind] = SAMPLES[kind](folder / kind.replace(" ", "_"))
        return made[kind]

    return get


def plain_mp4(base: Path) -> Path:
    """40 frames, 48x64, a keyframe every 10 frames, B-frames between."""
    return encode(base.with_suffix(".mp4"), moving_frames(40, 48, 64), options={"g": "10", "bf": "2"})


def long_mp4(base: Path) -> Path:
    """150 frames, 32x48, a keyframe every 25 frames."""
    return encode(
        base.with_suffix(".mp4"),
        moving_frames(150, 32, 48),
        fps=25,
        options={"g": "25", "bf": "0", "sc_threshold": "0"},
    )


def variable_rate(base: Path) -> Path:
    """12 frames: six 40 ms apart, then six 200 ms apart."""
    times = [40 * i for i in range(6)] + [240 + 200 * i for i in range(6)]
    return encode(base.with_suffix(".mkv"), moving_frames(12, 32, 32), fps=25, times=times)


def two_streams(base: Path) -> Path:
    """Stream 0: 5 frames of 32x48; stream 1: 7 frames of 64x96."""
    path = base.with_suffix(".mp4")
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libx264", rate=10) for _ in range(2)]
        videos = [moving_frames(5, 32, 48), moving_frames(7, 64, 96)]
        for stream, frames in zip(streams, videos, strict=True):
            _, stream.height, stream.width, _ = frames.shape
            stream.pix_fmt = "yuv420p"
        for stream, frames in zip(streams, videos, strict=True):
            for array in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
            container.mux(stream.encode(None))
    return path


def ten_bit(base: Path) -> Path:
    return encode(base.with_suffix(".mp4"), moving_frames(6, 32, 32), pixel_format="yuv420p10le")


def rotated(base: Path) -> Path:
    """Stored 32x48 with the mark to turn it by 90 degrees, so 48x32 upright."""
    return encode(base.with_suffix(".mp4"), moving_frames(6, 32, 48), rotation=90)


def odd_size(base: Path) -> Path:
    """VP9 of 31x45 in WebM, which has no frame count in its header."""
    return encode(base.with_suffix(".webm"), moving_frames(8, 31, 45), codec="libvpx-vp9", options={"cpu-used": "8"})


def cut_off_silently(base: Path) -> Path:
    """The first third of a Matroska file of 60 frames: decodes without any error."""
    whole = encode(base.with_suffix(".mkv"), moving_frames(60, 48, 64), options={"g": "10", "bf": "0"})
    data = whole.read_bytes()
    whole.write_bytes(data[: len(data) // 3])
    return whole


def damaged_tail(base: Path) -> Path:
    """30 frames of VP9, all keyframes, the last ten overwritten: the decoder raises there."""
    path = base.with_suffix(".mp4")
    encode(path, moving_frames(30, 48, 64), codec="libvpx-vp9", options={"g": "1", "cpu-used": "8"})
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    data = bytearray(path.read_bytes())
    for position, size in packets[20:]:
        data[position : position + size] = b"\xff" * size
    path.write_bytes(data)
    return path


def cut_off_index(base: Path) -> Path:
    """The first half of an MP4, whose index is at the missing end."""
    whole = encode(base.with_suffix(".mp4"), moving_frames(30, 48, 64))
    data = whole.read_bytes()
    whole.write_bytes(data[: len(data) // 2])
    return whole


def no_frame(base: Path) -> Path:
    """Opens as VP9 in WebM, but every packet is broken."""
    path = encode(base.with_suffix(".webm"), moving_frames(8, 32, 32), codec="libvpx-vp9", options={"cpu-used": "8"})
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    data = bytearray(path.read_bytes())
    for position, size in packets:
        data[position + 8 : position + size] = b"\xff" * (size - 8)  # after the block's own header
    path.write_bytes(data)
    return path


def zero_length(base: Path) -> Path:
    path = base.with_suffix(".mp4")
    path.touch()
    return path


def not_a_video(base: Path) -> Path:
    path = base.with_suffix(".mp4")
    path.write_text("these are words\n" * 100)
    return path


def text_file(base: Path) -> Path:
    """FFmpeg opens .txt files as a screen of text."""
    path = base.with_suffix(".txt")
    path.write_text("these are words\n" * 100)
    return path


def audio_only(base: Path) -> Path:
    path = base.with_suffix(".mp4")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        for i in range(4):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, 1024 * i
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


SAMPLES: dict[str, Callable[[Path], Path]] = {
    function.__name__: function
    for function in (
        plain_mp4, long_mp4, variable_rate, two_streams, ten_bit, rotated, odd_size, cut_off_silently, damaged_tail,
        cut_off_index, no_frame, zero_length, not_a_video, text_file, audio_only,
    )
}  # fmt: skip
