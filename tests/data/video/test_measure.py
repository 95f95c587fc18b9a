"""One measured rate, number and length, whatever the header states."""

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data.conftest import encode
from mutoscope.cli import main
from mutoscope.data.inspect import inspect
from mutoscope.data.sources.folder import MediaFile
from mutoscope.data.sources.readers import ContainerReader
from mutoscope.data.video.measure import average_rate, measure
from mutoscope.data.video.read import index_frames, iter_frames, probe, read_video

av = pytest.importorskip("av")

JITTER = np.cumsum([0] + [33 + int(step) for step in np.random.default_rng(0).integers(-3, 5, 59)]).tolist()
CHANGING = [40 * i for i in range(20)] + [800 + 200 * i for i in range(20)]
VP8 = {"deadline": "realtime", "cpu-used": "8"}
FILES: dict[str, tuple[str, int, list[int], dict[str, str], dict[str, str]]] = {
    "browser.webm": ("libvpx", 1000, JITTER, VP8, {}),
    "live.webm": ("libvpx", 1000, JITTER, VP8, {"live": "1"}),
    "browser-vp9.webm": ("libvpx-vp9", 1000, JITTER, {"cpu-used": "8", "deadline": "realtime"}, {}),
    "changing.mkv": ("libx264", 25, CHANGING, {}, {}),
    "changing.mp4": ("libx264", 25, CHANGING, {"bf": "2"}, {}),
    "fragments.mp4": ("libx264", 25, CHANGING, {}, {"movflags": "frag_keyframe+empty_moov"}),
    "changing.ts": ("libx264", 25, CHANGING, {"bf": "2"}, {}),
    "changing.avi": ("mpeg4", 25, [40 * i for i in range(20)] + [800 + 200 * i for i in range(20)], {}, {}),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, moving: Callable) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("rates")

    def get(name: str) -> Path:
        path = folder / name
        if not path.exists():
            codec, fps, times, options, container = FILES[name]
            if name.endswith(".avi"):  # whose clock ticks once per frame
                write_avi(path, [time // 40 for time in times])
            else:
                frames = moving(len(times), 32, 48)
                encode(path, frames, fps, codec, times=times, options=options, container_options=container)
        return path

    return get


def write_avi(path: Path, ticks: list[int]) -> None:
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for tick in ticks:
            frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), tick % 250, np.uint8), format="rgb24")
            frame.pts, frame.time_base = tick, Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


@pytest.mark.parametrize("name", FILES)
def test_every_reader_has_the_rate_number_and_length_of_the_frames(written: Callable[[str], Path], name: str):
    path, times = written(name), FILES[name][2]
    fps = (len(times) - 1) / (times[-1] / 1000)  # MP4 says besides how long the last frame is shown
    video, found, header = read_video(path), measure(path), probe(path)
    assert (len(video), found.num_frames, header.num_frames) == (len(times), len(times), header.num_frames)
    assert header.num_frames in (0, len(times))
    with iter_frames(path) as reader:
        assert reader.fps == pytest.approx(fps, rel=0.02)
    rates = [
        video.fps,
        found.fps,
        header.fps,
        ContainerReader().fps(MediaFile(path, -1)),
        read_video(path, max_frames=1).fps,
    ]
    assert rates == pytest.approx([video.fps] * 5)
    assert found.seconds == pytest.approx(times[-1] / 1000 * len(times) / (len(times) - 1), rel=0.02)
    for options in ({}, {"headers_only": True}):
        report = inspect(path, **options)["videos"][0]
        assert report["fps"] == pytest.approx(video.fps)
        assert (report["frames"], report["warnings"]) == (len(times), [])
        assert report["seconds"] == pytest.approx(found.seconds, abs=1e-3)


def test_a_reconstruction_lasts_as_long_as_its_input(written, tmp_path: Path, capsys):
    name = "changing.ts"
    path = written(name)
    assert main(["reconstruct", "vq-shapes", str(path), str(tmp_path / "out.mp4"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["frames"] == len(FILES[name][2])
    assert measure(tmp_path / "out.mp4").seconds == pytest.approx(FILES[name][2][-1] / 1000, abs=1.5 / report["fps"])


def test_a_part_has_the_rate_of_the_file_over_its_stride(written: Callable[[str], Path]):
    path = written("browser.webm")
    assert read_video(path, start=3, max_frames=5, stride=2).fps == pytest.approx(measure(path).fps / 2)


def test_a_rate_in_the_header_that_fits_stays_exact(tmp_path: Path, moving: Callable):
    path = encode(tmp_path / "a.mkv", moving(30, 32, 48), Fraction(30000, 1001))  # times in whole ms
    assert read_video(path).fps == measure(path).fps == probe(path).fps == 30000 / 1001


def test_hidden_frames_of_vp8_do_not_count(tmp_path: Path, moving: Callable):
    options = {"deadline": "good", "cpu-used": "5", "auto-alt-ref": "1", "lag-in-frames": "16", "b:v": "100k"}
    path = encode(tmp_path / "a.webm", moving(40, 64, 96), 25, "libvpx", options=options)
    index = index_frames(path)
    assert index.reliable and index.num_packets == len(read_video(path)) == 40


def test_recordings_joined_end_to_end_are_as_long_as_both(tmp_path: Path, moving: Callable):
    part = encode(tmp_path / "a.ts", moving(30, 32, 48), 10, options={"bf": "0"})
    (tmp_path / "b.ts").write_bytes(part.read_bytes() * 2)
    assert measure(tmp_path / "b.ts").seconds == pytest.approx(6, abs=0.11)
    with iter_frames(tmp_path / "b.ts") as reader:
        assert reader.fps == pytest.approx(10)


@given(st.integers(2, 500), st.floats(1, 120), st.floats(0.2, 5))
def test_the_average_rate_keeps_the_length(count: int, stated: float, factor: float):
    span = (count - 1) / stated * factor
    fps = average_rate(count, span, 0.0, stated)
    assert abs(count / fps - span * count / (count - 1)) <= 1.03 / stated
    assert average_rate(count, span, 0.0, None) == pytest.approx((count - 1) / span)


def test_a_last_frame_that_is_held_counts():
    assert average_rate(11, 1.0, 0.1, 30) == pytest.approx(10)
    assert average_rate(11, 1.0, 5.0, 30) == pytest.approx(11 / 6)
    assert average_rate(11, 1.0, 0.001, 30) == pytest.approx(10)  # a header of 1000 frames per second
    assert average_rate(1, 0.0, 5.0, 30) == 30


@pytest.mark.parametrize("delays", [[130, 140, 130] * 3, [40] * 9, [50] * 4 + [500]])
def test_the_rate_of_gif_is_that_of_its_delays(tmp_path: Path, delays: list[int]):
    frames = [Image.fromarray(np.full((8, 8, 3), 20 * i, np.uint8)) for i in range(len(delays))]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=delays)
    rates = measure(tmp_path / "a.gif").fps, read_video(tmp_path / "a.gif").fps, probe(tmp_path / "a.gif").fps
    assert rates == pytest.approx([1000 * len(delays) / sum(delays)] * 3)
