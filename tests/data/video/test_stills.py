"""Still and animated images as videos, with the timing that they state."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from mutoscope.data.media import read_image
from mutoscope.data.video.read import iter_frames, measure, read_video, write_video
from mutoscope.errors import UserError

av = pytest.importorskip("av")

ANIMATED = {"a.webp": {"lossless": True}, "a.png": {}, "a.gif": {}}
if features.check("avif"):
    ANIMATED["a.avif"] = {"quality": 95}


def animation(path: Path, duration: int | list[int], count: int = 10, **options: Any) -> Path:
    """Grey frames 0, 20, 40 ..., shown for these milliseconds."""
    frames = [Image.fromarray(np.full((32, 48, 3), 20 * i, np.uint8)) for i in range(count)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=duration, **options)
    return path


@pytest.mark.parametrize("name", ANIMATED)
@pytest.mark.parametrize("duration", [100, 40])
def test_animations_play_at_the_rate_they_state(tmp_path: Path, name: str, duration: int):
    path = animation(tmp_path / name, duration, **ANIMATED[name])
    video = read_video(path)
    assert video.fps == pytest.approx(1000 / duration)
    assert video.times == pytest.approx(np.arange(10) * duration / 1000)
    assert np.abs(video.frames.mean(axis=(1, 2, 3)) - 20 * np.arange(10)).max() < 2
    with iter_frames(path) as reader:
        assert reader.fps == pytest.approx(1000 / duration)


@pytest.mark.parametrize("name", ANIMATED)
def test_frames_of_unequal_durations_keep_their_times(tmp_path: Path, name: str):
    path = animation(tmp_path / name, [40] * 5 + [200] * 5, **ANIMATED[name])
    video, found = read_video(path), measure(path)
    assert video.times == pytest.approx([0, 0.04, 0.08, 0.12, 0.16, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert found.seconds == pytest.approx(1.2)
    assert found.fps == video.fps == pytest.approx(10 / 1.2)
    resampled = read_video(path, fps=10)
    assert len(resampled) == 12
    assert np.abs(resampled.frames[1::2, 0, 0, 0].astype(int) - [40, 100, 120, 140, 160, 180]).max() <= 20


@pytest.mark.parametrize("name", ["a.webp", "a.png"])
def test_a_duration_too_short_to_be_meant_is_100_ms_as_in_browsers(tmp_path: Path, name: str):
    assert read_video(animation(tmp_path / name, 0, **ANIMATED[name])).fps == pytest.approx(10)


def test_the_still_that_apng_keeps_for_other_readers_is_no_frame(tmp_path: Path):
    video = read_video(animation(tmp_path / "a.png", 50, 4, default_image=True))
    assert video.frames[:, 0, 0, 0].tolist() == [20, 40, 60]
    assert video.fps == pytest.approx(20)


def test_the_depth_map_of_a_photo_is_no_second_frame(tmp_path: Path):
    photo, depth = Image.new("RGB", (64, 48), "red"), Image.new("RGB", (32, 24))
    photo.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[depth])
    assert len(read_video(tmp_path / "a.jpg")) == 1


def test_pages_of_a_tiff_file_have_no_rate_and_a_smaller_copy_is_no_page(tmp_path: Path):
    pages = [Image.fromarray(np.full((16, 24, 3), 50 * i, np.uint8)) for i in range(3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    video = read_video(tmp_path / "a.tif")
    assert (len(video), video.fps) == (3, 1.0)
    assert len(video.warnings) == 1 and "states no rate" in video.warnings[0]
    copy = pages[1].resize((12, 8))
    copy.encoderinfo = {"tiffinfo": {254: 1}}
    pages[0].save(tmp_path / "b.tif", save_all=True, append_images=[copy])
    assert len(read_video(tmp_path / "b.tif")) == 1


def test_pages_of_several_sizes_take_that_of_the_first(tmp_path: Path):
    pages = [Image.new("RGB", (24, 16)), Image.new("RGB", (48, 48))]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    video = read_video(tmp_path / "a.tif")
    assert video.frames.shape == (2, 16, 24, 3)
    assert any("changes size at frame 1" in warning for warning in video.warnings)


def test_a_still_image_is_one_frame_at_any_rate(tmp_path: Path):
    Image.new("RGB", (24, 16)).save(tmp_path / "a.png")
    assert len(read_video(tmp_path / "a.png", fps=25)) == 1


def test_transparency_is_reported_once_and_dropped(tmp_path: Path):
    pixels = np.full((16, 16, 4), 200, np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    video = read_video(tmp_path / "a.png")
    assert (video.frames == 200).all()
    assert len(video.warnings) == 1 and "transparent pixels" in video.warnings[0]
    np.testing.assert_array_equal(video.frames[0], read_image(tmp_path / "a.png"))
    pixels[..., 3] = 255
    Image.fromarray(pixels).save(tmp_path / "opaque.png")
    assert read_video(tmp_path / "opaque.png").warnings == ()


def test_values_that_cannot_be_pixels_are_refused(tmp_path: Path):
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match="not finite"):
        read_video(tmp_path / "a.tif")


def test_an_animation_written_again_lasts_as_long(tmp_path: Path):
    source = read_video(animation(tmp_path / "a.webp", 80, lossless=True))
    write_video(tmp_path / "b.webm", source.frames, source.fps)
    assert measure(tmp_path / "b.webm").seconds == pytest.approx(0.8, abs=0.01)
