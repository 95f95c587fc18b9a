import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mutoscope.errors import UserError
from mutoscope.meta_device import on_meta_device
from mutoscope.tokenizers.vq2d import VQ2D, VQ2DConfig

SMALL = VQ2DConfig(8, (1, 2, 2), 1, 16, 4, 11, num_groups=8)


def small() -> VQ2D:
    torch.manual_seed(0)
    return VQ2D(SMALL).eval()


@pytest.mark.parametrize("stride, count", [(16, 71_883_403), (8, 70_109_835)])
def test_published_sizes_have_the_published_parameter_counts(stride, count: int):
    with on_meta_device():
        tokenizer = VQ2D(VQ2DConfig.paper(stride))
    assert sum(p.numel() for p in tokenizer.parameters()) == count
    assert tokenizer.spec.spatial_stride == stride
    if stride == 16:
        halves = [sum(p.numel() for p in half.parameters()) for half in (tokenizer.encoder, tokenizer.decoder)]
        # The two 1x1 convolutions around the codebook are counted apart in the paper's table.
        assert halves == [29_298_176 + 256 * 8 + 8, 42_449_795 + 8 * 256 + 256]


@settings(max_examples=8, deadline=None)
@given(frames=st.integers(1, 3), rows=st.integers(1, 3), columns=st.integers(1, 3))
@torch.no_grad()
def test_each_frame_is_encoded_and_decoded_separately(frames: int, rows: int, columns: int):
    tokenizer = small()
    video = torch.rand(2, 3, frames, 4 * rows, 4 * columns, generator=torch.Generator().manual_seed(0)) * 2 - 1
    tokens = tokenizer.encode(video)
    assert tokens.shape == (2, *tokenizer.spec.latent_shape(frames, 4 * rows, 4 * columns))
    decoded = tokenizer.decode(tokens)
    for t in range(frames):
        assert torch.equal(tokenizer.encode(video[:, :, t : t + 1]), tokens[:, t : t + 1])
        torch.testing.assert_close(tokenizer.decode(tokens[:, t : t + 1]), decoded[:, :, t : t + 1])


@torch.no_grad()
def test_streamed_decoding_equals_decoding_the_whole():
    tokenizer = small()
    tokens = torch.randint(11, (1, 3, 2, 2), generator=torch.Generator().manual_seed(0))
    streamed = torch.cat(list(tokenizer.stream_decode(tokens.split(1, dim=1))), dim=2)
    torch.testing.assert_close(streamed, tokenizer.decode(tokens))


def test_codes_are_unit_vectors_and_the_length_of_a_latent_does_not_matter():
    quantizer = small().quantizer
    latents = torch.randn(1, 4, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    tokens = quantizer.tokens(latents)
    assert torch.equal(quantizer.tokens(latents * 7), tokens)
    torch.testing.assert_close(quantizer.lookup(tokens).norm(dim=1), torch.ones(1, 1, 3, 3))


def test_training_lowers_the_loss_and_reaches_the_codebook():
    torch.manual_seed(0)
    tokenizer = VQ2D(SMALL)
    video = torch.rand(2, 3, 2, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    optimizer = torch.optim.Adam(tokenizer.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        output = tokenizer.forward_train(video)
        output.loss.backward()
        assert tokenizer.quantizer.codebook.grad is not None and tokenizer.quantizer.codebook.grad.abs().sum() > 0
        optimizer.step()
        losses.append(output.losses["reconstruction"].item())
    assert losses[-1] < 0.7 * losses[0]


def test_pixels_are_truncated_as_the_official_scripts_do():
    values = torch.tensor([-1.2, -1.0, 0.0, 0.996, 2.0])
    frames = small().to_uint8(values.view(1, 1, 1, 1, 5).expand(1, 3, 1, 1, 5))
    assert frames[0, 0, 0, :, 0].tolist() == [0, 0, 128, 254, 255]


def test_wrong_sizes_are_refused():
    with pytest.raises(UserError, match="multiples of 4"):
        small().encode(torch.zeros(1, 3, 1, 6, 8))
    with pytest.raises(UserError, match="num_groups"):
        VQ2DConfig(filters=20)
    with pytest.raises(UserError, match="strides 8 and 16"):
        VQ2DConfig.paper(4)  # type: ignore[arg-type]
