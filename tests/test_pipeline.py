"""The pipeline: every kind of call, what is refused and why, seeds, timings, streaming, saving."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mutoscope import hub
from mutoscope.data.fit import fit_frames
from mutoscope.data.video.read import VideoClip
from mutoscope.errors import UserError
from mutoscope.families.base import find_class
from mutoscope.families.magvit import MagvitRequest
from mutoscope.layers.packed import PackedLinear
from mutoscope.pipeline import VideoPipeline, peak_memory_bytes
from mutoscope.sampling.base import SampleEvent
from mutoscope.sampling.tasks import TASKS, condition_video
from tiny_models import CLASS_NAMES, MODEL, save_tiny_model, tiny_index, tiny_model, tiny_tokenizer

DRAWING = {"num_decoding_steps": 3, "draw_class": True}


@pytest.fixture(scope="module")
def pipeline() -> VideoPipeline:
    return VideoPipeline(tiny_tokenizer(), tiny_model(), tiny_index())


@pytest.fixture(scope="module")
def ten_tasks() -> VideoPipeline:
    model = tiny_model(replace(MODEL, tasks=TASKS))
    return VideoPipeline(tiny_tokenizer(), model, tiny_index(tasks=TASKS))


def noise(frames: int, height: int = 8, width: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def test_a_class_label_gives_a_clip_of_the_models_size_and_rate(pipeline: VideoPipeline) -> None:
    clip = pipeline(class_label="circle-orbit")
    assert isinstance(clip, VideoClip)
    assert clip.frames.shape == (8, 8, 8, 3) and clip.frames.dtype == np.uint8 and clip.fps == 4


def test_several_samples_give_a_list_of_different_clips(pipeline: VideoPipeline) -> None:
    clips = pipeline(class_label=0, num_samples=3)
    assert len(clips) == 3
    assert not np.array_equal(clips[0].frames, clips[1].frames)


def test_equal_seeds_give_equal_clips_and_others_do_not(pipeline: VideoPipeline) -> None:
    first, again, other = (pipeline(class_label=0, seed=seed).frames for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_global_generator_neither_matters_nor_moves(pipeline: VideoPipeline) -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = pipeline(class_label=0).frames
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    np.testing.assert_array_equal(first, pipeline(class_label=0).frames)


def test_without_a_label_every_sample_draws_a_class(pipeline: VideoPipeline) -> None:
    labels = pipeline.prepare(num_samples=50).labels
    assert labels is not None and set(labels.tolist()) == {0, 1, 2}


def test_a_class_by_name_equals_the_class_by_index(pipeline: VideoPipeline) -> None:
    for label in ("circle-orbit", "Circle-Orbit", "1"):
        np.testing.assert_array_equal(pipeline(class_label=label).frames, pipeline(class_label=1).frames)


def test_a_context_of_any_size_starts_a_prediction(pipeline: VideoPipeline) -> None:
    request: Any = pipeline.prepare(context=noise(1, 31, 17))
    assert request.task == "frame-prediction" and request.context_frames == 1
    assert pipeline(context=noise(1, 31, 17)).frames.shape == (8, 8, 8, 3)


def test_all_frames_of_a_context_are_given_unless_fewer_are_asked_for(pipeline: VideoPipeline) -> None:
    requests: list[Any] = [pipeline.prepare(context=noise(3), context_frames=count) for count in (None, 2)]
    assert [request.context_frames for request in requests] == [3, 2]


def test_what_follows_the_context_is_not_looked_at(ten_tasks: VideoPipeline) -> None:
    video = noise(8)
    changed = video.copy()
    changed[1:] = 0
    task = "frame-prediction"
    first = ten_tasks(task=task, task_video=video).frames
    np.testing.assert_array_equal(first, ten_tasks(task=task, task_video=changed).frames)
    assert not np.array_equal(first, ten_tasks(task=task, task_video=255 - video).frames)


@pytest.mark.parametrize("task", TASKS)
def test_each_of_the_ten_tasks_completes_a_video(ten_tasks: VideoPipeline, task: str) -> None:
    given = {} if task == "class-conditional" else {"task_video": noise(9, 10, 12)}
    options: dict[str, object] = {"task": task, **given}
    assert ten_tasks.generate(ten_tasks.family.build_call(options)).clips[0].frames.shape == (8, 8, 8, 3)


def test_a_task_shows_the_tokens_of_its_condition_video_to_the_sampler(
    ten_tasks: VideoPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = {}
    logits = ten_tasks.model.logits

    def watch(tokens: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        shown.setdefault("tokens", tokens[0])
        return logits(tokens, *args, **kwargs)

    monkeypatch.setattr(ten_tasks.model, "logits", watch)
    video = noise(8)
    ten_tasks(task="outpaint-central", task_video=video)
    tokenizer = ten_tasks.tokenizer
    condition = condition_video("outpaint-central", tokenizer.from_uint8(torch.from_numpy(video)[None]))
    expected = tokenizer.encode(condition)[0, :, 1:3, 1:3]
    assert torch.equal(shown["tokens"][:, 1:3, 1:3], expected)
    assert (shown["tokens"][:, 0] < 0).all()


def test_a_region_decides_which_pixels_are_pasted_back(ten_tasks: VideoPipeline) -> None:
    video = noise(8)  # 8x8 pixels

    def repaired(region: object) -> np.ndarray:
        options = {"task": "inpaint-central", "task_video": video, "paste_given": True, "region": region}
        return ten_tasks.generate(ten_tasks.family.build_call(options)).clips[0].frames

    frames = repaired((0.0, 0.0, 0.5, 0.5))
    np.testing.assert_array_equal(frames[:, 4:], video[:, 4:])
    np.testing.assert_array_equal(frames[:, :, 4:], video[:, :, 4:])
    assert (frames[:, :4, :4] != video[:, :4, :4]).any()
    np.testing.assert_array_equal(repaired([0.25, 0.25, 0.75, 0.75]), repaired(None))


def test_a_region_of_a_task_that_shows_whole_frames_is_refused(ten_tasks: VideoPipeline) -> None:
    with pytest.raises(UserError, match="whole frames"):
        ten_tasks(task="frame-prediction", context=noise(1), region=(0, 0, 1, 1))
    with pytest.raises(UserError, match="four numbers"):
        ten_tasks(task="inpaint-central", task_video=noise(8), region="all")


def test_samples_beyond_a_batch_are_made_in_rounds(pipeline: VideoPipeline) -> None:
    events: list[SampleEvent] = []
    result = pipeline.generate(class_label=0, num_samples=5, batch_size=2, on_step=events.append)
    assert len(result.clips) == 5
    assert [len(event.decided) for event in events if event.is_last] == [2, 2, 1]


def test_a_stream_gives_the_frames_of_the_call(pipeline: VideoPipeline) -> None:
    frames = np.stack(list(pipeline.stream(class_label=0, seed=3)))
    np.testing.assert_array_equal(frames, pipeline(class_label=0, seed=3).frames)


def test_times_are_ordered_and_frames_per_second_follow(pipeline: VideoPipeline) -> None:
    result = pipeline.generate(class_label=0, num_samples=2)
    assert 0 < result.seconds_sampling < result.seconds
    assert 0 < result.seconds_first_frame <= result.seconds
    assert result.frames_per_second == pytest.approx(16 / result.seconds_sampling)
    assert result.frames_per_second_with_decoding == pytest.approx(16 / result.seconds)


def test_sampler_options_win_over_the_models_defaults(pipeline: VideoPipeline) -> None:
    assert pipeline.prepare(class_label=0).sampling["num_decoding_steps"] == 3
    request = pipeline.prepare(class_label=0, num_decoding_steps=7, temperature=0.5)
    assert request.sampling["num_decoding_steps"] == 7 and request.sampling["temperature"] == 0.5


REFUSED = {
    "a name like none": ({"class_label": "circle-orbt"}, "did you mean 'circle-orbit'"),
    "a label too large": ({"class_label": 3}, "from 0 to 2"),
    "a negative label": ({"class_label": "-1"}, "from 0 to 2"),
    "a prompt": ({"prompt": "a red circle"}, "no prompt"),
    "actions": ({"actions": np.zeros((8, 2))}, "no actions"),
    "another length": ({"num_frames": 9}, "use 8"),
    "no samples": ({"num_samples": 0}, "at least 1"),
    "a negative seed": ({"seed": -1}, "seed"),
    "a seed beyond 64 bits": ({"seed": 2**64}, "seed"),
    "an unknown task": ({"task": "frame-predict"}, "did you mean 'frame-prediction'"),
    "an untrained task": ({"task": "inpaint-central", "task_video": noise(8)}, "not trained for"),
    "a context and an untrained combination": ({"class_label": 0, "context": noise(1)}, "not trained for"),
    "a video without a task": ({"task_video": noise(8)}, "needs a task"),
    "a task without its video": ({"task": "frame-prediction"}, "needs a video"),
    "a context and a video": ({"task": "frame-prediction", "context": noise(1), "task_video": noise(8)}, "not both"),
    "a label for a task without classes": ({"task": "frame-prediction", "class_label": 0}, "takes no class label"),
    "frames for a task without them": ({"task": "class-conditional", "context": noise(1)}, "takes no frames"),
    "as many context frames as the clip has": ({"context": noise(8)}, "between 1 and 7"),
    "no context frames": ({"context": noise(2), "context_frames": 0}, "between 1 and 7"),
    "more context frames than the context has": ({"context": noise(2), "context_frames": 3}, "found 2"),
    "an option of no sampler": ({"num_decoding_step": 3}, "'num_decoding_steps'"),
    "no steps": ({"num_decoding_steps": 0}, "num_decoding_steps"),
    "more steps than tokens": ({"num_decoding_steps": 65}, "64 tokens"),
    "a negative temperature": ({"temperature": -0.1}, "at least 0"),
    "a class drawn by a model that names none": ({"draw_class": True}, "not trained to draw a class"),
    "an infinite guidance scale": ({"guidance_scale": float("inf")}, "finite"),
    "a negative guidance scale": ({"guidance_scale": -1.0}, "at least 0"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused(pipeline: VideoPipeline, options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        pipeline.prepare(**options)


def test_a_model_that_names_classes_draws_one_for_frame_prediction() -> None:
    model = tiny_model(replace(MODEL, tasks=TASKS, class_loss=0.5))
    pipeline = VideoPipeline(tiny_tokenizer(), model, tiny_index(tasks=TASKS))
    plain, drawn = (pipeline(context=noise(1), seed=3, draw_class=draws) for draws in (False, True))
    assert not np.array_equal(drawn.frames, plain.frames)
    by_default = VideoPipeline(tiny_tokenizer(), model, tiny_index(tasks=TASKS, sampling=DRAWING))
    np.testing.assert_array_equal(by_default(context=noise(1), seed=3).frames, drawn.frames)


def test_a_task_may_have_defaults_of_its_own() -> None:
    own = {"inpaint-central": {"guidance_scale": 2.0}}
    sampling = {"num_decoding_steps": 3, "guidance_scale": 4.0}
    index = tiny_index(tasks=TASKS, sampling=sampling, task_sampling=own)
    pipeline = VideoPipeline(tiny_tokenizer(), tiny_model(replace(MODEL, tasks=TASKS)), index)
    inpaint = pipeline.prepare(task="inpaint-central", task_video=noise(8)).sampling
    outpaint = pipeline.prepare(task="outpaint-central", task_video=noise(8)).sampling
    assert (inpaint["guidance_scale"], outpaint["guidance_scale"]) == (2.0, 4.0)
    assert inpaint["num_decoding_steps"] == 3
    requested = pipeline.prepare(task="inpaint-central", task_video=noise(8), guidance_scale=1.5)
    assert requested.sampling["guidance_scale"] == 1.5


def test_a_default_that_a_model_cannot_follow_does_not_stop_it() -> None:
    pipeline = VideoPipeline(tiny_tokenizer(), tiny_model(), tiny_index(sampling=DRAWING))
    assert not pipeline.prepare(context=noise(1)).sampling["draw_class"]


def test_a_short_video_cannot_be_completed(ten_tasks: VideoPipeline) -> None:
    with pytest.raises(UserError, match="8 frames of video are needed, found 7"):
        ten_tasks.prepare(task="inpaint-dynamic", task_video=noise(7))


def test_a_context_cannot_take_the_place_of_a_video(ten_tasks: VideoPipeline) -> None:
    with pytest.raises(UserError, match="whole video"):
        ten_tasks.prepare(task="inpaint-dynamic", context=noise(8))


def test_a_tokenizer_alone_reconstructs_and_does_not_generate() -> None:
    pipeline = VideoPipeline(tiny_tokenizer(), None, tiny_index())
    with pytest.raises(UserError, match="tokenizer only"):
        pipeline(class_label=0)
    assert pipeline.reconstruct(noise(5, 9, 11)).frames.shape == (5, 9, 11, 3)


def test_a_reconstruction_keeps_size_length_and_rate(pipeline: VideoPipeline) -> None:
    clip = pipeline.reconstruct(VideoClip(noise(3, 13, 7), 12.5))
    assert clip.frames.shape == (3, 13, 7, 3) and clip.fps == 12.5


def test_parts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="do not fit"):
        VideoPipeline(tiny_tokenizer(), tiny_model(), tiny_index(height=16))
    with pytest.raises(UserError, match="codes"):
        VideoPipeline(tiny_tokenizer(), tiny_model(replace(MODEL, codebook_size=17)), tiny_index())


def test_a_saved_pipeline_needs_no_other_folder(tmp_path: Path) -> None:
    pipeline = VideoPipeline.from_pretrained(save_tiny_model(tmp_path / "first"))
    again = VideoPipeline.from_pretrained(pipeline.save_pretrained(tmp_path / "second"))
    assert hub.load_index(tmp_path / "second").tokenizer == "./tokenizer"
    np.testing.assert_array_equal(pipeline(class_label=2).frames, again(class_label=2).frames)


def test_a_model_in_bfloat16_keeps_its_tokenizer_in_float32(tmp_path: Path) -> None:
    pipeline = VideoPipeline.from_pretrained(save_tiny_model(tmp_path / "m"), dtype=torch.bfloat16)
    assert next(pipeline.model.parameters()).dtype == torch.bfloat16
    assert next(pipeline.tokenizer.parameters()).dtype == torch.float32
    assert pipeline(class_label=0).frames.shape == (8, 8, 8, 3)


def test_classes_without_names_go_by_index() -> None:
    assert find_class("1", None, 3) == 1
    with pytest.raises(UserError, match="index from 0 to 2"):
        find_class("circle", None, 3)
    with pytest.raises(UserError, match="no classes"):
        find_class(0, CLASS_NAMES, 0)


def test_names_of_classes_compare_as_they_look() -> None:
    names = ("Größe", "красный круг", "ﬁsh")
    written = ("GRO\u0308SSE", "Красный Круг", "fish")  # as macOS writes file names, in capitals, without ligature
    assert [find_class(name, names, 3) for name in written] == [0, 1, 2]
    assert find_class("+1", names, 3) == 1 and find_class("٢", names, 3) == 2
    for unknown in ("+-1", "²", ""):
        with pytest.raises(UserError, match="Unknown class label"):
            find_class(unknown, names, 3)


@pytest.mark.parametrize("size", [(8, 8), (80, 20), (3, 300), (1, 1)])
def test_frames_of_any_size_are_fitted_to_the_model(size: tuple[int, int]) -> None:
    fitted = fit_frames(np.full((2, *size, 3), 77, dtype=np.uint8), 8, 16)
    assert fitted.shape == (2, 8, 16, 3) and (fitted == 77).all()


def test_fitting_crops_the_middle() -> None:
    frames = np.zeros((1, 8, 24, 3), dtype=np.uint8)
    frames[:, :, 8:16] = 200
    assert (fit_frames(frames, 8, 8) == 200).all()


def test_peak_memory_is_that_of_the_process() -> None:
    assert peak_memory_bytes("cpu") > 50_000_000


def test_lists_stand_for_one_sample_each(ten_tasks: VideoPipeline) -> None:
    videos = [noise(8), noise(8)[::-1].copy(), noise(8)[:, ::-1].copy()]
    clips = ten_tasks(task="inpaint-central", task_video=videos, paste_given=True, batch_size=2)
    assert isinstance(clips, list) and len(clips) == 3
    for clip, video in zip(clips, videos, strict=True):
        np.testing.assert_array_equal(clip.frames[:, 0], video[:, 0])
    first = ten_tasks(task="inpaint-central", task_video=[videos[0]])
    assert isinstance(first, list) and len(first) == 1
    labels = ten_tasks.prepare(class_label=[2, "square-spin"], context=[noise(1), noise(1)]).labels
    assert labels is not None and labels.tolist() == [2, 0]


def test_lists_of_different_lengths_are_refused(ten_tasks: VideoPipeline) -> None:
    with pytest.raises(UserError, match="2 for context"):
        ten_tasks(class_label=[0, 1, 2], context=[noise(1), noise(1)])
    with pytest.raises(UserError, match="num_samples 5"):
        ten_tasks(class_label=[0, 1, 2], num_samples=5)
    with pytest.raises(UserError, match="same length"):
        ten_tasks(context=[noise(1), noise(2)])


def test_the_many_small_steps_of_par_use_rearranged_weights():
    model = VideoPipeline.from_pretrained("par-shapes-4x").model
    assert any(isinstance(module, PackedLinear) for module in model.modules())


def test_a_context_is_one_clip_in_any_form_and_a_list_has_one_clip_per_sample(
    pipeline: VideoPipeline, tmp_path: Path
) -> None:
    frame = noise(1)[0]
    image = Image.fromarray(frame)
    image.save(tmp_path / "first.png")
    expected = pipeline(context=frame[None], seed=1)
    forms = (frame, torch.from_numpy(frame), image, tmp_path / "first.png", str(tmp_path / "first.png"))
    for form in forms:
        np.testing.assert_array_equal(pipeline(context=form, seed=1).frames, expected.frames)
    clips = pipeline(context=[image, frame, [image]], seed=1)
    assert isinstance(clips, list) and len(clips) == 3
    with pytest.raises(UserError, match="context must hold uint8 values"):
        pipeline(context=frame / 255)


def test_a_file_gives_as_many_context_frames_as_training_had(pipeline: VideoPipeline, tmp_path: Path) -> None:
    VideoClip(noise(6), 4).save(tmp_path / "clip.mp4")
    request = pipeline.prepare(context=tmp_path / "clip.mp4")
    assert isinstance(request, MagvitRequest) and request.context_frames == 1
    chosen = pipeline.prepare(context=tmp_path / "clip.mp4", context_frames=3)
    assert isinstance(chosen, MagvitRequest) and chosen.context_frames == 3


def test_a_file_is_reconstructed_at_its_own_rate(pipeline: VideoPipeline, tmp_path: Path) -> None:
    VideoClip(noise(6, 12, 16), 5).save(tmp_path / "clip.mp4")
    clip = pipeline.reconstruct(tmp_path / "clip.mp4")
    assert clip.frames.shape == (6, 12, 16, 3) and clip.fps == pytest.approx(5)
    assert pipeline.reconstruct(list(noise(4))).fps == 4


def test_representations_say_what_there_is_in_one_line(pipeline: VideoPipeline, tmp_path: Path) -> None:
    assert repr(pipeline) == "VideoPipeline(MAGVIT, 8 frames of 8×8, 4 fps, cpu)"
    generation = pipeline.generate(class_label=0, num_samples=2)
    assert repr(generation).startswith("Generation(class-conditional, seed 0, ")
    assert repr(generation).count("VideoClip(8 frames of 8×8, 4 fps, 2 s)") == 2 and "\n" not in repr(generation)
    folder = hub.open_folder(save_tiny_model(tmp_path / "model"))
    assert repr(folder) == f"ModelFolder('{tmp_path / 'model'}', magvit, 8 frames of 8×8, 4 fps)"
