import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mutoscope.errors import UserError
from mutoscope.hub import ModelIndex, load_tokenizer, save_pretrained
from mutoscope.tokenizers.base import channels_last
from mutoscope.tokenizers.causal3d import (
    Bottleneck,
    Causal3D,
    Causal3DConfig,
    CausalConv3d,
    fold_patches,
    unfold_patches,
)
from mutoscope.tokenizers.tiling import TilingConfig, count_tokens, encode_decode

BOTTLENECKS = ("lfq", "fsq", "kl")


def config(bottleneck: Bottleneck = "lfq", **changes) -> Causal3DConfig:
    fields = {"num_bits": 5, "levels": (4, 3, 5), "latent_channels": 3, "num_res_blocks": 1, "num_groups": 4}
    fields |= {"temporal_downsample": (True, True)} | changes
    return Causal3DConfig(8, (1, 1, 2), bottleneck=bottleneck, **fields)


def small(bottleneck: Bottleneck = "lfq") -> Causal3D:
    torch.manual_seed(0)
    return Causal3D(config(bottleneck)).eval()


def clip(frames: int, seed: int = 0, side: int = 8) -> torch.Tensor:
    return torch.rand(2, 3, frames, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_the_paper_setting_gives_the_paper_grid():
    with torch.device("meta"):
        tokenizer = Causal3D(Causal3DConfig())
    assert tokenizer.spec.latent_shape(17, 128, 128) == (5, 16, 16)
    assert tokenizer.spec.vocab_size == 65_536
    assert Causal3DConfig(bottleneck="fsq").embedding_dim == 6


@pytest.mark.parametrize("bottleneck", BOTTLENECKS)
@torch.no_grad()
def test_shapes_of_clips_and_single_images(bottleneck: Bottleneck):
    tokenizer = small(bottleneck)
    for frames in (1, 5, 17):
        latents = tokenizer.encode(clip(frames))
        assert tuple(latents.shape[-3:]) == tokenizer.spec.latent_shape(frames, 8, 8)
        assert tokenizer.decode(latents).shape == (2, 3, frames, 8, 8)


@settings(max_examples=15, deadline=None)
@given(parts=st.lists(st.integers(0, 3), min_size=1, max_size=4), bottleneck=st.sampled_from(BOTTLENECKS))
@torch.no_grad()
def test_streamed_encoding_and_decoding_equal_the_whole(parts: list[int], bottleneck: Bottleneck):
    tokenizer = small(bottleneck)
    lengths = [1 + 4 * parts[0], *(4 * max(n, 1) for n in parts[1:])]
    video = clip(sum(lengths))
    whole = tokenizer.encode(video)
    axis = whole.ndim - 3
    streamed = list(tokenizer.stream_encode(video.split(lengths, dim=2)))
    torch.testing.assert_close(torch.cat(streamed, dim=axis), whole, atol=1e-5, rtol=1e-5)

    expected = tokenizer.decode(whole)
    decoded = list(tokenizer.stream_decode(whole.split(1, dim=axis)))
    assert [part.shape[2] for part in decoded] == [1] + [4] * (whole.shape[axis] - 1)
    torch.testing.assert_close(torch.cat(decoded, dim=2), expected, atol=1e-5, rtol=1e-5)


@settings(max_examples=10, deadline=None)
@given(frame=st.integers(0, 12), seed=st.integers(0, 9))
@torch.no_grad()
def test_later_frames_never_change_earlier_ones(frame: int, seed: int):
    tokenizer = small("kl")
    video = clip(13, seed)
    changed = video.clone()
    changed[:, :, frame] += 0.5
    difference = (tokenizer.encode(changed) - tokenizer.encode(video)).abs().amax(dim=(0, 1, 3, 4))  # (4,)
    reached = 0 if frame == 0 else 1 + (frame - 1) // 4  # the group of the changed frame
    assert difference[:reached].sum() == 0 and difference[reached] > 0
    latents = tokenizer.encode(video)
    moved = latents.clone()
    moved[:, :, reached] += 1.0
    pixels = (tokenizer.decode(moved) - tokenizer.decode(latents)).abs().amax(dim=(0, 1, 3, 4))  # (13,)
    first = 0 if reached == 0 else 1 + 4 * (reached - 1)
    assert pixels[:first].sum() == 0 and pixels[first : first + 1] > 0


@pytest.mark.parametrize("bottleneck", BOTTLENECKS)
def test_training_lowers_the_loss(bottleneck: Bottleneck):
    torch.manual_seed(0)
    tokenizer = Causal3D(config(bottleneck))
    optimizer, generator, losses = torch.optim.Adam(tokenizer.parameters(), lr=3e-3), torch.Generator(), []
    for _ in range(20):
        optimizer.zero_grad()
        output = tokenizer.forward_train(clip(5), generator)
        output.loss.backward()
        optimizer.step()
        losses.append(output.losses["reconstruction"].item())
    assert losses[-1] < 0.8 * losses[0]
    assert all(math.isfinite(value) for value in losses)


@pytest.mark.parametrize("bottleneck", ["lfq", "fsq"])
@torch.no_grad()
def test_long_videos_in_chunks_equal_the_whole(bottleneck: Bottleneck):
    tokenizer = small(bottleneck)
    video = np.random.default_rng(0).integers(0, 256, (22, 8, 8, 3), dtype=np.uint8)
    chunked = encode_decode(tokenizer, video, TilingConfig(chunk=5, chunk_overlap=2))
    whole = encode_decode(tokenizer, video, TilingConfig(chunk=64))
    assert chunked.shape == video.shape
    assert np.abs(chunked.astype(int) - whole.astype(int)).max() <= 1
    assert count_tokens(tokenizer.spec, 22, 8, 8).num_tokens_encoded == 7 * 2 * 2


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match=r"1 \+ k·4 frames"):
        small().encode(clip(4))
    with pytest.raises(UserError, match=r"0 \+ k·4 frames"):
        list(small().stream_encode([clip(1), clip(3)]))
    with pytest.raises(UserError, match="one flag per stage"):
        Causal3DConfig(temporal_downsample=(True,))
    with pytest.raises(UserError, match="65,536"):
        Causal3DConfig(levels=(8,) * 6)
    with pytest.raises(UserError, match="num_groups"):
        Causal3DConfig(filters=20)


@torch.no_grad()
def test_a_continuous_autoencoder_of_4x8x8_streams_as_it_decodes_the_whole():
    torch.manual_seed(0)
    fields = {"latent_channels": 3, "num_res_blocks": 1, "num_groups": 4, "bottleneck": "kl"}
    tokenizer = Causal3D(Causal3DConfig(4, (1, 1, 2, 2), temporal_downsample=(False, True, True), **fields)).eval()
    assert (tokenizer.spec.temporal_stride, tokenizer.spec.spatial_stride, tokenizer.spec.latent_channels) == (4, 8, 3)
    tokenizer.set_latent_statistics([clip(9, side=16)])
    latents = tokenizer.encode(clip(9, 1, side=16))
    assert latents.shape == (2, 3, 3, 2, 2)
    streamed = torch.cat(list(tokenizer.stream_decode(latents.split(1, dim=2))), dim=2)
    torch.testing.assert_close(streamed, tokenizer.decode(latents), atol=1e-5, rtol=1e-5)


def images(**changes) -> Causal3D:
    torch.manual_seed(0)
    return Causal3D(config("kl", per_frame=True, temporal_downsample=(False, False), **changes)).eval()


@settings(max_examples=10, deadline=None)
@given(frames=st.integers(1, 5), rows=st.integers(1, 2))
@torch.no_grad()
def test_without_time_each_frame_is_encoded_and_decoded_separately(frames: int, rows: int):
    tokenizer = images()
    assert tokenizer.spec.per_frame and not tokenizer.spec.causal_in_time
    video = clip(frames, side=8)[..., : 4 * rows, :]
    latents = tokenizer.encode(video)
    assert latents.shape == (2, 3, *tokenizer.spec.latent_shape(frames, 4 * rows, 8)) == (2, 3, frames, rows, 2)
    decoded = tokenizer.decode(latents)
    assert decoded.shape == video.shape
    for t in range(frames):
        torch.testing.assert_close(tokenizer.encode(video[:, :, t : t + 1]), latents[:, :, t : t + 1])
    streamed = torch.cat(list(tokenizer.stream_decode(latents.split(1, dim=2))), dim=2)
    torch.testing.assert_close(streamed, decoded, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_convolution_of_images_equals_one_of_volumes():
    layer = images().encoder.layers[0]
    assert isinstance(layer, CausalConv3d)
    video = clip(3)
    expected = torch.nn.functional.conv3d(video, layer.weight, layer.bias, (1, 1, 1), (0, 1, 1))
    torch.testing.assert_close(layer(video), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("per_frame", [False, True])
@torch.no_grad()
def test_decoding_inverts_the_normalisation_of_latents(per_frame: bool):
    tokenizer = images() if per_frame else small("kl")
    videos = [clip(9, seed) for seed in range(4)]
    raw, decoded = tokenizer.encode(videos[0]), tokenizer.decode(tokenizer.encode(videos[0]))
    tokenizer.set_latent_statistics(videos)
    latents = torch.cat([tokenizer.encode(video) for video in videos]).transpose(0, 1).flatten(1)  # (d, all)
    torch.testing.assert_close(latents.mean(1), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.var(1), torch.ones(3), atol=1e-3, rtol=0)
    assert not torch.allclose(tokenizer.encode(videos[0]), raw)
    torch.testing.assert_close(tokenizer.decode(tokenizer.encode(videos[0])), decoded, atol=1e-4, rtol=1e-3)
    before = tokenizer.encode(videos[0])
    tokenizer.set_latent_statistics(videos)  # again: what was set before does not count
    torch.testing.assert_close(tokenizer.encode(videos[0]), before)
    with pytest.raises(UserError, match="bottleneck have no statistics"):
        small("lfq").set_latent_statistics(videos)


@torch.no_grad()
def test_statistics_survive_a_saved_folder_and_streams_use_them(tmp_path):
    tokenizer = small("kl")
    tokenizer.set_latent_statistics([clip(9)])
    index = ModelIndex(family="tokenizer", model=None, num_frames=9, height=8, width=8)
    save_pretrained(tmp_path / "vae", index, tokenizer, half=False)
    loaded = load_tokenizer(tmp_path / "vae")
    latents = loaded.encode(clip(9))
    torch.testing.assert_close(latents, tokenizer.encode(clip(9)))
    streamed = torch.cat(list(loaded.stream_decode(latents.split(1, dim=2))), dim=2)
    torch.testing.assert_close(streamed, tokenizer.decode(latents), atol=1e-5, rtol=1e-5)


def test_absolute_and_squared_errors_are_those_of_the_reconstruction():
    video = clip(5)
    for kind, distance in (("l1", torch.nn.functional.l1_loss), ("l2", torch.nn.functional.mse_loss)):
        torch.manual_seed(0)
        output = Causal3D(config("kl", reconstruction=kind)).forward_train(video)
        torch.testing.assert_close(output.losses["reconstruction"], distance(output.reconstruction, video))


def test_time_cannot_be_halved_without_time():
    with pytest.raises(UserError, match="per_frame never halves time"):
        config("kl", per_frame=True)


# ------------------------------------------------------------------------------------------------------------- patches


def patched(per_frame: bool = True, bottleneck: Bottleneck = "kl", patch_size: int = 2) -> Causal3D:
    """Two stages on patches: 4 or 8 pixels become a position, and 1 or 4 frames."""
    torch.manual_seed(0)
    fields = {"latent_channels": 3, "num_bits": 5, "levels": (4, 3, 5), "num_res_blocks": 1, "num_groups": 4}
    down = (False, False) if per_frame else (True, True)
    return Causal3D(
        Causal3DConfig(
            8,
            (1, 1, 2),
            temporal_downsample=down,
            bottleneck=bottleneck,
            per_frame=per_frame,
            patch_size=patch_size,
            **fields,
        )
    ).eval()


def test_patches_are_channels_and_pixels_again():
    video = clip(3, side=8)
    patches = fold_patches(video, 4)
    assert patches.shape == (2, 48, 3, 2, 2)
    # Channel c·16 + row·4 + column of a position: that pixel of its patch.
    assert torch.equal(patches[:, 1 * 16 + 2 * 4 + 3, :, 1, 0], video[:, 1, :, 4 + 2, 3])
    assert torch.equal(unfold_patches(patches, 4), video)
    assert torch.equal(fold_patches(video, 1), video)


@pytest.mark.parametrize(("per_frame", "patch_size"), [(True, 1), (True, 2), (True, 4), (False, 2)])
@torch.no_grad()
def test_a_patch_multiplies_the_spatial_stride_and_clips_come_back_in_their_size(per_frame: bool, patch_size: int):
    tokenizer = patched(per_frame, patch_size=patch_size)
    spec, side = tokenizer.spec, 8 * patch_size
    assert spec.spatial_stride == 4 * patch_size and spec.temporal_stride == (1 if per_frame else 4)
    video = torch.rand(1, 3, 5, side, 2 * side) * 2 - 1
    latents = tokenizer.encode(video)
    assert tuple(latents.shape) == (1, 3, *spec.latent_shape(5, side, 2 * side))
    assert latents.shape[-2:] == (2, 4)
    assert tokenizer.decode(latents).shape == video.shape
    output = tokenizer.forward_train(video)
    assert output.reconstruction.shape == video.shape and math.isfinite(output.loss.item())


@pytest.mark.parametrize("bottleneck", BOTTLENECKS)
@torch.no_grad()
def test_patches_stream_as_the_whole(bottleneck: Bottleneck):
    tokenizer, video = patched(False, bottleneck), clip(9, side=16)
    whole = tokenizer.encode(video)
    axis = whole.ndim - 3
    streamed = torch.cat(list(tokenizer.stream_encode(video.split([1, 8], dim=2))), dim=axis)
    torch.testing.assert_close(streamed, whole, atol=1e-5, rtol=1e-5)
    decoded = torch.cat(list(tokenizer.stream_decode(whole.split(1, dim=axis))), dim=2)
    torch.testing.assert_close(decoded, tokenizer.decode(whole), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_frames_in_patches_are_encoded_and_decoded_as_single_frames():
    tokenizer, video = patched(), clip(4, side=16)
    latents = tokenizer.encode(video)
    pixels = tokenizer.decode(latents)
    for frame in range(4):
        alone = tokenizer.encode(video[:, :, frame : frame + 1])
        torch.testing.assert_close(alone, latents[:, :, frame : frame + 1], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(tokenizer.decode(alone), pixels[:, :, frame : frame + 1], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_memory_format_changes_no_result():
    tokenizer, video = patched(), clip(2, side=16)
    expected = tokenizer.decode(tokenizer.encode(video))
    formatted = patched()
    channels_last(formatted)
    torch.testing.assert_close(formatted.decode(formatted.encode(video)), expected, atol=1e-5, rtol=1e-5)
    last = video.contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(tokenizer.encode(last), tokenizer.encode(video), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("side", [4, 12, 18])
def test_sizes_that_patches_and_stages_do_not_divide_are_refused(side: int):
    with pytest.raises(UserError, match=f"multiples of 8, found 1 frames of {side}×{side}"):
        patched().encode(torch.zeros(1, 3, 1, side, side))


def test_a_patch_has_at_least_one_pixel():
    with pytest.raises(UserError, match="patch_size"):
        Causal3DConfig(patch_size=0)


def test_a_saved_network_of_patches_and_one_from_before_patches_load(tmp_path):
    for patch_size in (1, 2):
        tokenizer = patched(patch_size=patch_size)
        side = 8 * patch_size
        folder = tmp_path / str(patch_size)
        save_pretrained(folder, ModelIndex("tokenizer", 1, side, side, model=None), tokenizer, half=False)
        file = folder / "tokenizer/config.json"
        values = json.loads(file.read_text())
        assert values["patch_size"] == patch_size
        if patch_size == 1:  # as earlier versions wrote it
            del values["patch_size"]
            file.write_text(json.dumps(values))
        loaded = load_tokenizer(folder)
        assert isinstance(loaded, Causal3D) and loaded.config == tokenizer.config
        video = clip(2, side=side)
        torch.testing.assert_close(loaded.encode(video), tokenizer.encode(video), atol=1e-6, rtol=1e-6)
