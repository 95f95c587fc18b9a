"""Clips in every form that people have them in."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mutoscope.data.clip_input import ClipLike, as_frames, is_one_array, video_of
from mutoscope.data.video.read import Video, read_video
from mutoscope.data.video.write import VideoClip, write_video
from mutoscope.errors import UserError

CLIP = np.random.default_rng(0).integers(0, 256, (5, 8, 12, 3), dtype=np.uint8)


def forms() -> dict[str, ClipLike]:
    tensor = torch.from_numpy(CLIP)
    return {
        "array": CLIP,
        "array that is not contiguous": np.repeat(CLIP, 2, axis=0)[::2],
        "tensor": tensor,
        "tensor with channels first": tensor.movedim(-1, 1),
        "clip": VideoClip(CLIP, 8),
        "video": Video(CLIP, 8, np.arange(5) / 8),
        "list of arrays": list(CLIP),
        "list of images": [Image.fromarray(frame) for frame in CLIP],
        "tuple of tensors": tuple(tensor.movedim(-1, 1)),
        "list of clips": [CLIP[:2], CLIP[2:]],
    }


@pytest.mark.parametrize("form", forms())
def test_every_form_of_a_clip_gives_its_frames(form: str):
    frames = as_frames(forms()[form])
    assert frames.dtype == np.uint8 and np.array_equal(frames, CLIP)


@pytest.mark.parametrize("frame", [CLIP[0], torch.from_numpy(CLIP[0]), Image.fromarray(CLIP[0])], ids=type)
def test_one_frame_is_a_clip_of_one_frame(frame):
    assert np.array_equal(as_frames(frame), CLIP[:1])


def test_an_image_with_transparency_or_in_grey_becomes_rgb():
    grey = Image.fromarray(CLIP[0, :, :, 0])
    assert as_frames(grey).shape == (1, 8, 12, 3)
    assert as_frames(grey.convert("RGBA")).shape == (1, 8, 12, 3)


@pytest.mark.parametrize("as_path", [str, Path])
def test_files_are_read(tmp_path, as_path):
    Image.fromarray(CLIP[0]).save(tmp_path / "a.png")
    assert np.array_equal(as_frames(as_path(tmp_path / "a.png")), CLIP[:1])
    write_video(tmp_path / "a.mp4", CLIP, 5)
    whole = read_video(tmp_path / "a.mp4").frames
    assert np.array_equal(as_frames(as_path(tmp_path / "a.mp4"), max_frames=2), whole[:2])
    assert video_of(as_path(tmp_path / "a.mp4"), 8).fps == pytest.approx(5)
    assert video_of(CLIP, 8).fps == 8


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (CLIP / 255.0, "context must hold uint8.*float64, whose range is not known"),
        (torch.rand(2, 3, 8, 8), "float32, whose range is not known"),
        (CLIP.astype(np.int64), "found int64 of the shape"),
        (CLIP[..., 0], r"\(5, 8, 12\)"),
        (np.zeros((2, 8, 8, 4), np.uint8), r"\(2, 8, 8, 4\)"),
        (np.zeros((0, 8, 8, 3), np.uint8), r"\(0, 8, 8, 3\)"),
        ([], "empty list"),
        ([CLIP[0], CLIP[0, :4]], "one size, found 4×12, 8×12"),
        ([CLIP[0], CLIP[0] / 2], r"context\[1\] must hold uint8"),
        ("nowhere.mp4", "nowhere.mp4"),
        (7, "found int"),
        ({"frames": CLIP}, "found dict"),
    ],
)
def test_anything_else_is_refused_with_a_sentence(value, message: str):
    with pytest.raises(UserError, match=message):
        as_frames(value, "context")


def test_an_array_of_clips_is_no_single_clip():
    assert is_one_array(CLIP) and is_one_array(CLIP[0]) and is_one_array(torch.from_numpy(CLIP))
    assert not is_one_array(CLIP[None])
    assert not is_one_array(np.zeros((2, 5, 2), np.float32)), "actions of two samples"
    assert not is_one_array([CLIP])


def test_representations_fit_one_line():
    assert repr(VideoClip(CLIP, 10)) == "VideoClip(5 frames of 8×12, 10 fps, 0.5 s)"
    assert repr(Video(CLIP, 10, np.arange(5) / 10)) == "Video(5 frames of 8×12, 10 fps, 0.5 s)"
