"""Frames come out in full colour, upright, and with a sentence about what a viewer would see otherwise."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from data.video.planes import BT601, BT709, MATRIX_CODES, planes_420, psnr, scene, shrunk, write_planes
from mutoscope.data.fit import fit_frames
from mutoscope.data.video.read import index_frames, read_video, write_video
from mutoscope.data.video.write import plane_array, yuv420_frame

av = pytest.importorskip("av")

# ------------------------------------------------------------------------------------------------------------ colour

SCALED = [
    ((240, 320), (128, 171), 6), ((256, 340), (128, 170), 6), ((256, 256), (64, 64), 12), ((240, 320), (96, 128), 12),
    ((240, 320), (240, 160), 8), ((64, 96), (128, 192), 8), ((126, 226), (63, 113), 8),
]  # fmt: skip


@pytest.mark.parametrize("bits", [8, 10])
@pytest.mark.parametrize(("stored", "size", "cell"), SCALED)
def test_scaled_frames_keep_their_colour_resolution(tmp_path: Path, stored, size, cell: int, bits: int):
    rgb = scene(*stored, cell)
    path = write_planes(tmp_path / "a.mp4", planes_420(rgb, bits=bits), bits=bits)
    assert psnr(read_video(path, size=size).frames[0], shrunk(rgb, *size)) > 40


def test_frames_fitted_after_reading_are_those_scaled_while_reading(tmp_path: Path):
    path = write_planes(tmp_path / "a.mp4", planes_420(scene(96, 128, 8)))
    for size in [(72, 96), (48, 64), (24, 32)]:
        assert psnr(fit_frames(read_video(path).frames, *size)[0], read_video(path, size=size).frames[0]) > 43


@pytest.mark.parametrize("stored", [(64, 96), (66, 98), (64, 90)])
def test_frames_at_their_own_size_interpolate_colour_where_h264_sites_it(tmp_path: Path, stored: tuple[int, int]):
    rgb = scene(*stored, 12)
    planes = planes_420(rgb)
    frame = read_video(write_planes(tmp_path / "a.mp4", planes)).frames[0]
    assert psnr(frame, rgb) > 45
    assert abs(frame.astype(int).mean() - rgb.mean()) < 0.2  # swscale's fast conversion is a level too dark


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", [BT601, BT709])
def test_matrix_and_range_of_the_file_are_honoured(tmp_path: Path, matrix: tuple[float, float], full: bool):
    rgb = scene(64, 96, 24)
    path = write_planes(tmp_path / "a.mp4", planes_420(rgb, matrix, full=full), MATRIX_CODES[matrix], full)
    for size in (None, (32, 48)):
        assert psnr(read_video(path, size=size).frames[0], rgb if size is None else shrunk(rgb, *size)) > 45


def test_a_file_that_states_a_reserved_matrix_is_read_as_one_that_states_none(tmp_path: Path):
    rgb = scene(64, 96, 24)
    path = write_planes(tmp_path / "a.mp4", planes_420(rgb, BT601), 3)
    assert psnr(read_video(path).frames[0], rgb) > 45


@pytest.mark.parametrize(("name", "codec", "pixel_format"), [("a.mkv", "ffv1", "bgr0"), ("a.mov", "png", "rgb24")])
def test_files_that_store_rgb_are_scaled_in_full_colour(tmp_path: Path, name: str, codec: str, pixel_format: str):
    rgb = scene(64, 96, 4)
    with av.open(str(tmp_path / name), "w") as out:
        stream = out.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, pixel_format
        out.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        out.mux(stream.encode(None))
    np.testing.assert_array_equal(read_video(tmp_path / name).frames[0], rgb)
    assert psnr(read_video(tmp_path / name, size=(32, 48)).frames[0], shrunk(rgb, 32, 48)) > 50


@pytest.mark.parametrize("size", [(64, 96), (63, 95), (1, 1), (2, 3)])
def test_written_planes_are_those_of_a_computation_in_floats(size: tuple[int, int]):
    rgb = scene(*size, 6)
    for plane, expected in zip(yuv420_frame(rgb).planes, planes_420(rgb), strict=True):
        assert np.abs(plane_array(plane) - expected).max() <= 1.01


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_colours_survive_writing_and_reading(tmp_path: Path, suffix: str):
    rgb = scene(128, 160, 12)
    write_video(tmp_path / f"a{suffix}", [rgb] * 3, 10)
    assert psnr(read_video(tmp_path / f"a{suffix}").frames[1], rgb) > 40


# ------------------------------------------------------------------------------------------------------- orientation

CORNERS = np.zeros((64, 96, 3), np.uint8)
CORNERS[:16, :32], CORNERS[:16, 64:], CORNERS[48:, :32] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
TURNS = {  # degrees counter-clockwise, mirrored left-right before: the view
    (0, True): CORNERS[:, ::-1],
    (90, False): np.rot90(CORNERS),
    (180, False): np.rot90(CORNERS, 2),
    (270, False): np.rot90(CORNERS, 3),
    (180, True): CORNERS[::-1],
}


def write_corners(path: Path, count: int = 4, gop: int = 2, turn: tuple[int, bool] = (0, False)) -> Path:
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libvpx-vp9" if path.suffix == ".webm" else "libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv444p"
        stream.options = {"g": str(gop), "bf": "0"}
        if turn != (0, False):
            stream.set_display_rotation(turn[0], hflip=turn[1])
        for _ in range(count):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(CORNERS, format="rgb24")))
        out.mux(stream.encode(None))
    return path


def shows(frame: np.ndarray, view: np.ndarray) -> bool:
    return frame.shape == view.shape and np.abs(frame.astype(int) - view).max() < 60


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm"])
@pytest.mark.parametrize("turn", TURNS)
def test_turned_and_mirrored_files_are_read_upright(tmp_path: Path, suffix: str, turn: tuple[int, bool]):
    video = read_video(write_corners(tmp_path / f"a{suffix}", turn=turn))
    assert all(shows(frame, TURNS[turn]) for frame in video.frames)
    assert video.warnings == ()


def test_transposed_files_take_the_requested_size_upright(tmp_path: Path):
    path = write_corners(tmp_path / "a.mp4", turn=(90, False))
    for size in [(48, 32), (96, 64), (60, 50)]:
        frame = read_video(path, size=size).frames[0]
        assert frame.shape == (*size, 3)
        assert shows(frame[::3, ::3], shrunk(np.ascontiguousarray(np.rot90(CORNERS)), *size)[::3, ::3])


def orientation_message(quarter_turns: int, mirrored: bool = False, flipped: bool = False) -> bytes:
    """H.264's message "display orientation" as an MP4 sample has it; turns are counter-clockwise, after mirroring.

    Its 24 bits: not cancelled, mirrored, flipped, the angle in 1/65536 of a turn, valid until the next one (ue(v) 1),
    no extension, one bit to end.
    """
    bits = f"0{mirrored:d}{flipped:d}{quarter_turns * 0x4000:016b}01001"
    unit = b"\x06\x2f\x03" + int(bits, 2).to_bytes(3, "big") + b"\x80"
    return len(unit).to_bytes(4, "big") + unit


def with_messages(source: Path, target: Path, messages: dict[int, bytes]) -> Path:
    """A copy in which packets of these numbers begin with a message."""
    with av.open(str(source)) as container, av.open(str(target), "w") as out:
        stream = container.streams.video[0]
        copy = out.add_stream_from_template(stream)
        for number, packet in enumerate(container.demux(stream)):
            if not packet.size:
                continue
            changed = av.Packet(messages.get(number, b"") + bytes(packet))
            changed.pts, changed.dts, changed.time_base = packet.pts, packet.dts, packet.time_base
            changed.is_keyframe, changed.stream = packet.is_keyframe, copy
            out.mux(changed)
    return target


@pytest.mark.parametrize(
    ("message", "view"),
    [
        (orientation_message(1), np.rot90(CORNERS)),
        (orientation_message(2), np.rot90(CORNERS, 2)),
        (orientation_message(0, mirrored=True), CORNERS[:, ::-1]),
        (orientation_message(0, flipped=True), CORNERS[::-1]),
        (orientation_message(1, mirrored=True), np.rot90(CORNERS[:, ::-1])),
    ],
)
def test_a_message_in_the_stream_holds_for_all_following_frames(tmp_path: Path, message: bytes, view: np.ndarray):
    path = with_messages(write_corners(tmp_path / "a.mp4", 6), tmp_path / "b.mp4", {0: message})
    video = read_video(path)
    assert all(shows(frame, view) for frame in video.frames) and video.warnings == ()
    part = read_video(path, start=4, index=index_frames(path))  # a seek skips the message
    np.testing.assert_array_equal(part.frames, video.frames[4:])


def test_a_change_of_orientation_is_reported_and_every_frame_is_upright(tmp_path: Path):
    source = write_corners(tmp_path / "a.mp4", 6, gop=3)
    path = with_messages(source, tmp_path / "b.mp4", {0: orientation_message(1), 3: orientation_message(3)})
    video = read_video(path)
    assert shows(video.frames[2], np.rot90(CORNERS)) and shows(video.frames[3], np.rot90(CORNERS, 3))
    assert len(video.warnings) == 1 and "changes its orientation at frame 3" in video.warnings[0]


# ------------------------------------------------------------------------------------------------------------- notes


@pytest.mark.parametrize("interlaced", [False, True])
def test_interlaced_material_is_noted(tmp_path: Path, moving: Callable, interlaced: bool):
    with av.open(str(tmp_path / "a.mp4"), "w") as out:
        stream = out.add_stream("libx264", rate=Fraction(25))
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.options = {"x264-params": "tff=1"} if interlaced else {}
        for array in moving(4, 64, 96):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        out.mux(stream.encode(None))
    video = read_video(tmp_path / "a.mp4")
    assert len(video) == 4
    assert [("interlaced" in warning) for warning in video.warnings] == [True] * interlaced


@pytest.mark.parametrize(("alpha", "count"), [(255, 0), (100, 1)])
def test_transparent_video_is_noted_and_keeps_its_colours(tmp_path: Path, alpha: int, count: int):
    pixels = np.dstack([scene(32, 48, 8), np.full((32, 48), alpha, np.uint8)])
    with av.open(str(tmp_path / "a.mov"), "w") as out:
        stream = out.add_stream("png", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "rgba"
        out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgba")))
        out.mux(stream.encode(None))
    video = read_video(tmp_path / "a.mov")
    np.testing.assert_array_equal(video.frames[0], pixels[..., :3])
    assert [("transparent" in warning) for warning in video.warnings] == [True] * count
