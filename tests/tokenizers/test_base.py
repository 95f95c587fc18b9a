"""Shapes of tokens, and pixels to uint8 and back."""

import math
from collections.abc import Callable

import pytest
import torch

from mutoscope.errors import UserError
from mutoscope.tokenizers.base import TokenizerSpec, VideoTokenizer
from tiny_models import tiny_image_tokenizer, tiny_tokenizer
from tiny_nova import tiny_autoencoder


@pytest.mark.parametrize(
    ("clip", "expected"),
    [
        ((16, 128, 128), (4, 16, 16)),  # arXiv 2212.05199, section 3.1
        ((17, 128, 128), (5, 16, 16)),
        ((13, 121, 129), (4, 16, 17)),
        ((1, 1, 1), (1, 1, 1)),
    ],
)
def test_sizes_are_padded_up_to_the_strides(clip: tuple[int, int, int], expected: tuple[int, int, int]):
    assert TokenizerSpec(4, 8, vocab_size=1024).latent_shape(*clip) == expected


@pytest.mark.parametrize(("num_frames", "expected"), [(1, 1), (2, 2), (5, 2), (6, 3), (17, 5), (18, 6)])
def test_a_causal_tokenizer_keeps_its_first_frame_alone(num_frames: int, expected: int):
    spec = TokenizerSpec(4, 8, latent_channels=4, causal_in_time=True)
    assert spec.latent_shape(num_frames, 8, 9) == (expected, 1, 2)


def test_black_is_minus_one_white_is_one_and_every_byte_survives():
    frames = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16, 1).repeat(1, 1, 1, 1, 3)
    tokenizer = VideoTokenizer()
    video = tokenizer.from_uint8(frames)
    assert video.shape == (1, 3, 1, 16, 16) and video.min() == -1.0 and video.max() == 1.0
    assert torch.equal(tokenizer.to_uint8(video), frames)


def test_values_outside_the_range_are_clipped():
    video = torch.tensor([-3.0, 0.0, 3.0]).reshape(1, 3, 1, 1, 1)
    assert VideoTokenizer().to_uint8(video).flatten().tolist() == [0, 128, 255]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("build", [tiny_tokenizer, tiny_image_tokenizer, tiny_autoencoder])
def test_pixels_that_are_not_finite_never_become_frames(build: Callable[[], VideoTokenizer], bad: float):
    tokenizer = build()
    video = torch.zeros(1, 3, 2, 4, 4)
    assert tokenizer.to_uint8(video).float().mean() in (127.0, 128.0)
    video[0, 0, 1, 2, 3] = bad
    with pytest.raises(UserError, match="^The pixels of the tokenizer's decoder hold .* float32"):
        tokenizer.to_uint8(video)


def test_the_message_names_the_dtype_of_the_weights():
    tokenizer = tiny_autoencoder().half()
    with pytest.raises(UserError, match="float16, which ends at 65504: use --tokenizer-dtype float32"):
        tokenizer.to_uint8(torch.full((1, 3, 1, 2, 2), math.nan))
