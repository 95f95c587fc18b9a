import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mutoscope.training.config import OptimConfig
from mutoscope.training.muon import Muon, orthogonalize
from mutoscope.training.optim import make_optimizer

CONFIG = OptimConfig(peak_learning_rate=1e-2, muon_learning_rate=2e-2, weight_decay=0.1)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(2, 3, 3), nn.GroupNorm(1, 3), nn.Flatten(), nn.Linear(3, 5), nn.Embedding(4, 2))


def gradients(model: nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@given(st.integers(2, 12), st.integers(2, 12), st.integers(0, 99))
def test_singular_values_come_near_one_and_singular_vectors_stay(rows, columns, seed):
    basis = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    u, _, v = torch.linalg.svd(basis, full_matrices=False)
    matrix = u @ torch.diag(torch.linspace(0.3, 1.0, u.shape[1])) @ v
    singular = u.T @ orthogonalize(matrix) @ v.T
    assert singular.diagonal().min() > 0.6 and singular.diagonal().max() < 1.3
    assert (singular - torch.diag(singular.diagonal())).abs().max() < 1e-3


def test_a_zero_gradient_gives_a_zero_update():
    assert torch.equal(orthogonalize(torch.zeros(3, 4)), torch.zeros(3, 4))


def test_matrices_and_kernels_are_orthogonalised_and_the_rest_follows_adam():
    model, reference = network(), network()
    optimizer = make_optimizer(model, CONFIG)
    assert isinstance(optimizer, Muon)
    matrices = {name for name, p in model.named_parameters() for g in optimizer.param_groups if g["orthogonal"]
                if any(p is q for q in g["params"])}  # fmt: skip
    assert matrices == {"0.weight", "3.weight"}

    adam = torch.optim.AdamW(reference.parameters(), lr=1e-2, betas=(0.9, 0.96), weight_decay=0.0)
    gradients(model), gradients(reference)
    optimizer.step(), adam.step()
    for (name, ours), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        assert torch.equal(ours, theirs) == (name not in matrices), name


def test_matrices_of_one_shape_are_updated_together_as_each_would_be_alone():
    torch.manual_seed(0)
    layers = nn.ModuleList([nn.Linear(3, 5), nn.Linear(5, 3), nn.Conv1d(3, 5, 1), nn.Linear(3, 5)])
    alone = [copy.deepcopy(layer) for layer in layers]
    optimizers = [make_optimizer(layer, CONFIG) for layer in alone]
    together = make_optimizer(layers, CONFIG)
    for seed in range(3):
        for i, (layer, single) in enumerate(zip(layers, alone, strict=True)):
            gradients(layer, 10 * seed + i), gradients(single, 10 * seed + i)
        for optimizer in (together, *optimizers):
            optimizer.step()
    for ours, theirs in zip(layers.parameters(), nn.ModuleList(alone).parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_one_update_is_the_formula_of_the_docstring():
    layer = nn.Linear(3, 5, bias=False)
    before, gradient = layer.weight.detach().clone(), torch.randn(5, 3)
    layer.weight.grad = gradient.clone()
    make_optimizer(layer, CONFIG).step()
    momentum = 0.05 * gradient
    nesterov = 0.05 * gradient + 0.95 * momentum
    expected = before * (1 - 2e-2 * 0.1) - 2e-2 * 0.2 * 5**0.5 * orthogonalize(nesterov)
    assert torch.allclose(layer.weight, expected, atol=1e-6)


@pytest.mark.parametrize("cut", [1, 3])
def test_a_restored_optimiser_continues_bit_for_bit(cut):
    straight, resumed = network(), network()
    optimizer = make_optimizer(straight, CONFIG)
    for step in range(5):
        gradients(straight, step)
        optimizer.step()

    first = make_optimizer(resumed, CONFIG)
    for step in range(cut):
        gradients(resumed, step)
        first.step()
    second = make_optimizer(resumed, CONFIG)
    second.load_state_dict(first.state_dict())
    for step in range(cut, 5):
        gradients(resumed, step)
        second.step()
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))
