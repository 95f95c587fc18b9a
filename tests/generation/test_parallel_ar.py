"""Generating with PAR models through the pipeline."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mutoscope.errors import UserError
from mutoscope.generation import generator_of
from mutoscope.pipeline import VideoPipeline
from tiny_models import save_tiny_par, tiny_image_tokenizer, tiny_par, tiny_par_index

CAPTIONS = {"num_classes": None, "caption_size": 6, "caption_length": 5}


@pytest.fixture
def pipeline() -> VideoPipeline:
    return VideoPipeline(tiny_image_tokenizer(), tiny_par(), tiny_par_index())


@pytest.fixture
def texts() -> VideoPipeline:
    return VideoPipeline(tiny_image_tokenizer(), tiny_par(**CAPTIONS), tiny_par_index(class_names=None, tasks=()))


def test_a_saved_model_gives_the_same_clips(tmp_path: Path, pipeline: VideoPipeline):
    loaded = VideoPipeline.from_pretrained(save_tiny_par(tmp_path / "par"))
    assert loaded(class_label=1, seed=2).frames.shape == (4, 8, 8, 3)
    again = VideoPipeline.from_pretrained(tmp_path / "par")
    np.testing.assert_array_equal(loaded(class_label=1, seed=2).frames, again(class_label=1, seed=2).frames)


def test_frames_stream_before_the_clip_is_finished_and_equal_the_call(pipeline: VideoPipeline):
    expected = pipeline(class_label=0, seed=3).frames
    steps: list[int] = []
    decode = pipeline.model.decode

    def counted(*args: object) -> torch.Tensor:
        steps.append(1)
        return decode(*args)

    pipeline.model.decode = counted
    at = []
    frames = []
    for frame in pipeline.stream(class_label=0, seed=3):
        frames.append(frame)
        at.append(len(steps))
    np.testing.assert_array_equal(np.stack(frames), expected)
    assert at == sorted(set(at)) and len(at) == 4  # every frame came after more steps than the one before


def test_a_stream_keeps_no_gradients_and_leaves_the_callers_mode_alone(pipeline: VideoPipeline):
    seen = []
    to_uint8 = pipeline.tokenizer.to_uint8
    pipeline.tokenizer.to_uint8 = lambda video: (seen.append(video.requires_grad), to_uint8(video))[1]
    for _ in pipeline.stream(class_label=0):
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    assert seen == [False] * 4


def test_rounds_and_guidance_change_nothing_they_should_not(pipeline: VideoPipeline):
    together = pipeline.generate(class_label=[0, 1, 2], temperature=0.0, guidance_scale=2.0)
    rounds = pipeline.generate(class_label=[0, 1, 2], temperature=0.0, guidance_scale=2.0, batch_size=2)
    for a, b in zip(together.clips, rounds.clips, strict=True):
        np.testing.assert_array_equal(a.frames, b.frames)
    assert together.request.num_steps == 4 + 60 // 4
    generator: Any = pipeline.generator
    assert set(generator.memo.rows) == {0, 1, 2, 3}  # the classes and "no class"


def test_captions_are_masked_and_repeated_for_every_sample(texts: VideoPipeline):
    features = torch.randn(1, 5, 6, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[False, True, True, True, True]])
    other = torch.where(mask[..., None], features, 9.0)
    options = {"caption_mask": mask, "num_samples": 2, "temperature": 0.0, "guidance_scale": 3.0}
    clips, same = (texts(caption=x, **options) for x in (features, other))
    for a, b in zip(clips, same, strict=True):
        np.testing.assert_array_equal(a.frames, b.frames)
    assert texts.prepare(caption=features).task == "text-conditional"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"class_label": 7}, "0 to 2"),
        ({"class_label": "square-spn"}, "square-spin"),
        ({"context": np.zeros((1, 8, 8, 3), np.uint8)}, "Leave frames and task out"),
        ({"task": "frame-prediction"}, "Leave frames and task out"),
        ({"num_decoding_steps": 12}, "19 steps"),
        ({"num_frames": 5}, "clips of 4 frames"),
        ({"prompt": "a red circle"}, "no prompt"),
        ({"choice_temperature": 4.5}, "choice_temperature"),
        ({"temperature": -1.0}, "not negative"),
        ({"caption": torch.zeros(1, 5, 6)}, "reads class labels"),
    ],
)
def test_bad_calls_are_explained(pipeline: VideoPipeline, options: dict, message: str):
    with pytest.raises(UserError, match=message):
        pipeline(**options)


def test_models_of_captions_need_one_and_know_no_classes(texts: VideoPipeline):
    with pytest.raises(UserError, match="needs the text features"):
        texts()
    with pytest.raises(UserError, match="no classes"):
        texts(class_label=0, caption=torch.zeros(1, 5, 6))


def test_an_unknown_family_is_told():
    with pytest.raises(UserError, match="'magvit'"):
        generator_of("magvitt")
