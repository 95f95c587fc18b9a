from dataclasses import replace
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mutoscope.errors import UserError
from mutoscope.tokenizers.vq3d import VQ3D, Down, VQ3DConfig

SMALL = VQ3DConfig(
    filters=8,
    channel_multipliers=(1, 2),
    num_res_blocks=1,
    temporal_downsample=(True,),
    embedding_dim=4,
    codebook_size=16,
    num_groups=4,
)
PAPER_PARAMETERS = {
    ("B", 128): (17_149_888, 23_167_811),
    ("L", 128): (68_443_776, 89_106_051),
    ("B", 64): (15_379_392, 20_954_819),
    ("L", 64): (61_363_840, 80_256_387),
}


def small(**overrides) -> VQ3D:
    torch.manual_seed(0)
    return VQ3D(VQ3DConfig(**{**SMALL.__dict__, **overrides}))


def video(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(("size", "resolution"), PAPER_PARAMETERS)
def test_parameter_counts_of_the_paper(size: Literal["B", "L"], resolution: Literal[64, 128]):
    with torch.device("meta"):
        tokenizer = VQ3D(VQ3DConfig.paper(size, resolution))
    encoder, decoder = PAPER_PARAMETERS[size, resolution]
    assert (count(tokenizer.encoder), count(tokenizer.decoder)) == (encoder, decoder)
    assert count(tokenizer) == encoder + decoder + 1024 * 256


@pytest.mark.parametrize("resolution", [64, 128])
def test_paper_clips_become_1024_tokens(resolution: Literal[64, 128]):
    with torch.device("meta"):
        spec = VQ3D(VQ3DConfig.paper("B", resolution)).spec
    assert spec.latent_shape(16, resolution, resolution) == (4, 16, 16)
    assert spec.vocab_size == 1024


@given(t=st.integers(1, 4), h=st.integers(1, 5), w=st.integers(1, 5), padding=st.sampled_from(["zero", "replicate"]))
def test_decoding_restores_the_size(t: int, h: int, w: int, padding: str):
    tokenizer = small(padding=padding)
    clip = video(1, 3, 2 * t, 2 * h, 2 * w)
    tokens = tokenizer.encode(clip)
    assert tokens.shape == (1, *tokenizer.spec.latent_shape(2 * t, 2 * h, 2 * w))
    assert tokenizer.decode(tokens).shape == clip.shape


def test_reflection_mirrors_without_repeating_the_border():
    conv = small(padding="reflect").encoder[0]
    assert isinstance(conv, torch.nn.Conv3d)
    x = video(1, 3, 4, 4, 4)
    padded = x[:, :, [1, 0, 1, 2, 3, 2]][:, :, :, [1, 0, 1, 2, 3, 2]][..., [1, 0, 1, 2, 3, 2]]
    expected = torch.nn.functional.conv3d(padded, conv.weight)
    assert torch.allclose(conv(x), expected, atol=1e-6)


def test_odd_ends_are_averaged_over_real_cells_only():
    x = torch.arange(5.0).view(1, 1, 1, 1, 5).expand(1, 1, 3, 2, 5)
    assert torch.equal(Down(temporal=True)(x)[0, 0, 1, 0], torch.tensor([0.5, 2.5, 4.0]))


def test_decoding_looks_up_the_encoded_codes():
    tokenizer = small()
    clip = video(2, 3, 4, 8, 8)
    quantized, tokens, _ = tokenizer.quantizer(tokenizer.encode_to_latents(clip))
    assert torch.equal(tokens, tokenizer.encode(clip))
    assert torch.allclose(tokenizer.decoder(quantized) * 2 - 1, tokenizer.decode(tokens), atol=1e-5)


def test_the_loss_reaches_every_parameter():
    tokenizer = small()
    output = tokenizer.forward_train(video(2, 3, 4, 8, 8))
    output.loss.backward()
    assert set(output.losses) == {"reconstruction", "commitment", "codebook", "entropy"}
    assert torch.isclose(output.loss, torch.stack(list(output.losses.values())).sum())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in tokenizer.parameters())


def test_a_few_updates_lower_the_reconstruction_error():
    tokenizer, clip = small(), video(2, 3, 4, 1, 1).expand(-1, -1, -1, 8, 8)
    optimizer = torch.optim.Adam(tokenizer.parameters(), lr=3e-3)
    errors = []
    for _ in range(30):
        output = tokenizer.forward_train(clip)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        errors.append(output.losses["reconstruction"].item())
    assert errors[-1] < 0.5 * errors[0]


def test_uint8_round_trip_is_exact():
    tokenizer = small()
    frames = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16, 1).expand(1, 1, 16, 16, 3)
    assert torch.equal(tokenizer.to_uint8(tokenizer.from_uint8(frames)), frames)
    assert tokenizer.from_uint8(frames).amin() == -1 and tokenizer.from_uint8(frames).amax() == 1


def test_wrong_sizes_and_configurations_are_refused():
    with pytest.raises(UserError, match="multiples of 2"):
        small().encode(video(1, 3, 3, 8, 8))
    with pytest.raises(UserError, match="one flag per stage"):
        VQ3DConfig(temporal_downsample=(True,))
    with pytest.raises(UserError, match="multiple of num_groups"):
        VQ3DConfig(filters=10)
    with pytest.raises(UserError, match="B or L"):
        VQ3DConfig.paper("XL")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("size", [(2, 8, 8), (4, 2, 8), (4, 8, 2)])
def test_reflection_without_a_neighbour_is_refused_and_other_paddings_need_none(size: tuple[int, int, int]):
    video, tokens = torch.zeros(1, 3, *size), torch.zeros(1, *(n // 2 for n in size), dtype=torch.int64)
    for call, given_tensor in ((small().encode, video), (small().decode, tokens)):
        with pytest.raises(UserError, match="at least 4 frames of 4×4, found {} frames of {}×{}".format(*size)):
            call(given_tensor)
    for padding in ("zero", "replicate"):
        assert small(padding=padding).decode(tokens).shape == video.shape
    assert small().encode(torch.zeros(1, 3, 4, 4, 4)).shape == (1, 2, 2, 2)


def test_only_the_2d_network_decodes_frame_by_frame():
    flat = VQ3DConfig(filters=8, channel_multipliers=(1, 1), temporal_downsample=(False,), num_groups=4, per_frame=True)
    assert VQ3D(flat).spec.decodes_in_order
    deep = VQ3D(replace(flat, per_frame=False))  # as many latent frames as frames, but each sees its neighbours
    assert deep.spec.temporal_stride == 1 and not deep.spec.decodes_in_order
    with pytest.raises(AttributeError, match="frame by frame"):
        next(iter(deep.stream_decode([torch.zeros(1, 1, 2, 2, dtype=torch.int64)])))
