"""mutoscope reconstruct: any size and length, in order, with honest figures; bad input leaves nothing behind."""

import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mutoscope import hub
from mutoscope.commands.reconstruct import Error
from mutoscope.data.video.read import read_video, write_video
from mutoscope.tokenizers import tiling
from tiny_models import save_tiny_tokenizer

KEYS = {
    "input", "output", "frames", "height", "width", "fps", "psnr_db", "num_tokens", "latent_shape",
    "compression_ratio", "seconds", "peak_memory_bytes",
}  # fmt: skip


@pytest.mark.parametrize(("suffix", "size"), [(".webm", (13, 11)), (".gif", (13, 11)), (".mp4", (14, 12))])
def test_frames_size_and_rate_are_those_of_the_input(run, tokenizer, video, out, suffix, size):
    path = out / f"x{suffix}"
    report = run("reconstruct", tokenizer, video, path, "--json").report
    assert report.keys() >= KEYS
    written = read_video(path)
    assert written.frames.shape == (9, *size, 3)
    assert (report["frames"], report["height"], report["width"]) == (9, *size)
    assert report["fps"] == pytest.approx(7.5) and written.fps == pytest.approx(7.5, rel=0.02)


def test_an_odd_size_in_mp4_is_a_warning(run, tokenizer, video, out):
    done = run("reconstruct", tokenizer, video, out / "x.mp4")
    assert done.status == 0 and done.err.count("warning") == 1 and "odd" in done.err


def test_tokens_are_counted_as_documented(run, tokenizer, video, out):
    report = run("reconstruct", tokenizer, video, out / "x.webm", "--json").report
    assert report["latent_shape"] == [5, 7, 6] and report["num_tokens"] == 210
    assert report["compression_ratio"] == pytest.approx(9 * 13 * 11 * 24 / (210 * 4))


def test_psnr_compares_8_bit_frames_before_the_video_codec(run, tokenizer, video, out):
    report = run("reconstruct", tokenizer, video, out / "x.webm", "--json").report
    before = read_video(video).frames
    after = tiling.encode_decode(hub.load_tokenizer(tokenizer), before)
    error = np.square(before.astype(float) - after).mean()
    assert report["psnr_db"] == pytest.approx(10 * np.log10(255**2 / error))


def test_a_perfect_reconstruction_has_no_psnr():
    frames = np.zeros((2, 3, 4, 3), dtype=np.uint8)
    error = Error()
    error.add(frames, frames)
    assert error.psnr_db is None


def test_a_model_lends_its_tokenizer(run, model, video, out):
    assert run("reconstruct", model, video, out / "x.gif", "--max-frames", 2, "--json").report["frames"] == 2


def test_many_chunks_and_tiles_keep_the_order_of_frames(run, tokenizer, out, monkeypatch):
    ramp = np.arange(0, 230, 10, dtype=np.uint8)  # 23 frames, each of one grey
    write_video(out / "ramp.gif", np.broadcast_to(ramp[:, None, None, None], (23, 36, 20, 3)), 10)
    blocks = []
    original = tiling.encode_decode_stream

    def watched(*args, **kwargs):
        for before, after in original(*args, **kwargs):
            blocks.append(before)
            yield before, after

    monkeypatch.setattr(tiling, "encode_decode_stream", watched)
    run("reconstruct", tokenizer, out / "ramp.gif", out / "x.gif", "--tile", 32, "--chunk", 8)
    np.testing.assert_array_equal(np.concatenate(blocks)[:, 0, 0, 0], ramp)
    assert len(blocks) > 3


@pytest.fixture
def lossless(monkeypatch):
    """Put the frames through unchanged, so that large real videos take no time."""

    def unchanged(tokenizer, frames, *_):
        for frame in frames:
            yield frame[None], frame[None]

    monkeypatch.setattr(tiling, "encode_decode_stream", unchanged)


def test_a_real_video_of_odd_size_keeps_it(run, tokenizer, clips_dir, out, lossless):
    report = run("reconstruct", tokenizer, clips_dir / "bear_vp9_odd_size.webm", out / "x.webm", "--json").report
    assert (report["frames"], report["height"], report["width"]) == (30, 121, 161)
    assert report["fps"] == pytest.approx(29.97) and report["psnr_db"] is None
    assert read_video(out / "x.webm").frames.shape == (30, 121, 161, 3)


# upright size, frames and rate; the odd size has a test of its own
REAL_VIDEOS = {
    "street_bikes_h264.mp4": (250, 272, 640, 25),
    "carphone_talking_h264_sar.mp4": (120, 144, 176, 29.97),
    "pancake_handheld_h264.mkv": (310, 240, 426, 30),
    "ucf_eye_makeup_mpeg4.avi": (164, 240, 320, 25),
    "bunny_animation_vp9.webm": (300, 180, 320, 30),
    "sketch_rot90_h264.mp4": (23, 352, 288, 29.85),
    "bracelet_rot270_hevc10_hdr.mp4": (9, 1920, 1080, 30),
    "talking_head_av1.mp4": (30, 720, 1080, 29.97),
    "two_people_vfr_h264.mp4": (72, 1080, 1920, 28.05),
    "nasa_two_video_streams.mp4": (325, 180, 320, 25),
    "truncated_midstream_h264.mkv": (54, 240, 426, 30),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL_VIDEOS)
def test_a_real_video_keeps_frames_size_and_rate(run, tokenizer, clips_dir, out, lossless, name):
    report = run("reconstruct", tokenizer, clips_dir / name, out / "x.mp4", "--json").report
    frames, height, width, fps = REAL_VIDEOS[name]
    assert (report["frames"], report["height"], report["width"]) == (frames, height, width)
    written = read_video(out / "x.mp4")
    assert written.frames.shape == (frames, height, width, 3)
    assert written.fps == pytest.approx(fps, abs=0.01)


def test_a_real_video_with_a_damaged_tail_gives_its_frames_and_one_warning(run, tokenizer, clips_dir, out, lossless):
    done = run("reconstruct", tokenizer, clips_dir / "corrupted_tail_h264.mp4", out / "x.mp4", "--json")
    assert done.report["frames"] == 28 and len(done.report["warnings"]) == 1
    assert done.err.count("mutoscope: warning:") == 1 and len(read_video(out / "x.mp4")) == 28


def test_an_upright_phone_video_stays_upright(run, tokenizer, clips_dir, out, lossless):
    report = run("reconstruct", tokenizer, clips_dir / "sketch_rot90_h264.mp4", out / "x.mp4", "--json").report
    assert (report["height"], report["width"]) == (352, 288)


# ------------------------------------------------------------------------------------------------------ bad input


def damaged_tail(video, path):
    """The video with its last third overwritten."""
    data = bytearray(video.read_bytes())
    keep = 2 * len(data) // 3
    data[keep:] = bytes(len(data) - keep)
    path.write_bytes(data)
    return path


def test_a_missing_file_is_told(run, tokenizer, out):
    assert "nowhere.mp4" in run("reconstruct", tokenizer, out / "nowhere.mp4", out / "x.mp4").error
    assert os.listdir(out) == []


def test_a_file_that_is_no_video_is_told(run, tokenizer, out):
    (out / "text.mp4").write_text("not a video")
    assert "text.mp4" in run("reconstruct", tokenizer, out / "text.mp4", out / "x.mp4").error
    assert os.listdir(out) == ["text.mp4"]


def test_an_empty_file_is_told(run, tokenizer, out):
    (out / "empty.mp4").touch()
    assert "empty" in run("reconstruct", tokenizer, out / "empty.mp4", out / "x.mp4").error


def test_a_video_without_a_decodable_frame_is_told(run, tokenizer, clips_dir, out):
    assert "no frame" in run("reconstruct", tokenizer, clips_dir / "invalid_vp9.webm", out / "x.mp4").error
    assert os.listdir(out) == []


def test_a_damaged_tail_gives_the_frames_before_it_and_one_warning(run, tokenizer, out):
    frames = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    write_video(out / "whole.mp4", frames, 10)
    damaged = damaged_tail(out / "whole.mp4", out / "damaged.mp4")
    done = run("reconstruct", tokenizer, damaged, out / "x.gif", "--json")
    report = done.report
    assert 0 < report["frames"] < 12 and len(report["warnings"]) == 1 and done.err.count("warning") == 1
    assert len(read_video(out / "x.gif")) == report["frames"]


def test_a_folder_is_no_input_file(run, tokenizer, out):
    assert "folder" in run("reconstruct", tokenizer, out, out / "x.mp4").error


def test_input_and_output_must_differ(run, tokenizer, video, out):
    copy = out / "copy.webm"
    copy.write_bytes(video.read_bytes())
    assert "same file" in run("reconstruct", tokenizer, copy, copy).error
    assert copy.read_bytes() == video.read_bytes()


def test_a_contact_sheet_is_no_output_of_a_long_video(run, tokenizer, video, out):
    assert "'.png'" in run("reconstruct", tokenizer, video, out / "x.png").error


def test_an_unknown_model_is_told(run, video, out):
    assert "Unknown model" in run("reconstruct", "vq-shape", video, out / "x.mp4").error
    assert os.listdir(out) == []


@pytest.mark.parametrize("option", ["--tile", "--chunk", "--max-frames"])
def test_windows_of_no_size_are_refused(run, tokenizer, video, out, option):
    assert option in run("reconstruct", tokenizer, video, out / "x.gif", option, 0).error


def test_an_interruption_leaves_nothing(run, tokenizer, video, out, monkeypatch):
    def interrupted(*_, **__):
        yield np.zeros((1, 13, 11, 3), np.uint8), np.zeros((1, 13, 11, 3), np.uint8)
        raise KeyboardInterrupt

    monkeypatch.setattr(tiling, "encode_decode_stream", interrupted)
    assert run("reconstruct", tokenizer, video, out / "x.mp4").status == 130
    assert os.listdir(out) == []


def test_pixels_that_are_not_finite_are_one_sentence_and_no_file(run, video, out, tmp_path):
    tokenizer = save_tiny_tokenizer(tmp_path / "damaged")
    path = tokenizer / "tokenizer" / "model.safetensors"
    weights = load_file(path)
    last = max(name for name in weights if name.startswith("decoder") and weights[name].ndim == 5)
    save_file(weights | {last: torch.full_like(weights[last], 3e38, dtype=torch.float32)}, path)
    done = run("reconstruct", tokenizer, video, out / "x.mp4")
    assert done.status == 2 and "The pixels of the tokenizer's decoder hold" in done.error
    assert not list(out.iterdir())
