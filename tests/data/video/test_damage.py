"""Intact files are never called damaged, whatever their headers count; cut ones are, in one sentence."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from data.conftest import encode
from mutoscope.data.inspect import inspect
from mutoscope.data.sources.clips import ClipDataset
from mutoscope.data.video.boxes import scan_boxes
from mutoscope.data.video.read import index_frames, iter_frames, measure, probe, read_video
from mutoscope.errors import UserError

av = pytest.importorskip("av")


# --------------------------------------------------------------------------------------------------------- edit lists


def trimmed(path: Path, shown: int, hidden: int, b_frames: int = 0) -> Path:
    """Frame i has grey level 2 i; times below zero become an edit list that hides the first `hidden` frames."""
    grey = 2 * np.arange(shown + hidden)[:, None, None, None]
    frames = np.broadcast_to(grey, (shown + hidden, 32, 48, 3)).astype(np.uint8)
    times = [40 * (i - hidden) for i in range(len(frames))]
    return encode(path, frames, 25, times=times, options={"g": "250", "bf": str(b_frames), "crf": "10"})


@pytest.mark.parametrize("b_frames", [0, 2])
def test_frames_that_an_edit_list_hides_do_not_count(tmp_path: Path, b_frames: int):
    path = trimmed(tmp_path / "a.mp4", 40, 53, b_frames)
    video = read_video(path)
    assert (len(video), video.warnings, video.fps) == (40, (), 25)
    assert abs(video.frames[0].mean() - 106) < 3
    assert (probe(path).num_frames, measure(path).num_frames, probe(path).seconds) == (40, 40, pytest.approx(1.6))
    index = index_frames(path)
    assert index.reliable and len(index.pts) == 40
    for start in (1, 20, 39):
        np.testing.assert_array_equal(read_video(path, start=start, index=index).frames, video.frames[start:])


def test_clips_are_planned_within_what_is_shown(tmp_path: Path):
    trimmed(tmp_path / "forty.mp4", 40, 53)
    trimmed(tmp_path / "twelve.mp4", 12, 81)
    with pytest.warns(UserWarning, match="1 of 2 videos .* are shorter than 16 frames"):
        clips = ClipDataset(tmp_path, 16, 32, 48)
    assert [clips[i]["start"] for i in range(len(clips))] == [0, 16]
    assert [problem.reason for problem in clips.skipped] == ["12 frames, a clip needs 16"]
    assert clips.broken == clips.damaged == []
    spread = ClipDataset(tmp_path / "forty.mp4", 16, 32, 48, windows=5)
    assert [spread[i]["start"] for i in range(5)] == [0, 6, 12, 18, 24]
    for options in ({}, {"headers_only": True}):
        report = inspect(tmp_path, **options)
        assert (report["clips"], [video["frames"] for video in report["videos"]]) == (2, [40, 12])


def test_seeking_in_a_trimmed_file_gives_the_frames_that_slicing_gives(tmp_path: Path, moving: Callable):
    times = [40 * (i - 30) for i in range(150)]
    path = encode(tmp_path / "a.mp4", moving(150, 32, 48), 25, times=times, options={"g": "25", "bf": "2"})
    whole = read_video(path)
    assert len(whole) == 120
    for start in (64, 70, 119):
        np.testing.assert_array_equal(read_video(path, start=start).frames, whole.frames[start:])


# --------------------------------------------------------------------------------------------------------- late start


def with_sound(path: Path, video_times: list[int], sound: tuple[float, float], codec: str = "libx264") -> Path:
    """Grey frames at these times in ms, and silence from one second to another."""
    with av.open(str(path), "w") as out:
        video = out.add_stream(codec, rate=25)
        video.width, video.height, video.pix_fmt, video.options = 48, 32, "yuv420p", {"bf": "0"}
        video.codec_context.time_base = Fraction(1, 1000)
        rate, size = 48000, 960
        audio = out.add_stream("libopus" if path.suffix == ".webm" else "aac", rate=rate, layout="mono")
        packets = []
        for i in range(int((sound[1] - sound[0]) * rate) // size):
            silence = av.AudioFrame.from_ndarray(np.zeros((1, size), np.float32), format="fltp", layout="mono")
            silence.sample_rate, silence.time_base = rate, Fraction(1, rate)
            silence.pts = int(sound[0] * rate) + size * i
            packets += audio.encode(silence)
        packets += audio.encode(None)
        for time in video_times:
            frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), time // 40 % 250, np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            packets += video.encode(frame)
        packets += video.encode(None)
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            out.mux(packet)
    return path


LATE = [1000 + 40 * i for i in range(60)]
EARLY = [40 * i for i in range(40)]


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.ts", "a.flv", "a.webm"])
@pytest.mark.parametrize("sound", [None, (0, 3.4), (0, 9)])
def test_streams_that_start_late_or_end_before_the_sound_are_intact(
    tmp_path: Path, moving: Callable, name: str, sound: tuple[float, float] | None
):
    codec = {"a.flv": "flv1", "a.webm": "libvpx-vp9"}.get(name, "libx264")
    if sound is None:
        path = encode(tmp_path / name, moving(60, 32, 48), 25, codec, times=LATE, options={})
    else:
        path = with_sound(tmp_path / name, LATE, sound, codec)
    video = read_video(path)
    assert (len(video), video.warnings, video.fps) == (60, (), 25)
    assert video.times[-1] == pytest.approx(2.36, abs=2e-3)
    assert measure(path).seconds == pytest.approx(2.4)


def test_sound_that_outlasts_a_video_without_a_length_of_its_own_is_no_cut(tmp_path: Path):
    path = with_sound(tmp_path / "a.mkv", EARLY, (0, 6))
    path.write_bytes(path.read_bytes().replace(b"DURATION", b"DURATIOM"))  # as of recorders that write no tags
    assert read_video(path).warnings == ()


def test_a_late_start_does_not_hide_a_cut(tmp_path: Path, moving: Callable):
    whole = encode(tmp_path / "a.mkv", moving(100, 64, 96), 25, times=[1000 + 40 * i for i in range(100)])
    data = whole.read_bytes()
    whole.write_bytes(data[: len(data) // 2])
    video = read_video(whole)
    assert 20 < len(video) < 80
    assert len(video.warnings) == 1 and "cut off" in video.warnings[0]


def test_moments_without_a_new_frame_in_avi_are_no_damage(tmp_path: Path):
    path = tmp_path / "a.avi"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for tick in range(0, 180, 3):
            frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), tick, np.uint8), format="rgb24")
            frame.pts, frame.time_base = tick, Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    video = read_video(path)
    assert (len(video), video.warnings) == (60, ())
    dataset = ClipDataset(path, 30, 32, 48)
    assert len(dataset) == 2 and dataset.damaged == []
    data = path.read_bytes()
    begin = data.index(b"movi")
    path.write_bytes(data[: (begin + len(data)) // 2])
    video = read_video(path)
    assert 10 < len(video) < 60 and len(video.warnings) == 1


# ----------------------------------------------------------------------------------------------------- cut fragments


def fragmented(path: Path, moving: Callable, codec: str, flags: str) -> Path:
    options = {"g": "10", "bf": "2"} if codec == "libx264" else {"g": "10", "cpu-used": "8"}
    muxer = {"movflags": f"frag_keyframe+empty_moov{flags}"}
    return encode(path, moving(60, 32, 48), 25, codec, options=options, container_options=muxer)


def boxes(data: bytes) -> list[tuple[bytes, int, int]]:
    found, at = [], 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        found.append((data[at + 4 : at + 8], at, at + length))
        at += length
    return found


@pytest.mark.parametrize(
    ("codec", "flags"),
    [("libx264", ""), ("libx264", "+dash+global_sidx"), ("libvpx-vp9", ""), ("libx264", "+default_base_moof")],
)
def test_a_cut_fragmented_file_is_read_as_far_as_it_goes(tmp_path: Path, moving: Callable, codec: str, flags: str):
    path = fragmented(tmp_path / "a.mp4", moving, codec, flags)
    whole = read_video(path)
    assert (len(whole), whole.warnings) == (60, ())
    data = path.read_bytes()
    _, start, end = [box for box in boxes(data) if box[0] == b"mdat"][3]
    moof = max(box[1] for box in boxes(data) if box[0] == b"moof" and box[1] < start)
    lengths = []
    for cut in (end - 3, start + (end - start) // 2, start + 8, moof + 20):
        (tmp_path / "cut.mp4").write_bytes(data[:cut])
        video = read_video(tmp_path / "cut.mp4")
        np.testing.assert_array_equal(video.frames, whole.frames[: len(video)])
        assert len(video.warnings) == 1 and "cut off" in video.warnings[0] and str(len(video)) in video.warnings[0]
        lengths.append(len(video))
    assert 60 > lengths[0] > lengths[1] >= lengths[2] == lengths[3] >= 20


def test_a_fragmented_file_cut_before_its_first_frame_is_refused(tmp_path: Path, moving: Callable):
    data = fragmented(tmp_path / "a.mp4", moving, "libx264", "").read_bytes()
    start = next(box[1] for box in boxes(data) if box[0] == b"mdat")
    (tmp_path / "a.mp4").write_bytes(data[: start + 20])
    with pytest.raises(UserError, match=r"a\.mp4"):
        read_video(tmp_path / "a.mp4")


def test_a_cut_in_the_last_frames_of_a_plain_file_shows(tmp_path: Path, moving: Callable):
    path = encode(
        tmp_path / "a.mp4", moving(200, 32, 48), 25, container_options={"movflags": "faststart"}, options={"bf": "0"}
    )
    data = path.read_bytes()
    path.write_bytes(data[:-40])
    video = read_video(path)
    assert 190 <= len(video) < 200
    assert len(video.warnings) == 1 and "cut off" in video.warnings[0]


def test_zeros_that_fill_up_a_file_are_no_cut(tmp_path: Path, moving: Callable):
    path = encode(tmp_path / "a.mp4", moving(10, 32, 48))
    path.write_bytes(path.read_bytes() + bytes(1000))
    assert not scan_boxes(path).is_cut
    with iter_frames(path) as reader:
        assert len(list(reader)) == 10 and reader.warnings == []
