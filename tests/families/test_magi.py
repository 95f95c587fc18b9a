"""MAGI through the pipeline: what may be asked for, streams, changes on the way."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from mutoscope.actions import ActionSpec
from mutoscope.errors import UserError
from mutoscope.hub import load_index, save_pretrained, write_json
from mutoscope.pipeline import VideoPipeline, VideoStream
from mutoscope.text import TextFeatures, load_text_encoder
from mutoscope.text.words import word_config
from tiny_magi import tiny_index, tiny_magi, tiny_vae

HEIGHT, WIDTH = 8, 12


@pytest.fixture(scope="module")
def pipeline() -> VideoPipeline:
    model = tiny_magi()
    return VideoPipeline(tiny_vae(), model, tiny_index(model))


def noise(frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, HEIGHT, WIDTH, 3), dtype=np.uint8)


def test_clips_of_any_length_behind_the_length_of_training(pipeline: VideoPipeline):
    assert pipeline(class_label="circle").frames.shape == (5, HEIGHT, WIDTH, 3)
    long = pipeline(class_label="circle", num_frames=11).frames
    assert len(long) == 11
    np.testing.assert_array_equal(long[:5], pipeline(class_label="circle").frames)


def test_a_saved_model_makes_the_same_clips(pipeline: VideoPipeline, tmp_path: Path):
    model, index = pipeline.model, pipeline.index
    save_pretrained(tmp_path / "m", index, pipeline.tokenizer, model, half=False)
    loaded = VideoPipeline.from_pretrained(tmp_path / "m")
    np.testing.assert_array_equal(loaded(class_label=1).frames, pipeline(class_label=1).frames)


def test_frames_stream_as_they_finish_and_equal_the_call(pipeline: VideoPipeline):
    stream = pipeline.stream(class_label="square", num_frames=8)
    assert isinstance(stream, VideoStream)
    np.testing.assert_array_equal(np.stack(list(stream)), pipeline(class_label="square", num_frames=8).frames)


def test_a_stream_without_an_end_goes_on_like_a_long_clip(pipeline: VideoPipeline):
    frames = list(itertools.islice(pipeline.stream(class_label="square", num_frames=None), 13))
    np.testing.assert_array_equal(np.stack(frames), pipeline(class_label="square", num_frames=13).frames)


def test_a_stream_begins_with_the_context(pipeline: VideoPipeline):
    context = noise(2)
    frames = list(itertools.islice(pipeline.stream(context=context, num_frames=None), 9))
    np.testing.assert_array_equal(np.stack(frames), pipeline(context=context, num_frames=9).frames)


@pytest.mark.parametrize("change", [{"action": (1.0, -1.0)}, {"interval": 9}, {"class_label": "cross"}])
def test_a_change_counts_from_the_next_frame_on(pipeline: VideoPipeline, change: dict):
    steady = pipeline(class_label="square", num_frames=9).frames
    stream, frames = pipeline.stream(class_label="square", num_frames=None), []
    for number in range(9):
        frames.append(next(stream))
        if number == 3:
            stream.change(**change)
    np.testing.assert_array_equal(np.stack(frames[:4]), steady[:4])
    assert not np.array_equal(np.stack(frames[4:]), steady[4:])


def test_actions_of_a_file_and_held_ones_say_the_same(pipeline: VideoPipeline):
    actions = np.tile([[0.5, -0.5]], (8, 1))
    listed = pipeline(class_label=0, actions=actions, num_frames=9, seed=3).frames
    stream = pipeline.stream(class_label=0, num_frames=9, seed=3)
    first = next(stream)
    stream.change(action=(0.5, -0.5))
    np.testing.assert_array_equal(np.stack([first, *stream]), listed)
    assert not np.array_equal(listed[1:], pipeline(class_label=0, num_frames=9, seed=3).frames[1:])


KEYS = ActionSpec(("right", "dx"), "continuous", (0.0, 3.0), (1.0, 2.0), ("max", "sum"))


@pytest.fixture(scope="module")
def named() -> VideoPipeline:
    """The same network, whose second number was scaled in training."""
    model = tiny_magi()
    return VideoPipeline(tiny_vae(), model, tiny_index(model, actions=KEYS))


def test_actions_by_name_are_scaled_to_what_the_network_reads(pipeline: VideoPipeline, named: VideoPipeline):
    read_by_the_network = [[1, -1.5], [1, -1.5], [0, 1.0], [0, -1.5]]
    expected = pipeline(class_label=0, actions=read_by_the_network).frames
    forms = ("right*2 dx=5 .", [{"right": 1}, {"RIG": 1}, {"dx": 5}, {}], [[1, 0], [1, 0], [0, 5], [0, 0]])
    for actions in forms:
        np.testing.assert_array_equal(named(class_label=0, actions=actions).frames, expected)


@pytest.mark.parametrize("action", [{"right": 1, "dx": 5}, {"DX": 5, "ri": True}, "right+dx=5", [1, 5], (1.0, 5.0)])
def test_a_stream_is_steered_by_name(named: VideoPipeline, action: object):
    stream = named.stream(class_label=0, num_frames=5, seed=3)
    first = next(stream)
    stream.change(action=action)
    expected = named(class_label=0, actions="right+dx=5*4", seed=3).frames
    np.testing.assert_array_equal(np.stack([first, *stream]), expected)


def test_an_unknown_action_ends_a_held_one(named: VideoPipeline):
    stream = named.stream(class_label=0, num_frames=5, seed=3)
    frames = [next(stream)]
    for action in ("right", "?", "?", "?"):
        stream.change(action=action)
        frames.append(next(stream))
    np.testing.assert_array_equal(np.stack(frames), named(class_label=0, actions="right ?*3", seed=3).frames)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ({"rihgt": 1}, "no action 'rihgt'. Did you mean 'right'. Known: right, dx"),
        ({"right": 2}, "'right' is a button and must be 0 or 1, found 2"),
        ({"dx": float("inf")}, "'dx' must be a finite number"),
        ([1], "rows of 2 numbers"),
        ("right*3", "3 actions, one is needed"),
    ],
)
def test_wrong_actions_leave_the_stream_as_it_was(named: VideoPipeline, action: object, message: str):
    stream = named.stream(class_label=0, num_frames=5, seed=3)
    frames = [next(stream)]
    with pytest.raises(UserError, match=message):
        stream.change(interval=9, class_label=1, action=action)
    np.testing.assert_array_equal(np.stack([*frames, *stream]), named(class_label=0, seed=3).frames)


@pytest.mark.parametrize(
    ("options", "frames", "warning"),
    [
        ({"actions": "right*8"}, 9, ""),
        ({"actions": "right*2"}, 3, ""),
        ({"actions": "right*2", "context": noise(2)}, 3, ""),
        ({"actions": "right*8", "num_frames": 8}, 8, ""),  # a recording of 8 frames has 8 rows
        ({"actions": "right*8", "num_frames": 7}, 7, "reads 6 actions, found 8"),
        ({}, 5, ""),
    ],
)
def test_a_clip_has_one_frame_more_than_actions(named: VideoPipeline, options: dict, frames: int, warning: str):
    request = named.prepare(**options)
    assert request.num_frames == frames
    assert [warning in text for text in request.warnings] == ([True] if warning else [])


def test_actions_after_the_last_one_of_an_endless_stream_are_unknown(named: VideoPipeline):
    frames = list(itertools.islice(named.stream(class_label=0, actions="right*2", num_frames=None), 5))
    np.testing.assert_array_equal(np.stack(frames), named(class_label=0, actions="right*2 ?*2").frames)


def test_a_model_folder_keeps_names_and_scaling(named: VideoPipeline, tmp_path: Path):
    loaded = VideoPipeline.from_pretrained(named.save_pretrained(tmp_path / "m"))
    assert loaded.index.actions == KEYS


def test_an_index_of_another_number_of_actions_is_refused():
    model = tiny_magi(action_size=3)
    with pytest.raises(UserError, match="names 2 numbers of action, the network reads 3"):
        VideoPipeline(tiny_vae(), model, tiny_index(model, actions=KEYS))


def test_bundled_models_know_the_names_of_their_actions():
    assert load_index("magi-shapes").actions == ActionSpec.plain(("dx", "dy"), "continuous", fps=8)


def test_lists_of_actions_are_one_clip_each(pipeline: VideoPipeline):
    actions = np.random.default_rng(0).uniform(-1, 1, (2, 4, 2))
    clips = pipeline.generate(class_label=[0, 1], actions=list(actions)).clips
    swapped = pipeline.generate(class_label=[0, 1], actions=list(actions[::-1])).clips
    assert len(clips) == 2
    assert not np.array_equal(clips[0].frames, swapped[0].frames)


@pytest.mark.parametrize("condition", [True, False])
def test_guidance_is_away_from_what_is_not_told_actions_only_if_they_were_dropped(condition: bool):
    model = tiny_magi(drop_actions=condition)
    pipeline, actions = VideoPipeline(tiny_vae(), model, tiny_index(model)), np.full((4, 2), 0.7)
    plain, guided = [
        pipeline.generate(context=noise(1), actions=actions, guidance_scale=scale).clips[0].frames.astype(int)
        for scale in (1.0, 3.0)
    ]
    assert (np.abs(guided - plain).max() > 1) == condition


def test_several_batches_and_one_give_the_number_of_clips_requested(pipeline: VideoPipeline):
    clips = pipeline.generate(class_label="circle", num_samples=3, batch_size=2).clips
    assert len(clips) == 3
    assert not np.array_equal(clips[0].frames, clips[1].frames)


@pytest.mark.parametrize(
    ("options", "mode"),
    [
        ({}, "class-conditional"),
        ({"context": noise(1)}, "frame-prediction"),
        ({"context": noise(1), "class_label": 2}, "class-conditional-frame-prediction"),
        ({"actions": np.zeros((4, 2))}, "action-conditional"),
        ({"task": "unconditional"}, "unconditional"),
        ({"task": "frame-prediction", "task_video": noise(5)}, "frame-prediction"),
    ],
)
def test_modes(pipeline: VideoPipeline, options: dict, mode: str):
    request = pipeline.prepare(**options)
    assert request.task == mode
    assert (request.labels is None) == ("class" not in mode)
    assert len(pipeline.run(request).clips[0].frames) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_decoding_steps": 7}, "A frame has 6 tokens"),
        ({"context": noise(5), "num_frames": 9}, "sees 5 at a time"),
        ({"context": noise(3), "num_frames": 3}, "raise num_frames above 3"),
        ({"task": "action-conditional"}, "needs actions"),
        ({"actions": [[0.0, 0.0]] * 3, "num_frames": 5}, "need 4 actions, found 3: give 1 more"),
        ({"actions": [[0.0]] * 4}, "rows of 2 numbers"),
        ({"actions": [["left", "up"]] * 4}, "rows of numbers"),
        ({"interval": 0}, "between 1 and 25"),
        ({"interval": 26}, "between 1 and 25"),
        ({"task": "frame-prediction"}, "needs first frames"),
        ({"task": "inpaint-central"}, "does not do 'inpaint-central'"),
        ({"prompt": "a red circle"}, "takes no prompt"),
        ({"paste_given": True}, "take no paste_given"),
        ({"class_label": "star"}, "Unknown class label"),
        ({"context_noise_level": 6}, "at most 5"),
        ({"window_mode": "slides"}, "window_mode"),
        ({"window_mode": "rolling"}, "needs a network with relative positions"),
    ],
)
def test_what_does_not_fit_is_refused(pipeline: VideoPipeline, options: dict, message: str):
    with pytest.raises(UserError, match=message):
        pipeline(**options)


def test_changes_are_checked_like_calls(pipeline: VideoPipeline):
    stream = pipeline.stream(num_frames=None)
    for change, message in (
        ({"interval": 26}, "between 1 and 25"),
        ({"action": (1.0,)}, "rows of 2 numbers"),
        ({"class_label": "star"}, "Unknown class label"),
        ({"prompt": "a red circle"}, "takes no prompt"),
    ):
        with pytest.raises(UserError, match=message):
            stream.change(**change)


def test_a_model_without_actions_refuses_them():
    model = tiny_magi(action_size=None)
    pipeline = VideoPipeline(tiny_vae(), model, tiny_index(model))
    with pytest.raises(UserError, match="takes no actions"):
        pipeline(actions=[[0.0, 0.0]] * 4)


def test_parts_that_do_not_fit_are_refused():
    model = tiny_magi(latent_channels=4)
    with pytest.raises(UserError, match="do not fit"):
        VideoPipeline(tiny_vae(), model, tiny_index(model))


def test_prompts_are_read_and_can_change_on_the_way(tmp_path: Path):
    write_json(tmp_path / "config.json", word_config(["a red circle", "a blue square"]))
    encoder = load_text_encoder(tmp_path, torch.device("cpu"), torch.float32)
    size = encoder.encode(["a red circle"], 4).features.shape[2]
    model = tiny_magi(text_size=size, text_length=4)
    pipeline = VideoPipeline(tiny_vae(), model, tiny_index(model), text_encoder=lambda: encoder)
    red, blue = (pipeline(prompt=prompt, num_frames=7).frames for prompt in ("a red circle", "a blue square"))
    assert not np.array_equal(red, blue)
    stream, frames = pipeline.stream(prompt="a red circle", num_frames=None), []
    for number in range(7):
        frames.append(next(stream))
        if number == 2:
            stream.change(prompt="a blue square")
    np.testing.assert_array_equal(np.stack(frames[:3]), red[:3])
    assert not np.array_equal(np.stack(frames[3:]), red[3:])


def test_words_that_mean_nothing_are_named_in_a_call_and_in_a_change(tmp_path: Path):
    write_json(tmp_path / "config.json", word_config(["a red circle"]))
    encoder = load_text_encoder(tmp_path, torch.device("cpu"), torch.float32)
    size = encoder.encode(["a"], 4).features.shape[2]
    model = tiny_magi(text_size=size, text_length=4)
    pipeline = VideoPipeline(tiny_vae(), model, tiny_index(model), text_encoder=lambda: encoder)
    [sentence] = pipeline.prepare(prompt="a красный circle").warnings
    assert "does not know 'красный'" in sentence
    assert pipeline.prepare(prompt="a red circle").warnings == ()
    stream = pipeline.stream(prompt="a red circle", num_frames=None)
    next(stream)
    with pytest.warns(UserWarning, match="does not know '圆'"):
        stream.change(prompt="圆")


def test_features_that_are_not_finite_are_refused(tmp_path: Path):
    write_json(tmp_path / "config.json", word_config(["a red circle"]))
    encoder = load_text_encoder(tmp_path, torch.device("cpu"), torch.float32)
    size = encoder.encode(["a"], 4).features.shape[2]
    model = tiny_magi(text_size=size, text_length=4)
    pipeline = VideoPipeline(tiny_vae(), model, tiny_index(model), text_encoder=lambda: encoder)
    features, mask = encoder.encode(["a"], 4)
    encoder.encode = lambda prompts, length: TextFeatures(features * torch.nan, mask)
    with pytest.raises(UserError, match="^The text encoder's features hold .* float32"):
        pipeline.prepare(prompt="a")


def test_the_name_of_a_single_class_may_be_given_and_changes_nothing():
    model = tiny_magi(num_classes=None)
    pipeline = VideoPipeline(tiny_vae(), model, tiny_index(model, class_names=("basic",)))
    clips = [pipeline(context=noise(1), class_label=label, seed=1).frames for label in (None, "basic", 0)]
    np.testing.assert_array_equal(clips[0], clips[1])
    np.testing.assert_array_equal(clips[0], clips[2])
    with pytest.raises(UserError, match="Unknown class label"):
        pipeline(context=noise(1), class_label="other")
    stream = pipeline.stream(context=noise(1), num_frames=None)
    next(stream)
    stream.change(class_label="basic")
    next(stream)
