import dataclasses
import errno
import os
import subprocess
import sys
import textwrap
import tracemalloc
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mutoscope.data.media import covering_size
from mutoscope.data.orientation import UPRIGHT
from mutoscope.data.video import decode, write
from mutoscope.data.video.convert import rgb_array
from mutoscope.data.video.read import (
    FrameStream,
    VideoClip,
    VideoWriter,
    contact_sheet,
    index_frames,
    iter_frames,
    probe,
    read_video,
    write_video,
)
from mutoscope.errors import UserError

av = pytest.importorskip("av")

Sample = Callable[[str], Path]

# file, frames, height, width (upright), fps, RGB means of the first frame, part of each expected warning
REAL_CLIPS = [
    ("street_bikes_h264.mp4", 250, 272, 640, 25, (142.9, 134.9, 130.6), []),
    (
        "carphone_talking_h264_sar.mp4",
        120,
        144,
        176,
        30000 / 1001,
        (96.3, 100.1, 94.2),
        ["non-square pixels (128:117)"],
    ),
    ("pancake_handheld_h264.mkv", 310, 240, 426, 30, (120.2, 90.4, 82.4), []),
    ("ucf_eye_makeup_mpeg4.avi", 164, 240, 320, 25, (95.0, 81.4, 87.9), []),
    ("bunny_animation_vp9.webm", 300, 180, 320, 30, (89.5, 104.8, 56.3), []),
    ("bear_vp9_odd_size.webm", 30, 121, 161, 29.97, (143.8, 149.2, 148.3), []),
    ("sketch_rot90_h264.mp4", 23, 352, 288, 29.85, (162.0, 157.2, 163.3), []),
    ("bracelet_rot270_hevc10_hdr.mp4", 9, 1920, 1080, 30, (166.5, 167.9, 167.5), ["high dynamic range"]),
    ("talking_head_av1.mp4", 30, 720, 1080, 30000 / 1001, (152.4, 146.8, 148.0), []),
    ("two_people_vfr_h264.mp4", 72, 1080, 1920, 28.05, (130.4, 136.4, 128.9), []),
    ("nasa_two_video_streams.mp4", 325, 180, 320, 25, (9.4, 9.0, 14.8), ["using stream 0 (others: 3)"]),
    ("corrupted_tail_h264.mp4", 28, 720, 1280, 10, (122.8, 129.0, 128.9), ["28 frames of the 50"]),
    ("truncated_midstream_h264.mkv", 54, 240, 426, 30, (120.2, 90.4, 82.4), ["1.80 s of the 10.33 s"]),
]


@pytest.mark.parametrize(("name", "count", "height", "width", "fps", "means", "notes"), REAL_CLIPS)
def test_real_clips_decode_as_their_table_says(clips_dir, name, count, height, width, fps, means, notes):
    with iter_frames(clips_dir / name) as reader:
        first = next(reader)
        shapes = {first.shape} | {frame.shape for frame in reader}
    assert reader.frames_decoded == len(reader.times) == count
    assert shapes == {(height, width, 3)}
    assert reader.fps == pytest.approx(fps, rel=2e-4)
    assert first.mean(axis=(0, 1)) == pytest.approx(means, abs=0.15)  # computed from the planes in floats
    assert len(reader.warnings) == len(notes)
    assert all(note in warning for note, warning in zip(notes, reader.warnings, strict=True))


@pytest.mark.parametrize("name", ["invalid_vp9.webm", "truncated_no_moov_av1.mp4"])
def test_real_clips_without_a_frame_are_refused(clips_dir, name):
    with pytest.raises(UserError, match=name):
        read_video(clips_dir / name)


@pytest.mark.parametrize("name", [row[0] for row in REAL_CLIPS if row[1] > 100])
def test_seeking_in_real_clips_gives_the_frames_that_slicing_gives(clips_dir, name):
    whole = read_video(clips_dir / name, size=(36, 64))
    index = index_frames(clips_dir / name)
    for start in (1, 63, 64, len(whole) // 2, len(whole) - 2):
        part = read_video(clips_dir / name, start=start, max_frames=2, size=(36, 64), index=index)
        assert np.array_equal(part.frames, whole.frames[start : start + 2])
        assert part.times == pytest.approx(whole.times[start : start + 2])


def test_the_second_stream_of_a_real_clip_can_be_chosen(clips_dir):
    path = clips_dir / "nasa_two_video_streams.mp4"
    video = read_video(path, stream=3, size=(27, 48))
    assert len(video) == 390
    assert video.fps == pytest.approx(30000 / 1001)
    assert probe(path).video_streams == (0, 3)


def test_times_of_a_real_variable_rate_clip_are_irregular(clips_dir):
    times = read_video(clips_dir / "two_people_vfr_h264.mp4", size=(27, 48)).times
    steps = np.diff(times)
    assert steps.min() == pytest.approx(0.033, abs=0.001)
    assert steps.max() == pytest.approx(0.2, abs=0.001)
    assert times[-1] == pytest.approx(2.533, abs=0.001)


@pytest.mark.parametrize(
    ("kind", "shape", "fps"),
    [
        ("plain_mp4", (40, 48, 64, 3), 10),
        ("ten_bit", (6, 32, 32, 3), 10),
        ("rotated", (6, 48, 32, 3), 10),
        ("odd_size", (8, 31, 45, 3), 10),
    ],
)
def test_healthy_files_decode_wholly_and_without_warnings(sample: Sample, kind: str, shape: tuple, fps: float):
    video = read_video(sample(kind))
    assert video.frames.shape == shape
    assert video.frames.dtype == np.uint8
    assert video.fps == pytest.approx(fps)
    assert video.times == pytest.approx(np.arange(shape[0]) / fps)
    assert video.warnings == ()


@pytest.mark.parametrize("kind", ["plain_mp4", "ten_bit", "odd_size"])
def test_decoded_colours_are_those_that_were_encoded(sample: Sample, moving, kind: str):
    frames = read_video(sample(kind)).frames.astype(int)
    error = np.abs(frames - moving(*frames.shape[:3]))
    assert error.mean() < 5


def test_rotation_is_applied_as_rot90_of_the_stored_frame(sample: Sample):
    with av.open(str(sample("rotated"))) as container:
        stored = next(container.decode(video=0))
    assert stored.rotation == 90
    expected = np.rot90(rgb_array(stored, UPRIGHT, (32, 48), None, False), k=stored.rotation // 90)
    assert np.array_equal(read_video(sample("rotated")).frames[0], expected)


def test_size_means_the_upright_size(sample: Sample):
    assert read_video(sample("rotated"), size=(24, 20)).frames.shape == (6, 24, 20, 3)


def test_variable_rate_keeps_times_and_gives_the_real_average(sample: Sample):
    video = read_video(sample("variable_rate"))
    assert video.times[:6] == pytest.approx(0.04 * np.arange(6))
    assert video.times[6:] == pytest.approx(0.24 + 0.2 * np.arange(6))
    assert video.fps == pytest.approx(11 / 1.24)


def test_resampling_takes_the_nearest_frame_in_time(sample: Sample):
    source = read_video(sample("variable_rate"))
    video = read_video(sample("variable_rate"), fps=10)
    assert video.fps == 10
    assert video.times == pytest.approx(np.arange(len(video)) / 10)
    assert len(video) == 14  # 1.24 s and the average of eleven steps for the last frame
    for time, frame in zip(video.times, video.frames, strict=True):
        distance = np.abs(source.times - time)
        assert any(np.array_equal(frame, source.frames[i]) for i in np.flatnonzero(distance <= distance.min() + 1e-6))


@pytest.mark.parametrize(("fps", "count"), [(10, 40), (5, 20), (20, 80)])
def test_resampling_to_a_multiple_keeps_the_duration(sample: Sample, fps: float, count: int):
    assert len(read_video(sample("plain_mp4"), fps=fps)) == count


def test_resampled_frames_can_be_sliced(sample: Sample):
    whole = read_video(sample("plain_mp4"), fps=7).frames
    assert np.array_equal(read_video(sample("plain_mp4"), fps=7, start=3, max_frames=5, stride=2).frames, whole[3:13:2])


@given(start=st.integers(0, 39), count=st.integers(1, 40), stride=st.integers(1, 5), with_index=st.booleans())
def test_reading_a_part_equals_slicing_the_whole(sample: Sample, start: int, count: int, stride: int, with_index: bool):
    path = sample("plain_mp4")
    whole = read_video(path)
    index = index_frames(path) if with_index else None
    part = read_video(path, start=start, max_frames=count, stride=stride, index=index)
    assert np.array_equal(part.frames, whole.frames[start::stride][:count])
    assert part.times == pytest.approx(whole.times[start::stride][:count])
    assert part.fps == pytest.approx(whole.fps / stride)


def test_a_far_start_is_decoded_from_the_keyframe_before_it(sample: Sample, monkeypatch):
    path = sample("long_mp4")
    expected = read_video(path).frames[130:133]
    first_decoded, numbered = [], decode._numbered

    def spy(frames, first, *rest):
        first_decoded.append(first)
        return numbered(frames, first, *rest)

    monkeypatch.setattr(decode, "_numbered", spy)
    assert np.array_equal(read_video(path, start=130, max_frames=3).frames, expected)
    assert first_decoded == [125]


def test_a_seek_that_goes_wrong_falls_back_to_decoding_from_the_start(sample: Sample):
    path = sample("long_mp4")
    index = index_frames(path)
    wrong = dataclasses.replace(index, pts=index.pts - 1)  # no frame has these times
    part = read_video(path, start=130, max_frames=3, index=wrong)
    assert np.array_equal(part.frames, read_video(path).frames[130:133])


def test_start_beyond_the_end_says_how_many_frames_there_are(sample: Sample):
    with pytest.raises(UserError, match="has 40 frames"):
        read_video(sample("plain_mp4"), start=40)


@pytest.mark.parametrize("options", [{"start": -1}, {"stride": 0}, {"max_frames": 0}, {"fps": 0.0}])
def test_impossible_options_are_refused(sample: Sample, options: dict):
    with pytest.raises(UserError):
        read_video(sample("plain_mp4"), **options)


def test_the_first_of_several_streams_is_used_and_named(sample: Sample):
    video = read_video(sample("two_streams"))
    assert video.frames.shape == (5, 32, 48, 3)
    assert len(video.warnings) == 1
    assert "using stream 0 (others: 1)" in video.warnings[0]


def test_another_stream_can_be_chosen_without_a_warning(sample: Sample):
    video = read_video(sample("two_streams"), stream=1)
    assert video.frames.shape == (7, 64, 96, 3)
    assert video.warnings == ()


def test_a_stream_that_is_not_there_is_refused_with_those_that_are(sample: Sample):
    with pytest.raises(UserError, match="its video streams are 0, 1"):
        read_video(sample("two_streams"), stream=5)


@pytest.mark.parametrize(("kind", "count"), [("damaged_tail", 20), ("cut_off_silently", 14)])
def test_a_damaged_tail_gives_the_frames_before_it_and_one_warning(sample: Sample, kind: str, count: int):
    video = read_video(sample(kind))
    assert abs(len(video) - count) <= 2  # where the cut falls depends on the encoder
    assert len(video.warnings) == 1
    assert f"{len(video)} frames" in video.warnings[0]
    assert video.frames.mean(axis=(1, 2, 3)).min() > 50  # none is black


def test_frames_that_the_decoder_patched_are_reported(sample: Sample, tmp_path: Path):
    path = sample("plain_mp4")
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    data = bytearray(path.read_bytes())
    for position, size in packets[11:13]:
        data[position + size // 2 : position + size] = bytes(size - size // 2)
    (tmp_path / "patched.mp4").write_bytes(data)
    video = read_video(tmp_path / "patched.mp4")
    assert len(video) == 40
    assert len(video.warnings) == 1
    assert "of its 40 frames were patched" in video.warnings[0]


def test_text_in_the_file_that_is_not_text_does_no_harm(sample: Sample, tmp_path: Path):
    data = sample("variable_rate").read_bytes()
    assert b"Lavf" in data
    (tmp_path / "odd.mkv").write_bytes(data.replace(b"Lavf", b"\xa5\xfe\xffx"))
    assert len(read_video(tmp_path / "odd.mkv")) == 12


def test_a_header_that_promises_too_little_loses_nothing(sample: Sample, monkeypatch):
    whole = read_video(sample("plain_mp4")).frames
    monkeypatch.setattr(FrameStream, "expected_frames", lambda self: 3)
    assert np.array_equal(read_video(sample("plain_mp4")).frames, whole)


def test_reading_only_frames_before_the_damage_gives_no_warning(sample: Sample):
    assert read_video(sample("damaged_tail"), max_frames=5).warnings == ()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("cut_off_index", "not a video that can be opened"),
        ("no_frame", "no frame that can be decoded"),
        ("zero_length", "empty"),
        ("not_a_video", "not a video"),
        ("text_file", "not a video"),
        ("audio_only", "no video stream"),
    ],
)
def test_files_without_frames_are_refused_in_one_sentence(sample: Sample, kind: str, message: str):
    with pytest.raises(UserError, match=message) as error:
        read_video(sample(kind))
    assert "\n" not in str(error.value)


def test_missing_files_and_folders_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="there is no file"):
        read_video(tmp_path / "none.mp4")
    with pytest.raises(UserError, match="is a folder"):
        read_video(tmp_path)


def test_iterating_opens_the_file_at_once(sample: Sample):
    with pytest.raises(UserError, match="not a video"):
        iter_frames(sample("not_a_video"))


def test_a_still_image_is_a_video_of_one_frame(tmp_path: Path, moving):
    picture = moving(1, 20, 30)[0]
    Image.fromarray(picture).save(tmp_path / "one.png")
    video = read_video(tmp_path / "one.png")
    assert np.array_equal(video.frames, picture[None])
    assert read_video(tmp_path / "one.png", size=(10, 15)).frames.shape == (1, 10, 15, 3)


def test_an_image_is_turned_by_its_camera_tag(tmp_path: Path, moving):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate 90 degrees clockwise for display
    Image.fromarray(moving(1, 20, 30)[0]).save(tmp_path / "one.jpg", exif=exif)
    assert read_video(tmp_path / "one.jpg").frames.shape == (1, 30, 20, 3)


def test_a_broken_image_is_refused(tmp_path: Path):
    (tmp_path / "one.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="not an image"):
        read_video(tmp_path / "one.png")


def test_probe_reads_header_and_packets(sample: Sample):
    info = probe(sample("plain_mp4"))
    assert (info.num_frames, info.height, info.width, info.fps, info.codec) == (40, 48, 64, 10.0, "h264")
    assert info.seconds == pytest.approx(4.0)
    assert probe(sample("odd_size")).num_frames == 8  # WebM states no number


def test_streaming_holds_few_frames_in_memory(tmp_path: Path, moving):
    frame = moving(1, 128, 128)[0]
    with VideoWriter(tmp_path / "long.mp4", fps=30) as writer:
        for _ in range(100):
            writer.write(frame)
    tracemalloc.start()
    with iter_frames(tmp_path / "long.mp4") as reader, VideoWriter(tmp_path / "copy.mp4", reader.fps) as writer:
        for array in reader:
            writer.write(array)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert writer.num_frames == 100
    assert peak < 10 * frame.nbytes


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif"])
@pytest.mark.parametrize("fps", [8, 30000 / 1001, 12.5])
def test_frames_size_and_rate_round_trip(tmp_path: Path, moving, suffix: str, fps: float):
    frames = moving(12, 32, 48)
    path = tmp_path / f"clip{suffix}"
    assert write_video(path, frames, fps) == []
    video = read_video(path)
    assert video.frames.shape == frames.shape
    assert video.fps == pytest.approx(fps, rel=0.01 if suffix == ".gif" else 1e-4)
    assert np.abs(video.frames.astype(int) - frames).mean() < 4
    assert video.warnings == ()


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
@pytest.mark.parametrize("color", [(200, 60, 90), (10, 240, 30), (128, 128, 128), (250, 250, 5)])
def test_plain_colours_survive_within_two_levels(tmp_path: Path, suffix: str, color: tuple[int, int, int]):
    frames = np.full((4, 64, 64, 3), color, dtype=np.uint8)
    write_video(tmp_path / f"plain{suffix}", frames, 8)
    mean = read_video(tmp_path / f"plain{suffix}").frames.mean(axis=(0, 1, 2))
    assert mean == pytest.approx(color, abs=2.5)


def test_mp4_has_a_format_that_browsers_play(tmp_path: Path, moving):
    write_video(tmp_path / "clip.mp4", moving(6, 32, 32), Fraction(30000, 1001))
    data = (tmp_path / "clip.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    with av.open(str(tmp_path / "clip.mp4")) as container:
        stream = container.streams.video[0]
        frame = next(container.decode(stream))
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == Fraction(30000, 1001)
        assert (frame.colorspace, frame.color_range) == (1, 1)


@pytest.mark.parametrize("suffix", [".webm", ".gif"])
@pytest.mark.parametrize("size", [(31, 33), (1, 1), (7, 64)])
def test_odd_sizes_are_kept_where_the_format_can(tmp_path: Path, moving, suffix: str, size: tuple[int, int]):
    assert write_video(tmp_path / f"odd{suffix}", moving(5, *size), 8) == []
    assert read_video(tmp_path / f"odd{suffix}").frames.shape == (5, *size, 3)


def test_odd_sizes_in_mp4_repeat_the_last_row_and_column_and_say_so(tmp_path: Path):
    frames = np.full((4, 31, 33, 3), 40, dtype=np.uint8)
    frames[:, -1] = 200
    warnings = write_video(tmp_path / "odd.mp4", frames, 8)
    assert len(warnings) == 1
    assert "31x33 is written as 32x34" in warnings[0]
    video = read_video(tmp_path / "odd.mp4")
    assert video.frames.shape == (4, 32, 34, 3)
    assert video.frames[:, -1].mean() == pytest.approx(200, abs=8)
    assert video.frames[:, :29].mean() == pytest.approx(40, abs=4)


def test_scale_repeats_pixels(tmp_path: Path, moving):
    frames = moving(3, 5, 7)
    assert write_video(tmp_path / "big.gif", frames, 8, scale=4) == []
    assert np.array_equal(read_video(tmp_path / "big.gif").frames, frames.repeat(4, axis=1).repeat(4, axis=2))


@pytest.mark.parametrize("count", [1, 2, 7])
def test_gif_keeps_equal_frames_and_the_exact_duration(tmp_path: Path, count: int):
    frames = np.full((count, 12, 15, 3), 77, dtype=np.uint8)
    write_video(tmp_path / "same.gif", frames, 8)
    with Image.open(tmp_path / "same.gif") as image:
        assert getattr(image, "n_frames", 1) == count
        delays = []
        for i in range(count):
            image.seek(i)
            delays.append(image.info["duration"])
    assert sum(delays) == 10 * round(100 * count / 8)
    assert np.array_equal(read_video(tmp_path / "same.gif").frames, frames)


def test_gif_of_few_colours_is_lossless(tmp_path: Path):
    frames = np.random.default_rng(0).integers(0, 4, (6, 20, 24, 3), dtype=np.uint8) * 80  # 64 colours
    write_video(tmp_path / "few.gif", frames, 10)
    assert np.array_equal(read_video(tmp_path / "few.gif").frames, frames)


def test_gif_faster_than_browsers_play_says_so(tmp_path: Path, moving):
    assert "50" in write_video(tmp_path / "fast.gif", moving(3, 8, 8), 120)[0]


def test_png_is_a_contact_sheet(tmp_path: Path, moving):
    frames = moving(5, 8, 10)
    write_video(tmp_path / "sheet.png", frames, 8)
    sheet = read_video(tmp_path / "sheet.png").frames[0]
    assert np.array_equal(sheet, contact_sheet(frames))


def test_png_of_one_frame_is_that_frame(tmp_path: Path, moving):
    write_video(tmp_path / "one.png", moving(1, 9, 11), 8)
    assert np.array_equal(read_video(tmp_path / "one.png").frames, moving(1, 9, 11))


def test_png_of_a_long_video_shows_frames_spread_over_it(tmp_path: Path):
    frames = np.repeat(np.arange(250, dtype=np.uint8), 4 * 4 * 3).reshape(250, 4, 4, 3)
    warnings = write_video(tmp_path / "sheet.png", frames, 8)
    assert "64 of 250" in warnings[0]
    corners = read_video(tmp_path / "sheet.png").frames[0][::6, ::6, 0].flatten()
    assert len(corners) == 64
    assert corners[0] == 0
    assert corners[-1] >= 245
    assert (np.diff(corners.astype(int)) > 0).all()


def test_contact_sheet_has_one_row_per_clip(moving):
    clips = [moving(3, 6, 8), moving(2, 4, 5, start=9)]
    sheet = contact_sheet(clips, pad=1, background=0)
    assert sheet.shape == (6 + 1 + 6, 3 * 8 + 2, 3)
    assert np.array_equal(sheet[:6, 9:17], clips[0][1])
    assert np.array_equal(sheet[7:11, 9:14], clips[1][1])
    assert not sheet[7:, 18:].any()


def test_contact_sheet_wraps_scales_and_labels(moving):
    frames = moving(5, 6, 8)
    sheet = contact_sheet(frames, columns=2, scale=2, pad=0)
    assert sheet.shape == (3 * 12, 2 * 16, 3)
    assert np.array_equal(sheet[12:24:2, 0:16:2], frames[2])
    labelled = contact_sheet([frames, frames], labels=["before", "après → 後"], scale=4)
    assert labelled.shape[0] > contact_sheet([frames, frames], scale=4).shape[0]


@pytest.mark.parametrize("fps", [30000 / 1001, 29.97, 24000 / 1001, 0.5, 2160 / 77])
def test_rates_become_exact_fractions(fps: float):
    assert float(write.exact_fps(fps)) == pytest.approx(fps, rel=1e-9)
    assert write.exact_fps(30000 / 1001) == Fraction(30000, 1001)


@pytest.mark.parametrize("fps", [0, -8, float("nan"), float("inf")])
def test_impossible_rates_are_refused(tmp_path: Path, fps: float):
    with pytest.raises(UserError, match="fps"):
        VideoWriter(tmp_path / "clip.mp4", fps)


def test_an_unknown_suffix_names_the_four(tmp_path: Path, moving):
    with pytest.raises(UserError, match=r"\.mp4, \.webm, \.gif, \.png"):
        write_video(tmp_path / "clip.mov", moving(2, 8, 8), 8)


def test_a_video_without_frames_is_refused_and_leaves_nothing(tmp_path: Path):
    with pytest.raises(UserError, match="no frames"):
        write_video(tmp_path / "clip.mp4", [], 8)
    assert list(tmp_path.iterdir()) == []


def test_missing_folders_and_folders_as_targets_are_refused(tmp_path: Path, moving):
    (tmp_path / "folder.mp4").mkdir()
    for path in (tmp_path / "none" / "clip.mp4", tmp_path / "folder.mp4"):
        with pytest.raises(UserError, match="cannot write"):
            write_video(path, moving(2, 8, 8), 8)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_folder_is_refused(tmp_path: Path, moving):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="Permission denied"):
        write_video(tmp_path / "clip.mp4", moving(2, 8, 8), 8)


def test_frames_must_be_alike_and_of_bytes(tmp_path: Path, moving):
    with pytest.raises(ValueError, match="the first one has"), VideoWriter(tmp_path / "clip.mp4", 8) as writer:
        writer.write(moving(1, 16, 16)[0])
        writer.write(moving(1, 16, 18)[0])
    with pytest.raises(ValueError, match="float64"), VideoWriter(tmp_path / "clip.mp4", 8) as writer:
        writer.write(np.zeros((16, 16, 3)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif", ".png"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, moving, suffix: str, error: type[BaseException]):
    path = tmp_path / f"clip{suffix}"
    path.write_bytes(b"old")
    with pytest.raises(error), VideoWriter(path, 8) as writer:
        writer.write(moving(1, 16, 16)[0])
        raise error
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [(path.name, b"old")]


def test_closing_twice_has_no_effect(tmp_path: Path, moving):
    with VideoWriter(tmp_path / "clip.mp4", 8) as writer:
        writer.write(moving(1, 16, 16)[0])
        writer.close()
    assert [p.name for p in tmp_path.iterdir()] == ["clip.mp4"]
    with pytest.raises(ValueError, match="is closed"):
        writer.write(moving(1, 16, 16)[0])


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("stage", ["add", "finish", "rename"])
def test_a_full_disk_is_reported_and_leaves_no_file(tmp_path: Path, moving, monkeypatch, stage: str):
    if stage == "rename":
        monkeypatch.setattr(write.os, "replace", full_disk)
    else:
        monkeypatch.setattr(write.FfmpegEncoder, stage, full_disk)
    with pytest.raises(UserError, match="No space left"):
        write_video(tmp_path / "clip.mp4", moving(3, 16, 16), 8)
    assert list(tmp_path.iterdir()) == []


def run_python(program: str, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif", ".png"])
def test_a_write_that_runs_out_of_room_is_reported_and_leaves_no_file(tmp_path: Path, suffix: str):
    """The system refuses files beyond 20 kB, as a full disk would."""
    program = """
        import resource, sys
        import numpy as np
        from mutoscope.data.video.read import write_video
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        noise = np.random.default_rng(0).integers(0, 256, (12, 96, 96, 3), dtype=np.uint8)
        try:
            write_video(sys.argv[1], noise, 8)
        except ValueError as error:
            print(type(error).__name__, error)
    """
    done = run_python(program, tmp_path / f"clip{suffix}")
    assert done.stdout.startswith("WriteError Cannot write"), done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_a_killed_process_leaves_at_most_a_hidden_file(tmp_path: Path, suffix: str):
    program = """
        import os, signal, sys
        import numpy as np
        from mutoscope.data.video.read import VideoWriter
        noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
        with VideoWriter(sys.argv[1], 8) as writer:
            for _ in range(20):
                writer.write(noise)
            os.kill(os.getpid(), signal.SIGKILL)
    """
    path = tmp_path / f"clip{suffix}"
    path.write_bytes(b"old")
    assert run_python(program, path).returncode == -9
    assert path.read_bytes() == b"old"
    assert all(p == path or p.name.startswith(".clip") for p in tmp_path.iterdir())


def test_importing_needs_neither_torch_nor_av():
    program = "import sys, mutoscope.data.video.read, mutoscope.data.inspect; print({'torch', 'av'} & set(sys.modules))"
    assert run_python(program).stdout.strip() == "set()"


def test_a_clip_saves_itself(tmp_path: Path, moving):
    clip = VideoClip(moving(4, 17, 16), fps=8.0)
    assert len(clip) == 4
    assert len(clip.save(tmp_path / "clip.mp4")) == 1  # odd height
    assert clip.save(tmp_path / "clip.gif", scale=2) == []
    assert read_video(tmp_path / "clip.gif").frames.shape == (4, 34, 32, 3)


@given(
    size=st.tuples(st.integers(1, 2000), st.integers(1, 2000)),
    cover=st.tuples(st.integers(1, 500), st.integers(1, 500)),
)
def test_covering_size_covers_and_touches(size: tuple[int, int], cover: tuple[int, int]):
    height, width = covering_size(size, cover)
    assert height >= cover[0]
    assert width >= cover[1]
    assert height == cover[0] or width == cover[1]
    scale = max(cover[0] / size[0], cover[1] / size[1])
    assert abs(height - scale * size[0]) <= 1
    assert abs(width - scale * size[1]) <= 1
