from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mutoscope.errors import UserError
from mutoscope.hub import ModelIndex, save_pretrained
from mutoscope.meta_device import on_meta_device
from mutoscope.pipeline import VideoPipeline
from mutoscope.tokenizers.autoencoder_kl import AutoencoderKL, TileOptions
from mutoscope.tokenizers.autoencoder_kl_network import AutoencoderKLConfig
from mutoscope.tokenizers.tiling import TilingConfig, encode_decode

IMAGE = AutoencoderKLConfig((8, 8), 1, 3, 4, (2, 2), (2, 2), shift_factor=0.5)
VIDEO = AutoencoderKLConfig((4, 8, 8), 1, 3, 4, (2, 3, 3), (3, 3, 3), tile_frames=9)  # 3 latents, stride 4


def small(config: AutoencoderKLConfig = VIDEO, **tiles) -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(config, TileOptions(**tiles)).eval()


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize(
    "config, count", [(AutoencoderKLConfig(), 83_653_863), (AutoencoderKLConfig.opensora(), 239_189_991)]
)
def test_published_sizes_have_the_published_parameter_counts(config: AutoencoderKLConfig, count: int):
    with on_meta_device():
        tokenizer = AutoencoderKL(config)
    assert sum(p.numel() for p in tokenizer.parameters()) == count
    assert tokenizer.spec.latent_shape(33, 480, 768) == (33 if config.up_dims[0] == 2 else 9, 60, 96)


@torch.no_grad()
def test_images_are_encoded_and_decoded_separately():
    tokenizer = small(IMAGE)
    video = noise(2, 3, 3, 8, 4)
    latents = tokenizer.encode(video)
    assert latents.shape == (2, 3, *tokenizer.spec.latent_shape(3, 8, 4))
    decoded = tokenizer.decode(latents)
    for t in range(3):
        torch.testing.assert_close(tokenizer.encode(video[:, :, t : t + 1]), latents[:, :, t : t + 1])
        torch.testing.assert_close(tokenizer.decode(latents[:, :, t : t + 1]), decoded[:, :, t : t + 1])


@torch.no_grad()
def test_latents_are_normalised_means_or_draws():
    tokenizer = small(IMAGE)
    video = noise(1, 3, 2, 8, 8)
    mean, log_variance = tokenizer.moments(video).chunk(2, dim=1)
    torch.testing.assert_close(tokenizer.encode(video), (mean - 0.5) * 0.18215)
    draws = [tokenizer.encode(video, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    expected = torch.randn(mean.shape, generator=torch.Generator().manual_seed(1)) * (0.5 * log_variance).exp()
    torch.testing.assert_close(draws[0], (mean + expected - 0.5) * 0.18215)


@settings(max_examples=5, deadline=None)
@given(tiles=st.integers(1, 3), clips=st.integers(1, 2), at_once=st.integers(1, 5))
@torch.no_grad()
def test_tiles_computed_together_equal_tiles_computed_alone(tiles: int, clips: int, at_once: int):
    alone, together = small(), small(at_once=at_once)
    video = noise(clips, 3, 1 + 8 * tiles, 8, 4)
    latents = alone.encode(video)
    assert latents.shape == (clips, 3, 1 + 2 * tiles, 2, 1)
    torch.testing.assert_close(together.encode(video), latents, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(together.decode(latents), alone.decode(latents), atol=1e-4, rtol=1e-3)


@settings(max_examples=10, deadline=None)
@given(count=st.integers(1, 8), partial=st.sampled_from(["drop", "keep"]))
@torch.no_grad()
def test_streamed_decoding_equals_decoding_the_whole(count: int, partial: str):
    tokenizer = small(partial=partial)
    latents = noise(1, 3, count, 2, 1)
    streamed = list(tokenizer.stream_decode(latents.split(1, dim=2)))
    whole = tokenizer.decode(latents)
    torch.testing.assert_close(torch.cat(streamed, dim=2), whole, atol=1e-4, rtol=1e-3)
    filled = count if partial == "keep" or count <= 3 else 1 + (count - 1) // 2 * 2
    assert whole.shape[2] == 1 + 4 * (filled - 1)


@torch.no_grad()
def test_frames_that_fill_no_tile_are_refused_with_the_nearest_counts():
    tokenizer = small()
    with pytest.raises(UserError, match="found 4. Use 3 or 5,"):
        tokenizer.decode(noise(1, 3, 4, 2, 2))
    with pytest.raises(UserError, match="found 4. Use 3 or 5,"):
        list(tokenizer.stream_decode(noise(1, 3, 4, 2, 2).split(1, dim=2)))
    with pytest.raises(UserError, match="found 13. Use 9 or 17,"):
        tokenizer.encode(noise(1, 3, 13, 8, 8))
    with pytest.raises(UserError, match="found 7. Use 5 or 9,"):
        tokenizer.encode(noise(1, 3, 7, 8, 8))
    with pytest.raises(UserError, match="found 15. Use 13 or 17,"):
        small(partial="keep").encode(noise(1, 3, 15, 8, 8))


@torch.no_grad()
def test_a_dropped_rest_changes_nothing_and_a_kept_one_is_decoded():
    latents = noise(1, 3, 6, 2, 2)
    whole = small().decode(latents[:, :, :5])
    assert torch.equal(small(partial="drop").decode(latents), whole)
    kept = small(partial="keep").decode(latents)
    assert torch.equal(kept[:, :, :17], whole) and kept.shape[2] == 21


@pytest.mark.parametrize("config, frames", [(IMAGE, 2), (VIDEO, 9)])
@torch.no_grad()
def test_windows_of_a_frame_cover_it_and_small_frames_need_none(config: AutoencoderKLConfig, frames: int):
    whole, windowed = small(config), small(config, spatial=16, spatial_overlap=4)
    video = noise(1, 3, frames, 40, 12)
    latents = whole.encode(video)
    assert windowed.encode(video).shape == latents.shape
    assert windowed.decode(latents).shape == video.shape
    assert not torch.equal(windowed.decode(latents), whole.decode(latents))
    assert torch.equal(windowed.encode(video[..., :16, :]), whole.encode(video[..., :16, :]))


@pytest.mark.parametrize("config, frames", [(IMAGE, 2), (VIDEO, 9)])
@torch.no_grad()
def test_weights_in_half_precision_change_little_and_give_float32(config: AutoencoderKLConfig, frames: int):
    whole, half = small(config), small(config, spatial=16, spatial_overlap=4).bfloat16()
    video = noise(1, 3, frames, 16, 12)
    latents = whole.encode(video)
    assert half.encode(video).dtype == half.decode(latents).dtype == torch.float32
    assert not torch.equal(half.encode(video), latents)
    for narrow, wide in ((half.encode(video), latents), (half.decode(latents), whole.decode(latents))):
        assert (narrow - wide).norm() < 0.06 * wide.norm()


@torch.no_grad()
def test_the_tiled_round_trip_accepts_any_length_and_size():
    video = np.random.default_rng(0).integers(0, 256, (22, 10, 13, 3), dtype=np.uint8)
    tokenizer = small()
    assert encode_decode(tokenizer, video, TilingConfig(chunk=8, chunk_overlap=2)).shape == video.shape
    clip = np.random.default_rng(0).integers(0, 256, (17, 8, 8, 3), dtype=np.uint8)
    chunked = encode_decode(tokenizer, clip, TilingConfig(chunk=8, chunk_overlap=2))  # 9 and 8 frames: the tiles
    pixels = tokenizer.from_uint8(torch.from_numpy(clip)[None])
    assert np.array_equal(chunked, tokenizer.to_uint8(tokenizer.decode(tokenizer.encode(pixels)))[0].numpy())


def test_pixels_are_truncated_as_the_official_pipeline_does():
    values = torch.tensor([-1.2, -1.0, 0.0, 0.999, 2.0])
    frames = small().to_uint8(values.view(1, 1, 1, 1, 5).expand(1, 3, 1, 1, 5))
    assert frames[0, 0, 0, :, 0].tolist() == [0, 0, 127, 254, 255]


@pytest.mark.parametrize("config", [IMAGE, VIDEO])
def test_a_saved_folder_reconstructs_alike(config: AutoencoderKLConfig, tmp_path):
    index = ModelIndex(family="tokenizer", model=None, num_frames=5, height=8, width=8)
    tokenizer = small(config)
    save_pretrained(tmp_path / "vae", index, tokenizer, half=False)
    pipeline = VideoPipeline.from_pretrained(tmp_path / "vae")
    assert pipeline.tokenizer.config == config
    video = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    assert np.array_equal(pipeline.reconstruct(video).frames, encode_decode(tokenizer, video))


def test_impossible_sizes_are_refused():
    with pytest.raises(UserError, match="multiples of 2"):
        small(IMAGE).encode(noise(1, 3, 1, 7, 8))
    for changes, message in [
        ({"down_dims": (3, 2, 3)}, "2-D stage cannot follow"),
        ({"up_dims": (2, 2, 2)}, "all of one kind"),
        ({"up_dims": (3, 3)}, "3 widths"),
        ({"num_groups": 3}, "num_groups"),
        ({"tile_frames": 8}, r"1 \+ k·4"),
        ({"scaling_factor": 0.0}, "scaling_factor"),
    ]:
        with pytest.raises(UserError, match=message):
            replace(VIDEO, **changes)
    with pytest.raises(UserError, match="at_once"):
        TileOptions(at_once=0)
    with pytest.raises(UserError, match="overlap"):
        TileOptions(spatial=64, spatial_overlap=64)
