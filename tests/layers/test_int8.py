"""Linear layers with 8-bit weights."""

import pytest
import torch
from torch import nn

from mutoscope.errors import UserError
from mutoscope.layers.int8 import MAX_WEIGHT_ONLY_ROWS, Int8Linear, quantize_linears


def linear(outputs: int, inputs: int, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs, bias)


@pytest.mark.parametrize("rows", [1, 2, MAX_WEIGHT_ONLY_ROWS, MAX_WEIGHT_ONLY_ROWS + 1, 33])
@pytest.mark.parametrize("outputs, inputs", [(128, 64), (101, 72), (64, 104)])
def test_products_are_close_for_any_number_of_rows_and_any_size(outputs: int, inputs: int, rows: int):
    exact = linear(outputs, inputs)
    x = torch.randn(rows, inputs, generator=torch.Generator().manual_seed(1))
    y, expected = Int8Linear(exact.weight, exact.bias)(x), exact(x)
    assert y.dtype == torch.float32 and (y - expected).norm() / expected.norm() < 0.015


def test_more_rows_are_the_product_of_rounded_numbers_exactly():
    exact = linear(64, 64, bias=False)
    layer = Int8Linear(exact.weight)
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(1))
    steps = x.abs().amax(1, keepdim=True) / 127
    integers = (x / steps).round().long() @ layer.weight.long().T
    torch.testing.assert_close(layer(x), integers * steps * layer.scale)
    assert (exact.weight - layer.weight.float() * layer.scale[:, None]).abs().max() <= layer.scale.max() / 2 + 1e-7


@pytest.mark.parametrize("shape", [(2, 3, 64), (1, 1, 64), (64,)])
def test_any_shape_and_dtype_of_input_is_accepted(shape: tuple[int, ...]):
    layer = Int8Linear(linear(80, 64).weight)
    for dtype in (torch.float32, torch.bfloat16):
        y = layer(torch.ones(shape, dtype=dtype))
        assert y.shape == (*shape[:-1], 80) and y.dtype == dtype


@pytest.mark.parametrize("count", [1, 3])
def test_views_of_larger_tensors_are_read_correctly(count: int):
    exact = linear(64, 64)
    layer = Int8Linear(exact.weight.T)  # a view with its columns first
    x = torch.randn(3, count, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    torch.testing.assert_close(layer(x[:, :1]), layer(x[:, :1].clone()))
    expected = x[:, 0].float() @ exact.weight
    assert (layer(x[:, 0]).float() - expected).norm() / expected.norm() < 0.015


def test_zeros_stay_zeros():
    assert Int8Linear(torch.zeros(64, 64))(torch.zeros(9, 64)).eq(0).all()
    assert Int8Linear(torch.zeros(64, 64))(torch.ones(1, 64)).eq(0).all()


def test_only_matrices_worth_it_are_replaced():
    inner = nn.Sequential(linear(63, 64), linear(128, 64))
    network = nn.Sequential(linear(64, 64), inner, nn.Embedding(100, 64))
    quantize_linears(network)
    assert [type(module) for module in (network[0], *inner)] == [Int8Linear, nn.Linear, Int8Linear]
    assert not any(parameter.shape == (128, 64) for parameter in network.parameters())


def test_other_devices_are_refused():
    with torch.device("meta"):
        network = nn.Sequential(nn.Linear(64, 64))
    with pytest.raises(UserError, match="for the CPU"):
        quantize_linears(network)
