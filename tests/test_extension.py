"""Longer and wider than the model: what is there stays, what is new comes from the model, bad sizes are explained."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mutoscope.errors import UserError
from mutoscope.extension import longer, wider
from mutoscope.families.blending import blend
from mutoscope.pipeline import VideoPipeline
from mutoscope.sampling.tasks import TASKS, pixel_mask
from tiny_models import MODEL, tiny_index, tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def pipeline() -> VideoPipeline:
    return VideoPipeline(tiny_tokenizer(), tiny_model(replace(MODEL, tasks=TASKS)), tiny_index(tasks=TASKS))


def noise(frames: int, height: int = 8, width: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("num_frames", [5, 8, 9, 20])
def test_a_longer_clip_begins_with_what_was_given(pipeline: VideoPipeline, num_frames: int):
    start = noise(8)
    clip = longer(pipeline, start, num_frames)
    assert clip.shape == (num_frames, 8, 8, 3)
    np.testing.assert_array_equal(clip[:8], start[:num_frames])


def test_every_round_continues_the_last_frames_of_the_one_before(pipeline: VideoPipeline):
    start, given = noise(8), pipeline.tokenizer.spec.temporal_stride
    clip = longer(pipeline, start, 20, seed=3, class_label=1)
    again = pipeline(
        task="class-conditional-frame-prediction", context=start[-given:], context_frames=given, class_label=1, seed=3
    )
    np.testing.assert_array_equal(clip[8 : 16 - given], again.frames[given:])
    assert not np.array_equal(clip[8:12], longer(pipeline, start, 12, seed=4, class_label=1)[8:])


def test_a_panorama_keeps_its_middle_and_grows_by_half_a_width_per_round(pipeline: VideoPipeline):
    start = noise(8)
    panorama = wider(pipeline, start, 2)
    assert panorama.shape == (8, 8, 8 + 2 * 4, 3)
    np.testing.assert_array_equal(panorama[:, :, 4:12], start)
    np.testing.assert_array_equal(panorama[:, :, 2:14], wider(pipeline, start, 1))


def test_sizes_that_do_not_fit_are_explained(pipeline: VideoPipeline):
    with pytest.raises(UserError, match="context frames are needed"):
        longer(pipeline, noise(1), 12, context_frames=2)
    with pytest.raises(UserError, match="between 1 and 7"):
        longer(pipeline, noise(8), 12, context_frames=8)
    with pytest.raises(UserError, match="at least 4 columns"):
        wider(pipeline, noise(8, width=2), 1)
    with pytest.raises(UserError, match="at least 4 columns"):
        wider(pipeline, noise(6), 1)


def test_given_pixels_can_be_pasted_back(pipeline: VideoPipeline):
    video = noise(8)
    pasted = pipeline(task="inpaint-central", task_video=video, paste_given=True).frames
    plain = pipeline(task="inpaint-central", task_video=video).frames
    hole = (slice(None), slice(2, 6), slice(2, 6))
    np.testing.assert_array_equal(pasted[hole], plain[hole])
    outside = np.ones((8, 8, 8), bool)
    outside[hole] = False
    np.testing.assert_array_equal(pasted[outside], video[outside])
    assert not np.array_equal(plain[outside], video[outside])


def test_blending_moves_the_tone_and_codes_the_clip_once_more(pipeline: VideoPipeline):
    video, tokenizer = noise(8), pipeline.tokenizer
    plain = pipeline(task="inpaint-central", task_video=video).frames
    blended = pipeline(task="inpaint-central", task_video=video, blend_given=True).frames
    parts = (tokenizer.from_uint8(torch.from_numpy(clip)[None]) for clip in (plain, video))
    coded = tokenizer.decode(tokenizer.encode(blend(*parts, pixel_mask("inpaint-central", 8, 8, 8))))
    np.testing.assert_array_equal(blended, tokenizer.to_uint8(coded)[0].numpy())


def test_given_pixels_may_be_pasted_over_a_blended_clip(pipeline: VideoPipeline):
    video, mask = noise(8), pixel_mask("inpaint-central", 8, 8, 8).numpy()
    blended = pipeline(task="inpaint-central", task_video=video, blend_given=True).frames
    both = pipeline(task="inpaint-central", task_video=video, blend_given=True, paste_given=True).frames
    np.testing.assert_array_equal(both, np.where(mask[..., None], video, blended))


def test_a_model_may_blend_unless_a_call_says_otherwise(pipeline: VideoPipeline):
    index = replace(pipeline.index, blend_given=True)
    blending = VideoPipeline(pipeline.tokenizer, pipeline.model, index)
    for task in ("inpaint-central", "frame-prediction"):
        plain, blended = (
            pipeline(task=task, task_video=noise(8), blend_given=blend_given).frames for blend_given in (None, True)
        )
        assert not np.array_equal(plain, blended)
        np.testing.assert_array_equal(blending(task=task, task_video=noise(8)).frames, blended)
        np.testing.assert_array_equal(blending(task=task, task_video=noise(8), blend_given=False).frames, plain)
