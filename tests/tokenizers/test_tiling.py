"""Chunks and tiles: every pixel covered once, exact for an exact tokenizer, bounded buffers."""

import numpy as np
import pytest
import torch
from einops import rearrange
from hypothesis import given, settings
from hypothesis import strategies as st

from mutoscope.errors import UserError
from mutoscope.tokenizers.base import StreamState, TokenizerSpec, VideoTokenizer
from mutoscope.tokenizers.tiling import (
    TilingConfig,
    count_tokens,
    encode_decode,
    encode_decode_stream,
    in_windows,
    plan_axis,
    plan_windows,
)

SMALL = TilingConfig(tile=16, tile_overlap=4, chunk=8, chunk_overlap=2)


class Lossless(VideoTokenizer):
    """Space and time to channels and back: lossless, and refuses sizes its strides do not divide."""

    def __init__(self, temporal_stride: int = 4, spatial_stride: int = 4, causal: bool = False) -> None:
        super().__init__()
        self.strides = temporal_stride, spatial_stride
        self.causal = causal
        self.largest = 0

    @property
    def spec(self) -> TokenizerSpec:
        return TokenizerSpec(*self.strides, vocab_size=256, causal_in_time=self.causal)

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        self.largest = max(self.largest, video.numel())
        if self.causal:
            assert (video.shape[2] - 1) % self.strides[0] == 0
            return video
        t, s = self.strides
        return rearrange(video, "b c (t f) (h p) (w q) -> b (c f p q) t h w", f=t, p=s, q=s)

    def decode(self, tokens: torch.Tensor) -> torch.Tensor:
        t, s = self.strides
        return tokens if self.causal else rearrange(tokens, "b (c f p q) t h w -> b c (t f) (h p) (w q)", f=t, p=s, q=s)

    def encode_part(self, video: torch.Tensor, state: StreamState) -> torch.Tensor:
        self.largest = max(self.largest, video.numel())
        alone = 0 if state.past else 1
        assert (video.shape[2] - alone) % self.strides[0] == 0
        state.past[self] = video
        return video

    def decode_part(self, latents: torch.Tensor, state: StreamState) -> torch.Tensor:
        return latents


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@given(
    size=st.integers(1, 300),
    window=st.integers(4, 80),
    share=st.floats(0, 0.5),
    stride=st.sampled_from([1, 2, 4, 8]),
)
def test_windows_cover_an_axis_with_weights_that_sum_to_one(size: int, window: int, share: float, stride: int) -> None:
    axis = plan_axis(size, window, int(share * window), stride)
    total = np.zeros(axis.size)
    for start, weights in zip(axis.starts, axis.weights, strict=True):
        assert start % stride == 0 and axis.length % stride == 0 and len(weights) == axis.length
        assert (weights > 0).all()
        total[start : start + axis.length] += weights
    assert axis.size >= size and axis.size % stride == 0
    np.testing.assert_allclose(total, 1, atol=1e-6)


def test_neighbouring_tiles_share_at_least_the_requested_overlap() -> None:
    axis = plan_axis(1080, 256, 16, 4)
    shared = [a + axis.length - b for a, b in zip(axis.starts, axis.starts[1:], strict=False)]
    assert min(shared) >= 16


def test_tiles_are_no_larger_than_their_number_needs() -> None:
    axis = plan_axis(320, 256, 16, 4)
    assert axis.length == 168 and axis.starts == (0, 152)


@settings(deadline=None, max_examples=25)
@given(frames=st.integers(1, 30), height=st.integers(1, 40), width=st.integers(1, 40), causal=st.booleans())
def test_an_exact_tokenizer_reproduces_its_input_at_any_size_and_length(
    frames: int, height: int, width: int, causal: bool
) -> None:
    video = noise(frames, height, width, 3)
    np.testing.assert_array_equal(encode_decode(Lossless(causal=causal), video, SMALL), video)


def test_originals_are_returned_beside_their_reconstructions() -> None:
    video = noise(19, 9, 7, 3)
    blocks = list(encode_decode_stream(Lossless(), video, 9, 7, SMALL))
    np.testing.assert_array_equal(np.concatenate([before for before, _ in blocks]), video)
    assert all(before.shape == after.shape for before, after in blocks)


def test_no_more_than_a_chunk_of_frames_is_read_ahead() -> None:
    read = 0

    def counted():
        nonlocal read
        for frame in noise(100, 8, 8, 3):
            read += 1
            yield frame

    given_out = 0
    for before, _ in encode_decode_stream(Lossless(), counted(), 8, 8, SMALL):
        given_out += len(before)
        assert read - given_out <= SMALL.chunk + 1
    assert given_out == 100


def test_the_network_never_sees_more_than_one_tile_of_one_chunk() -> None:
    tokenizer = Lossless()
    encode_decode(tokenizer, noise(20, 50, 70, 3), SMALL)
    assert tokenizer.largest == 3 * 8 * 16 * 16


def test_an_offset_between_tiles_fades_linearly() -> None:
    class Offset(Lossless):
        """Brightens every second window, which makes a hard seam visible."""

        calls = 0

        def decode(self, tokens: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return super().decode(tokens) + (0.4 if self.calls % 2 else 0.0)

    video = np.full((8, 16, 28, 3), 100, dtype=np.uint8)
    row = encode_decode(Offset(), video, SMALL)[0, 0, :, 0].astype(int)
    assert row[0] == 151 and row[-1] == 100
    assert (np.diff(row)[11:16] < -5).all() and (np.abs(np.diff(row)) < 20).all()


def test_no_frames_give_no_blocks() -> None:
    assert list(encode_decode_stream(Lossless(), [], 8, 8, SMALL)) == []


def test_a_change_of_frame_size_within_the_stream_is_an_error() -> None:
    with pytest.raises(UserError, match="size changes"):
        list(encode_decode_stream(Lossless(), iter([noise(8, 8, 3), noise(9, 8, 3)]), 8, 8, SMALL))


def test_an_overlap_beyond_half_a_window_is_an_error() -> None:
    with pytest.raises(UserError, match="half"):
        TilingConfig(tile=16, tile_overlap=9)


def test_tokens_are_counted_on_the_grid_of_the_padded_video() -> None:
    count = count_tokens(TokenizerSpec(4, 8, vocab_size=1024), 16, 128, 128)
    assert count.latent_shape == (4, 16, 16) and count.num_tokens == count.num_tokens_encoded == 1024
    assert count.compression_ratio == pytest.approx(614.4)  # arXiv 2212.05199, §3.1


def test_windows_encoded_are_counted_with_their_overlap() -> None:
    spec = Lossless().spec
    count = count_tokens(spec, 20, 16, 28, SMALL)
    assert count.num_tokens == 5 * 4 * 7
    assert count.num_tokens_encoded == 3 * 2 * (2 * 4 * 4)


@pytest.mark.parametrize("frames, padded", [(5, 8), (9, 12), (3, 8)])
def test_a_video_shorter_than_a_chunk_is_padded_to_the_strides_only(frames: int, padded: int) -> None:
    tokenizer = Lossless()
    assert len(encode_decode(tokenizer, noise(frames, 8, 8, 3), TilingConfig(chunk=64))) == frames
    assert tokenizer.largest == 3 * padded * 8 * 8
    count = count_tokens(tokenizer.spec, frames, 8, 8, TilingConfig(chunk=64))
    assert count.num_tokens_encoded == padded // 4 * 2 * 2


@given(height=st.integers(1, 12), width=st.integers(1, 12), window=st.integers(4, 10), overlap=st.integers(0, 2))
def test_windows_of_a_network_that_sees_single_cells_equal_the_whole(
    height: int, width: int, window: int, overlap: int
) -> None:
    stride = 4
    plan = plan_windows(height * stride, width * stride, window * stride, overlap * stride, stride)
    assert (plan is None) == (max(height, width) <= window)
    pixels = torch.rand(1, 2, 3, height * stride, width * stride, generator=torch.Generator().manual_seed(0))

    def encode(video: torch.Tensor) -> torch.Tensor:
        assert plan is None or max(video.shape[-2:]) <= window * stride
        return torch.nn.functional.avg_pool3d(video, (1, stride, stride))

    def decode(latents: torch.Tensor) -> torch.Tensor:
        return latents.repeat_interleave(stride, -1).repeat_interleave(stride, -2)

    latents = in_windows(encode, pixels, plan, encoding=True)
    torch.testing.assert_close(latents, torch.nn.functional.avg_pool3d(pixels, (1, stride, stride)))
    torch.testing.assert_close(in_windows(decode, latents, plan, encoding=False), decode(latents))


def test_a_tokenizer_with_its_first_frame_alone_gets_overlapping_chunks() -> None:
    spec = TokenizerSpec(4, 4, vocab_size=256, first_frame_alone=True)
    assert spec.latent_shape(17, 8, 8) == (5, 2, 2) and not spec.decodes_in_order

    class Alone(Lossless):
        @property
        def spec(self) -> TokenizerSpec:
            return spec

        def encode(self, video: torch.Tensor) -> torch.Tensor:
            assert (video.shape[2] - 1) % 4 == 0
            return video

        def decode(self, tokens: torch.Tensor) -> torch.Tensor:
            return tokens

    for frames in (1, 7, 30):
        video = noise(frames, 9, 8, 3)
        assert np.array_equal(encode_decode(Alone(), video, SMALL), video)
