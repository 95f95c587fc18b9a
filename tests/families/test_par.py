"""Generating with PAR models through the pipeline."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mutoscope.errors import UserError
from mutoscope.families import family_named
from mutoscope.families.par import PARRequest
from mutoscope.layers.int8 import Int8Linear
from mutoscope.models.par import PAR
from mutoscope.pipeline import VideoPipeline
from mutoscope.text import TextEncoder, TextFeatures
from mutoscope.tokenizers.vq2d import VQ2D
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

    setattr(pipeline.model, "decode", counted)  # noqa: B010  a method is no attribute of Module's type
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
    request = pipeline.prepare(class_label=0)
    assert isinstance(request, PARRequest)
    generator = request.generator
    assert set(generator.memo.rows) == {0, 1, 2, 3}  # the classes and "no class"


def test_captions_are_masked_and_repeated_for_every_sample(texts: VideoPipeline):
    features = torch.randn(1, 5, 6, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[False, True, True, True, True]])
    other = torch.where(mask[..., None], features, 9.0)
    options = {"caption_mask": mask, "num_samples": 2, "temperature": 0.0, "guidance_scale": 3.0}
    build = texts.family.build_call
    clips, same = (texts.generate(build({"caption": x, **options})).clips for x in (features, other))
    for a, b in zip(clips, same, strict=True):
        np.testing.assert_array_equal(a.frames, b.frames)
    assert texts.prepare(caption=features).task == "text-conditional"


class CountedEncoder(TextEncoder):
    """Features that spell the number of a prompt's words; real rows first."""

    def __init__(self, size: int = 6) -> None:
        super().__init__(Path("encoder"), torch.device("cpu"), torch.float32)
        self.size, self.seen = size, []

    @staticmethod
    def feature_size(folder: Path) -> int:
        return 6

    def encode(self, prompts: Sequence[str], length: int) -> TextFeatures:
        self.seen += prompts
        words = torch.tensor([min(len(prompt.split()), length) for prompt in prompts])
        mask = torch.arange(length) < words[:, None]
        values = torch.arange(1.0, length + 1) * words[:, None]
        return TextFeatures((values * mask)[..., None].expand(-1, -1, self.size), mask)


def test_a_prompt_is_cleaned_padded_on_the_left_and_read_only_when_it_comes(texts: VideoPipeline):
    encoders = []

    def load() -> CountedEncoder:
        encoders.append(CountedEncoder())
        return encoders[0]

    prompted = VideoPipeline(texts.tokenizer, texts.model, texts.index, text_encoder=load)
    assert not encoders
    request: Any = prompted.prepare(prompt=["A  Red Circle!", ""])
    assert encoders[0].seen == ["a red circle!", ""]
    assert request.caption[:, :, 0].tolist() == [[0, 0, 3, 6, 9], [0] * 5] and request.num_samples == 2
    assert request.caption_mask.tolist() == [[False, False, True, True, True], [False] * 5]
    prompted.prepare(prompt="a circle")
    assert len(encoders) == 1


def test_a_prompt_gives_the_clips_of_its_features(texts: VideoPipeline):
    prompted = VideoPipeline(texts.tokenizer, texts.model, texts.index, text_encoder=CountedEncoder)
    request: Any = prompted.prepare(prompt="two words")
    options = {"num_samples": 2, "temperature": 0.0, "guidance_scale": 2.0}
    features = {"caption": request.caption, "caption_mask": request.caption_mask}
    expected = texts.generate(texts.family.build_call({**features, **options})).clips
    found = prompted.generate(prompted.family.build_call({"prompt": "two words", **options})).clips
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a.frames, b.frames)
    clips = prompted(prompt=["two words", "three more words"], temperature=0.0)
    assert isinstance(clips, list) and len(clips) == 2


def test_prompts_that_cannot_be_read_are_explained(texts: VideoPipeline):
    with pytest.raises(UserError, match="--text-encoder FOLDER"):
        texts(prompt="a red circle")
    with pytest.raises(UserError, match="one of them"):
        texts(prompt="a red circle", caption=torch.zeros(1, 5, 6))
    other = VideoPipeline(texts.tokenizer, texts.model, texts.index, text_encoder=lambda: CountedEncoder(7))
    with pytest.raises(UserError, match="gives 7 channels, this model reads 6"):
        other(prompt="a red circle")
    with pytest.raises(UserError, match="one entry per sample"):
        other(prompt=["a", "b"], num_samples=3)


def wide_par() -> PAR:
    """Wide enough for 8-bit weights to be made of it."""
    return tiny_par(hidden_size=64, mlp_size=64, codebook_size=64)


def wide_tokenizer() -> VQ2D:
    return VQ2D(replace(tiny_image_tokenizer().config, codebook_size=64)).eval()


def test_8_bit_weights_stay_close_and_are_never_saved(tmp_path: Path):
    index = tiny_par_index()
    exact = VideoPipeline(wide_tokenizer(), wide_par(), index)
    small = VideoPipeline(wide_tokenizer(), wide_par(), index, weights="int8")
    assert exact.model is not None and small.model is not None
    layers = dict(small.model.named_modules())
    assert all(type(layers[name]) is Int8Linear for name in ("blocks.0.attention.qkv", "blocks.1.mlp_out", "output"))
    tokens = torch.arange(60)[None] % 64
    logits = [model(tokens, model.class_prefix(torch.tensor([1]), 1)) for model in (exact.model, small.model)]
    assert 0 < (logits[0] - logits[1]).norm() / logits[0].norm() < 0.05
    assert small(class_label=1, guidance_scale=2.0).frames.shape == (4, 8, 8, 3)
    with pytest.raises(UserError, match="cannot be saved"):
        small.save_pretrained(tmp_path / "small")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"class_label": 7}, "0 to 2"),
        ({"class_label": "square-spn"}, "square-spin"),
        ({"context": np.zeros((1, 8, 8, 3), np.uint8)}, "take no context"),
        ({"task": "frame-prediction"}, "Omit task"),
        ({"num_decoding_steps": 12}, "19 steps"),
        ({"num_frames": 5}, "clips of 4 frames"),
        ({"prompt": "a red circle"}, "no prompt"),
        ({"choice_temperature": 4.5}, "choice_temperature"),
        ({"temperature": -1.0}, "at least 0"),
        ({"caption": torch.zeros(1, 5, 6)}, "reads class labels"),
    ],
)
def test_bad_calls_are_explained(pipeline: VideoPipeline, options: dict, message: str):
    with pytest.raises(UserError, match=message):
        pipeline(**options)


def test_models_of_captions_need_one_and_know_no_classes(texts: VideoPipeline):
    with pytest.raises(UserError, match="needs a prompt, or the text features"):
        texts()
    with pytest.raises(UserError, match="no classes"):
        texts(class_label=0, caption=torch.zeros(1, 5, 6))


def test_an_unknown_family_is_told():
    with pytest.raises(UserError, match="'magvit'"):
        family_named("magvitt")


def test_a_prompt_of_which_cleaning_leaves_nothing_is_named(texts: VideoPipeline):
    prompted = VideoPipeline(texts.tokenizer, texts.model, texts.index, text_encoder=CountedEncoder)
    [sentence] = prompted.prepare(prompt=["红色的圆", "a circle", ""]).warnings
    assert "leaves nothing of the prompt '红色的圆'" in sentence
