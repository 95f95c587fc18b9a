from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch

from mutoscope.errors import UserError
from mutoscope.families.nova import NOVARequest
from mutoscope.pipeline import VideoPipeline
from mutoscope.text import load_text_encoder
from mutoscope.text.offload import OffloadedTextEncoder
from tiny_models import save_tiny_model
from tiny_nova import save_tiny_nova, tiny_autoencoder, tiny_nova, tiny_nova_index


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> VideoPipeline:
    return VideoPipeline.from_pretrained(save_tiny_nova(tmp_path_factory.mktemp("models") / "nova"))


def noise(frames: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (frames, 16, 16, 3), dtype=np.uint8)


def test_a_prompt_gives_a_clip_of_any_length(pipeline: VideoPipeline):
    clip = pipeline(prompt="a red circle swings")
    assert clip.frames.shape == (4, 16, 16, 3)
    assert len(pipeline(prompt="a red circle swings", num_frames=7).frames) == 7
    assert not np.array_equal(pipeline(prompt="a blue square").frames, clip.frames)
    assert np.array_equal(pipeline(prompt="A red circle swings!").frames, clip.frames)


def test_a_list_of_prompts_is_a_list_of_clips_and_batches_change_nothing(pipeline: VideoPipeline):
    prompts = ["a red circle", "a blue square", "a red circle"]
    together = pipeline(prompt=prompts)
    assert len(together) == 3
    assert not np.array_equal(together[0].frames, together[2].frames)  # equal prompts, different noise


def test_the_negative_prompt_matters_only_with_guidance(pipeline: VideoPipeline):
    frames = [
        pipeline(prompt="a red circle", negative_prompt=negative, guidance_scale=scale).frames
        for scale in (3.0, 1.0)
        for negative in ("", "a blue square")
    ]
    assert not np.array_equal(frames[0], frames[1])
    assert np.array_equal(frames[2], frames[3])


def test_frames_stream_as_they_finish_and_equal_the_call(pipeline: VideoPipeline):
    stream = pipeline.stream(prompt="a red circle", num_frames=5)
    streamed = np.stack(list(stream))
    np.testing.assert_array_equal(streamed, pipeline(prompt="a red circle", num_frames=5).frames)


def test_a_clip_goes_on_from_given_frames(pipeline: VideoPipeline):
    context = noise(2)
    clip = pipeline(prompt="a red circle", context=context, num_frames=6)
    assert clip.frames.shape[0] == 6
    another = pipeline(prompt="a blue square", context=context, num_frames=6)
    np.testing.assert_array_equal(clip.frames[:2], another.frames[:2])
    assert not np.array_equal(clip.frames[2:], another.frames[2:])
    other = pipeline(prompt="a red circle", context=255 - context, num_frames=6)
    assert not np.array_equal(clip.frames[2:], other.frames[2:])
    with pytest.raises(UserError, match="raise num_frames above 2"):
        pipeline(prompt="a red circle", context=context, num_frames=2)


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "needs a prompt"),
        ({"prompt": "a", "task": "inpaint-central"}, "Omit task"),
        ({"prompt": "a", "class_label": 3}, "knows no classes"),
        ({"prompt": "a", "num_decoding_steps": 17}, "16 tokens"),
        ({"prompt": "a", "actions": [1]}, "no actions"),
        ({"prompt": "a", "temperature": 2.0}, "temperature"),
        ({"prompt": ["a", "b"], "num_samples": 3}, "one entry per sample"),
        ({"prompt": "a", "context": [noise(1), noise(2)]}, "same number of frames"),
    ],
)
def test_what_does_not_fit_is_explained(pipeline: VideoPipeline, options, message):
    with pytest.raises(UserError, match=message):
        pipeline(**options)


def test_words_the_encoder_does_not_know_are_told(pipeline: VideoPipeline):
    with pytest.warns(UserWarning, match="'purple': these words"):
        clip = pipeline(prompt=["a purple circle", "a red circle"])[0]
    with pytest.warns(UserWarning, match="'ugly'"):
        next(pipeline.stream(prompt="a red circle", negative_prompt="ugly"))
    many = pipeline.prepare(prompt=" ".join(f"w{i}" for i in range(20)))
    assert len(many.warnings) == 1 and many.warnings[0].count("'w") == 12 and "and 8 more" in many.warnings[0]
    assert pipeline.prepare(prompt="a red circle").warnings == () and clip.frames.shape[0] == 4


def test_an_encoder_that_leaves_memory_gives_the_same_clips(pipeline: VideoPipeline, tmp_path: Path):
    folder = save_tiny_nova(tmp_path / "nova")
    small = VideoPipeline.from_pretrained(folder, text_encoder_offload=True, text_encoder_dtype=torch.bfloat16)
    assert isinstance(
        cast(NOVARequest, small.prepare(prompt="a red circle")).generator.text_encoder, OffloadedTextEncoder
    )
    for prompt in ("a red circle", "a blue square", "a red circle"):
        np.testing.assert_array_equal(small(prompt=prompt).frames, pipeline(prompt=prompt).frames)
    with pytest.warns(UserWarning, match="'purple'"):
        small(prompt="a purple circle")
    with pytest.raises(UserError, match="no text encoder"):
        VideoPipeline.from_pretrained(save_tiny_model(tmp_path / "magvit"), text_encoder_offload=True)


def test_motion_is_for_models_of_video_alone(pipeline: VideoPipeline):
    model = tiny_nova(text_size=None, num_classes=2, latent_shape=(1, 8, 8))
    images = VideoPipeline(tiny_autoencoder(), model, tiny_nova_index(num_frames=1, tasks=("class-conditional",)))
    with pytest.raises(UserError, match="reads no motion"):
        images(class_label=0, motion=3.0)
    assert images(class_label=0).frames.shape[0] == 1
    still, moving = (pipeline(prompt="a red circle", motion=value).frames for value in (0.0, 20.0))
    assert not np.array_equal(still, moving)
    with pytest.raises(UserError, match="finite"):
        pipeline(prompt="a red circle", motion=float("nan"))


def test_an_empty_prompt_and_a_very_long_one_are_prompts(pipeline: VideoPipeline):
    assert pipeline(prompt="").frames.shape[0] == 4
    assert pipeline(prompt="a red circle " * 1000).frames.shape[0] == 4


def test_parts_of_other_sizes_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="do not fit"):
        VideoPipeline(tiny_autoencoder(), tiny_nova(latent_channels=4), tiny_nova_index())
    folder = save_tiny_nova(tmp_path / "nova")
    wrong = VideoPipeline(
        tiny_autoencoder(),
        tiny_nova(),
        tiny_nova_index(),
        text_encoder=lambda: load_text_encoder(folder / "text_encoder", torch.device("cpu"), torch.float32),
    )
    with pytest.raises(UserError, match="30 channels"):
        wrong(prompt="a")


def test_classes_work_in_place_of_prompts():
    names = ("circle", "square")
    model = tiny_nova(text_size=None, num_classes=2)
    pipeline = VideoPipeline(
        tiny_autoencoder(), model, tiny_nova_index(class_names=names, tasks=("class-conditional",))
    )
    assert pipeline(class_label="square").frames.shape[0] == 4
    with pytest.raises(UserError, match="no prompt"):
        pipeline(prompt="a red circle")
