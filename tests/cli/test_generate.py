"""mutoscope generate: files, JSON, and what is refused before anything is written."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mutoscope.data.video import write as video_write
from mutoscope.data.video.read import read_video
from mutoscope.extension import wider
from mutoscope.hub import save_pretrained
from mutoscope.pipeline import VideoPipeline
from mutoscope.sampling.tasks import TASKS
from tiny_models import MODEL, tiny_index, tiny_model, tiny_tokenizer

KEYS = {
    "model", "mode", "outputs", "frames", "height", "width", "fps", "seed", "num_decoding_steps", "seconds",
    "seconds_first_frame", "frames_per_second", "frames_per_second_with_decoding", "peak_memory_bytes",
}  # fmt: skip


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif"])
def test_a_clip_is_written_and_described(run, model, out, suffix):
    path = out / f"clip{suffix}"
    report = run("generate", model, "--out", path, "--class-label", "circle-orbit", "--seed", 3, "--json").report
    assert report.keys() >= KEYS
    assert report["outputs"] == [str(path)] and report["mode"] == "class-conditional" and report["class_labels"] == [1]
    written = read_video(path)
    assert written.frames.shape == (report["frames"], report["height"], report["width"], 3) == (8, 8, 8, 3)
    assert report["seed"] == 3 and report["fps"] == 4 and report["num_decoding_steps"] == 3
    assert written.fps == pytest.approx(4, rel=0.01)


def test_the_file_holds_what_the_pipeline_gives(run, model, out):
    run("generate", model, "--out", out / "a.gif", "--class-label", 2, "--seed", 9)
    expected = VideoPipeline.from_pretrained(model)(class_label=2, seed=9)
    np.testing.assert_array_equal(read_video(out / "a.gif").frames, expected.frames)


def test_without_json_a_person_reads_a_summary(run, model, out):
    done = run("generate", model, "--out", out / "a.gif")
    assert done.status == 0 and str(out / "a.gif") in done.out and "frames/s" in done.out


def test_several_samples_are_numbered(run, model, out):
    report = run("generate", model, "--out", out / "x.gif", "--num-samples", 3, "--json").report
    assert report["outputs"] == [str(out / f"x-{i}.gif") for i in range(3)]
    assert sorted(os.listdir(out)) == ["x-0.gif", "x-1.gif", "x-2.gif"]


def test_a_contact_sheet_has_a_row_per_sample(run, model, out):
    report = run("generate", model, "--out", out / "x.png", "--num-samples", 3, "--upscale", 2, "--json").report
    with Image.open(out / "x.png") as sheet:
        assert (report["height"], report["width"]) == (sheet.height, sheet.width)
        assert sheet.height >= 3 * 16 and sheet.width >= 8 * 16
    assert report["outputs"] == [str(out / "x.png")]


def test_upscaling_repeats_pixels_and_is_reported(run, model, out):
    report = run("generate", model, "--out", out / "x.gif", "--upscale", 3, "--json").report
    frames = read_video(out / "x.gif").frames
    assert (report["height"], report["width"]) == (24, 24) == frames.shape[1:3]
    np.testing.assert_array_equal(frames, frames[:, ::3, ::3].repeat(3, axis=1).repeat(3, axis=2))


def test_a_video_or_an_image_is_a_context(run, model, video, out):
    Image.new("RGB", (20, 10), (255, 0, 0)).save(out / "red.png")
    for context in (video, out / "red.png"):
        report = run("generate", model, "--out", out / "x.gif", "--context", context, "--json").report
        assert report["mode"] == "frame-prediction" and report["frames"] == 8


def test_the_first_frames_of_a_context_are_given(run, model, video, out):
    run("generate", model, "--out", out / "x.gif", "--context", video, "--context-frames", 3)
    expected = VideoPipeline.from_pretrained(model)(context=read_video(video).frames[:3])
    np.testing.assert_array_equal(read_video(out / "x.gif").frames, expected.frames)


def test_a_task_completes_a_video(run, model, video, out):
    task = ("--task", "frame-prediction", "--video", video)
    assert run("generate", model, "--out", out / "x.gif", *task, "--json").report["mode"] == "frame-prediction"


def test_a_rate_of_ones_own(run, model, out):
    assert run("generate", model, "--out", out / "x.webm", "--fps", 12.5, "--json").report["fps"] == 12.5
    assert read_video(out / "x.webm").fps == pytest.approx(12.5)


def test_a_missing_folder_is_made(run, model, out):
    assert run("generate", model, "--out", out / "a" / "b" / "x.gif").status == 0
    assert (out / "a" / "b" / "x.gif").exists()


# ------------------------------------------------------------------------------------------------------ bad input

REFUSED = {
    "no output": ([], "--out"),
    "a format nobody knows": (["--out", "x.avi"], "'.avi'"),
    "no suffix": (["--out", "x"], "no suffix"),
    "a class of another name": (["--out", "x.gif", "--class-label", "square-spi"], "did you mean 'square-spin'"),
    "a class out of range": (["--out", "x.gif", "--class-label", "3"], "from 0 to 2"),
    "no samples": (["--out", "x.gif", "--num-samples", "0"], "--num-samples"),
    "no steps": (["--out", "x.gif", "--num-decoding-steps", "0"], "--num-decoding-steps"),
    "more steps than tokens": (["--out", "x.gif", "--num-decoding-steps", "65"], "64 tokens"),
    "a negative temperature": (["--out", "x.gif", "--temperature", "-1"], "--temperature"),
    "a temperature that is no number": (["--out", "x.gif", "--temperature", "nan"], "--temperature"),
    "a negative guidance scale": (["--out", "x.gif", "--guidance-scale", "-0.5"], "--guidance-scale"),
    "no rate": (["--out", "x.gif", "--fps", "0"], "--fps"),
    "an infinite rate": (["--out", "x.gif", "--fps", "inf"], "--fps"),
    "a negative seed": (["--out", "x.gif", "--seed", "-1"], "--seed"),
    "a seed beyond 64 bits": (["--out", "x.gif", "--seed", str(2**64)], "--seed"),
    "a seed that is no number": (["--out", "x.gif", "--seed", "many"], "'many'"),
    "a shorter length": (["--out", "x.gif", "--num-frames", "6"], "use 8"),
    "longer and wider": (["--out", "x.gif", "--num-frames", "24", "--panorama", "1"], "outpaint-vertical"),
    "no upscaling at all": (["--out", "x.gif", "--upscale", "0"], "--upscale"),
    "a device nobody has": (["--out", "x.gif", "--device", "abacus"], "abacus"),
    "a number format nobody has": (["--out", "x.gif", "--dtype", "int3"], "int3"),
    "half precision without a GPU": (["--out", "x.gif", "--dtype", "float16"], "float16"),
    "an option nobody has": (["--out", "x.gif", "--num-sample", "2"], "--num-sample"),
    "a prompt": (["--out", "x.gif", "--prompt", "a circle"], "takes no --prompt"),
    "actions": (["--out", "x.gif", "--actions", "a.json"], "takes no --actions"),
    "diffusion steps": (["--out", "x.gif", "--num-diffusion-steps", "3"], "diffusion"),
    "a context that is missing": (["--out", "x.gif", "--context", "nowhere.mp4"], "nowhere.mp4"),
    "a task that is not known": (["--out", "x.gif", "--task", "frame-predicton"], "'frame-prediction'"),
    "a task without its video": (["--out", "x.gif", "--task", "frame-prediction"], "needs a video"),
    "a task it was not trained for": (["--out", "x.gif", "--task", "inpaint-central"], "not trained"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_input_is_refused_in_one_line_and_nothing_is_written(run, model, out, monkeypatch, options, message):
    monkeypatch.chdir(out)
    assert message in run("generate", model, *options, "--json").error
    assert os.listdir(out) == []


def test_an_unknown_model_names_the_nearest(run, out, models, monkeypatch):
    monkeypatch.setattr("mutoscope.hub.ZOO", models)
    assert "did you mean 'tokenizer'" in run("generate", "tokeniser", "--out", out / "x.gif").error


def test_a_tokenizer_does_not_generate(run, tokenizer, out):
    assert "tokenizer only" in run("generate", tokenizer, "--out", out / "x.gif").error


def test_a_context_that_is_no_video_is_refused(run, model, out):
    (out / "text.mp4").write_text("not a video")
    assert "text.mp4" in run("generate", model, "--out", out / "x.gif", "--context", out / "text.mp4").error


def test_a_place_that_cannot_be_written_is_told_before_the_model_is_loaded(run, out):
    (out / "file").write_text("x")
    assert "Cannot write" in run("generate", "no-such-model", "--out", out / "file" / "x.gif").error


def test_a_folder_is_no_output_file(run, model, out):
    (out / "x.gif").mkdir()
    assert "is a folder" in run("generate", model, "--out", out / "x.gif").error


def test_a_full_disk_leaves_no_half_of_a_file(run, model, out, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(video_write.os, "replace", full)
    done = run("generate", model, "--out", out / "x.gif")
    assert done.status == 2 and "No space left" in done.err and os.listdir(out) == []


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".png"])
def test_an_interrupted_write_keeps_the_older_file(run, model, out, monkeypatch, suffix):
    path = out / f"x{suffix}"
    path.write_text("older")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(video_write.os, "replace", interrupt)
    done = run("generate", model, "--out", path)
    assert done.status == 130 and "interrupted" in done.err
    assert path.read_text() == "older" and os.listdir(out) == [path.name]


def test_a_damaged_model_is_told(run, models, out, tmp_path: Path):
    import shutil

    broken = shutil.copytree(models / "model", tmp_path / "broken")
    (broken / "model" / "model.safetensors").write_bytes(b"x" * 100)
    assert "damaged" in run("generate", broken, "--out", out / "x.gif").error


@pytest.fixture(scope="module")
def ten_tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "ten"
    return save_pretrained(folder, tiny_index(tasks=TASKS), tiny_tokenizer(), tiny_model(replace(MODEL, tasks=TASKS)))


def test_a_longer_clip_is_continued_round_after_round(run, ten_tasks, out):
    report = run("generate", ten_tasks, "--out", out / "x.gif", "--num-frames", 21, "--num-samples", 2, "--json").report
    clips = [read_video(out / f"x-{i}.gif").frames for i in range(2)]
    assert report["frames"] == 21 and [clip.shape for clip in clips] == [(21, 8, 8, 3)] * 2
    first = VideoPipeline.from_pretrained(ten_tasks)(num_samples=2)
    np.testing.assert_array_equal(clips[1][:8], first[1].frames)
    assert not np.array_equal(clips[0], clips[1])


def test_a_panorama_is_as_wide_as_asked_for_and_keeps_the_pasted_middle(run, ten_tasks, video, out):
    options = ("--task", "outpaint-vertical", "--video", video, "--panorama", 2, "--paste-given")
    report = run("generate", ten_tasks, "--out", out / "wide.gif", *options, "--json").report
    frames = read_video(out / "wide.gif").frames
    assert (report["height"], report["width"]) == (8, 16) == frames.shape[1:3]
    source = read_video(video).frames
    middle = VideoPipeline.from_pretrained(ten_tasks)(task="outpaint-vertical", task_video=source, paste_given=True)
    np.testing.assert_array_equal(frames[:, :, 4:12], middle.frames)


def test_given_pixels_are_blended_in_by_models_that_complete_videos(run, ten_tasks, video, out):
    options = ("--task", "outpaint-vertical", "--video", video, "--blend-given", "yes")
    run("generate", ten_tasks, "--out", out / "blended.gif", *options)
    pipeline, source = VideoPipeline.from_pretrained(ten_tasks), read_video(video).frames
    expected = pipeline(task="outpaint-vertical", task_video=source, blend_given=True)
    np.testing.assert_array_equal(read_video(out / "blended.gif").frames, expected.frames)
    error = run("generate", "magi-shapes", "--out", out / "x.gif", "--blend-given", "no").error
    assert "takes no --blend-given" in error


def test_every_round_of_a_panorama_blends_or_does_not_as_asked(run, ten_tasks, video, out):
    pipeline, source = VideoPipeline.from_pretrained(ten_tasks), read_video(video).frames
    wide = {}
    for says in ("yes", "no"):
        options = ("--task", "outpaint-vertical", "--video", video, "--panorama", 1, "--blend-given", says)
        run("generate", ten_tasks, "--out", out / "wide.gif", *options)
        first = pipeline(task="outpaint-vertical", task_video=source, blend_given=says == "yes").frames
        wide[says] = wider(pipeline, first, 1, seed=1, blend_given=says == "yes")
        np.testing.assert_array_equal(read_video(out / "wide.gif").frames, wide[says])
    assert not np.array_equal(wide["yes"][:, :, :4], wide["no"][:, :, :4])


def test_whether_a_class_is_drawn_can_be_said(run, ten_tasks, video, out):
    options = ("--context", video, "--seed", 1)
    for says in ("no", "yes"):
        run("generate", "magvit-shapes", "--out", out / f"{says}.gif", *options, "--draw-class", says)
    source = read_video(video).frames[:1]
    expected = VideoPipeline.from_pretrained("magvit-shapes")(context=source, draw_class=False, seed=1)
    no, yes = (np.abs(read_video(out / f"{says}.gif").frames - 1.0 * expected.frames).mean() for says in ("no", "yes"))
    assert no < 4 < yes  # a GIF has few colours
    error = run("generate", ten_tasks, "--out", out / "x.gif", *options, "--draw-class", "yes").error
    assert "was not trained to draw a class" in error


def test_longer_and_wider_at_once_is_refused(run, ten_tasks, out):
    options = ("--num-frames", 20, "--panorama", 1)
    assert "not both" in run("generate", ten_tasks, "--out", out / "x.gif", *options).error
    assert not list(out.iterdir())
