import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mutoscope.errors import UserError
from mutoscope.tokenizers.quantizers import (
    EntropyKind,
    FiniteScalarQuantizer,
    GaussianBottleneck,
    LookupFreeQuantizer,
    VectorQuantizer,
    VectorQuantizerConfig,
    entropy_loss,
    squared_distances,
)


def quantizer(size: int = 12, dim: int = 3, **overrides) -> VectorQuantizer:
    torch.manual_seed(0)
    return VectorQuantizer(VectorQuantizerConfig(size, dim, **overrides))


def latents(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(n=st.integers(1, 20), k=st.integers(1, 20), d=st.integers(1, 8), seed=st.integers(0, 99))
def test_distances_are_squared_distances(n: int, k: int, d: int, seed: int):
    x, codes = latents(n, d, seed=seed), latents(k, d, seed=seed + 1)
    assert torch.allclose(squared_distances(x, codes), torch.cdist(x, codes) ** 2, atol=1e-4)


def test_tokens_are_the_nearest_codes():
    q = quantizer()
    x = latents(1, 3, 2, 2, 2) * 0.3
    flat = x.permute(0, 2, 3, 4, 1).reshape(-1, 3)
    assert torch.equal(q.tokens(x).flatten(), torch.cdist(flat, q.codebook).argmin(1))


@given(tokens=st.lists(st.integers(0, 11), min_size=8, max_size=8))
def test_codes_are_their_own_nearest(tokens: list[int]):
    q, grid = quantizer(), torch.tensor(tokens).view(1, 2, 2, 2)
    assert torch.equal(q.tokens(q.lookup(grid)), grid)


def test_ties_select_the_first_of_equal_codes():
    q = quantizer()
    with torch.no_grad():
        q.codebook[5] = q.codebook[2]
    assert (q.tokens(q.lookup(torch.full((1, 1, 1, 1), 5))) == 2).all()


def test_gradients_pass_straight_through():
    q, x = quantizer(entropy_cost=0.0, commitment_cost=0.0), latents(1, 3, 1, 2, 2).requires_grad_()
    quantized, _, _ = q(x)
    (quantized * 3.0).sum().backward()
    assert x.grad is not None and torch.allclose(x.grad, torch.full_like(x, 3.0))
    assert q.codebook.grad is None or q.codebook.grad.abs().sum() == 0


def test_commitment_moves_latents_and_codebook_loss_moves_codes():
    q, x = quantizer(), latents(1, 3, 1, 2, 2).requires_grad_()
    _, _, losses = q(x)
    assert torch.isclose(losses["codebook"], 4 * losses["commitment"])
    losses["commitment"].backward(retain_graph=True)
    assert x.grad is not None and q.codebook.grad is None
    losses["codebook"].backward()
    assert q.codebook.grad is not None and q.codebook.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", ["softmax", "argmax"])
def test_confident_and_varied_codes_have_the_lowest_entropy_loss(kind: EntropyKind):
    sure_and_varied = entropy_loss(100 * torch.eye(8), 1.0, kind)
    sure_and_equal = entropy_loss(100 * torch.eye(8)[:1].expand(8, 8), 1.0, kind)
    assert math.isclose(sure_and_varied.item(), -math.log(8), abs_tol=1e-3)
    assert abs(sure_and_equal.item()) < 1e-3


def test_initial_codes_are_uniform_by_the_number_of_rows():
    codes = quantizer(1024, 64).codebook
    bound = math.sqrt(3 / 1024)
    assert codes.abs().max() <= bound and codes.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)


@given(bits=st.integers(1, 12), seed=st.integers(0, 99))
def test_lookup_free_codes_are_signs_and_every_code_is_its_own_nearest(bits: int, seed: int):
    network = LookupFreeQuantizer(bits)
    x = torch.randn(2, bits, 1, 2, 3, generator=torch.Generator().manual_seed(seed))
    codes, tokens, _ = network(x)
    assert torch.equal(codes.sign(), x.sign()) and tokens.max() < 2**bits
    assert torch.equal(network.lookup(tokens), codes.sign())
    assert torch.equal(network.encode(network.lookup(tokens)), tokens)


def test_lookup_free_entropy_equals_the_entropy_over_all_codes():
    bits = 4
    network = LookupFreeQuantizer(bits, entropy_temperature=0.5)
    x = torch.randn(2, bits, 1, 2, 3, generator=torch.Generator().manual_seed(0))
    flat = x.permute(0, 2, 3, 4, 1).reshape(-1, bits)
    codes = network.lookup(torch.arange(2**bits).view(1, 1, 1, -1)).reshape(bits, -1).T  # (16, bits)
    expected = entropy_loss(-squared_distances(flat, codes), 0.5)
    torch.testing.assert_close(network.entropy(x), expected, atol=1e-5, rtol=1e-5)


@given(levels=st.lists(st.integers(2, 9), min_size=1, max_size=4).map(tuple))
def test_every_finite_scalar_code_is_its_own_nearest(levels: tuple[int, ...]):
    network = FiniteScalarQuantizer(levels)
    tokens = torch.arange(math.prod(levels)).view(1, 1, 1, -1)
    codes = network.lookup(tokens)
    assert codes.abs().max() <= 1
    half = torch.tensor([level // 2 for level in levels]).view(-1, 1, 1, 1)
    assert torch.equal(network._ids(codes * half), tokens)


@given(levels=st.lists(st.integers(2, 9), min_size=1, max_size=4).map(tuple))
def test_finite_scalar_rounding_reaches_every_level_and_lets_gradients_through(levels: tuple[int, ...]):
    network = FiniteScalarQuantizer(levels)
    sweep = torch.linspace(-8, 8, 400).view(1, 1, 1, 1, -1).expand(1, len(levels), 1, 1, -1)
    latents = sweep.clone().requires_grad_()
    codes, tokens, losses = network(latents)
    assert [len(codes[0, i].unique()) for i in range(len(levels))] == list(levels) and not losses
    assert torch.equal(network.encode(latents), tokens)
    torch.testing.assert_close(network.lookup(tokens), codes.detach())
    codes.sum().backward()
    assert latents.grad is not None and latents.grad[..., 200].abs().min() > 0


def test_gaussian_bottleneck_draws_around_the_mean_and_vanishes_at_the_prior():
    bottleneck = GaussianBottleneck(1.0, 3)
    latents = torch.cat([torch.full((4, 3, 2, 8, 8), 0.5), torch.zeros(4, 3, 2, 8, 8)], dim=1)
    draw, mean, _ = bottleneck(latents, torch.Generator().manual_seed(0))
    assert torch.equal(mean, latents[:, :3]) and torch.equal(bottleneck.encode(latents), mean)
    assert abs((draw - mean).std().item() - 1) < 0.05
    assert torch.equal(bottleneck(latents)[0], mean)
    assert bottleneck(torch.zeros(1, 6, 1, 2, 2))[2]["kl"] == 0


def some_moments() -> torch.Tensor:
    """Means of different spread with noise of different size, in three channels."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(8, 3, 2, 8, 8, generator=generator) * torch.tensor([4.0, 1.0, 0.5]).view(3, 1, 1, 1) + 2
    noise = torch.tensor([0.1, 0.1, 0.5]).log().mul(2).view(3, 1, 1, 1).expand_as(means)
    return torch.cat([means, noise], dim=1)


def test_latents_of_one_variance_in_every_channel():
    bottleneck = GaussianBottleneck(1.0, 3)
    bottleneck.normalize([some_moments()])
    latents = bottleneck.encode(some_moments())
    torch.testing.assert_close(latents.std((0, 2, 3, 4)), torch.ones(3), atol=1e-3, rtol=0)


def test_latents_of_one_noise_in_every_channel_and_one_variance_together():
    bottleneck = GaussianBottleneck(1.0, 3, "posterior")
    bottleneck.normalize(some_moments().split(2))
    latents = bottleneck.encode(some_moments())
    assert latents.square().mean().sqrt().item() == pytest.approx(1, abs=0.01)
    noise = torch.tensor([0.1, 0.1, 0.5]) * bottleneck.latent_scale
    torch.testing.assert_close(noise, noise[:1].expand(3), atol=1e-4, rtol=1e-4)
    spread = latents.std((0, 2, 3, 4))
    assert spread[0] / spread[1] == pytest.approx(4, rel=0.05) and spread[1] / spread[2] == pytest.approx(10, rel=0.05)
    torch.testing.assert_close(bottleneck.lookup(latents), some_moments()[:, :3], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "encode",
    [
        quantizer().tokens,
        quantizer(normalized=True).tokens,
        LookupFreeQuantizer(3).encode,
        FiniteScalarQuantizer((3, 5, 4)).encode,
    ],
)
def test_latents_that_are_not_finite_have_no_codes(encode, bad: float):
    x = latents(1, 3, 1, 2, 2)
    encode(x)
    x[0, 1, 0, 1, 1] = bad
    with pytest.raises(UserError, match="^The latents of the tokenizer's encoder hold"):
        encode(x)
