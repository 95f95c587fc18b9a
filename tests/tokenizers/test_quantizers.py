import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mutoscope.tokenizers.quantizers import VectorQuantizer, VectorQuantizerConfig, entropy_loss, squared_distances


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


def test_the_first_of_equal_codes_wins():
    q = quantizer()
    with torch.no_grad():
        q.codebook[5] = q.codebook[2]
    assert (q.tokens(q.lookup(torch.full((1, 1, 1, 1), 5))) == 2).all()


def test_gradients_pass_straight_through():
    q, x = quantizer(entropy_cost=0.0, commitment_cost=0.0), latents(1, 3, 1, 2, 2).requires_grad_()
    quantized, _, _ = q(x)
    (quantized * 3.0).sum().backward()
    assert torch.allclose(x.grad, torch.full_like(x, 3.0))
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
def test_sure_and_varied_positions_have_the_lowest_entropy_loss(kind: str):
    sure_and_varied = entropy_loss(100 * torch.eye(8), 1.0, kind)
    sure_and_equal = entropy_loss(100 * torch.eye(8)[:1].expand(8, 8), 1.0, kind)
    assert math.isclose(sure_and_varied.item(), -math.log(8), abs_tol=1e-3)
    assert abs(sure_and_equal.item()) < 1e-3


def test_initial_codes_are_uniform_by_the_number_of_rows():
    codes = quantizer(1024, 64).codebook
    bound = math.sqrt(3 / 1024)
    assert codes.abs().max() <= bound and codes.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
