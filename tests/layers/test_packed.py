"""Linear layers with packed weights."""

import copy

import pytest
import torch
from torch import nn

from mutoscope.layers import packed
from mutoscope.layers.packed import PackedLinear, pack_linears

pytestmark = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="torch was built without these products")


def linear(outputs: int, inputs: int, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs, bias)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("outputs, inputs", [(128, 64), (101, 72), (64, 104)])
@pytest.mark.parametrize("rows", [1, 4, 8, 33])
def test_products_are_those_of_the_plain_layer(rows: int, outputs: int, inputs: int, bias: bool):
    plain = linear(outputs, inputs, bias)
    layer = PackedLinear(plain)
    x = torch.randn(rows, inputs, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(layer(x), plain(x), rtol=1e-5, atol=1e-6)


def test_weights_are_packed_once_and_the_two_newest_row_counts_are_kept():
    layer, kept = PackedLinear(linear(64, 64)), []
    with torch.no_grad():
        for rows in (8, 5, 2, 8, 6, 7):
            layer(torch.ones(rows, 64))
            kept.append(dict(layer.packed.by_rows))
    assert [list(forms) for forms in kept] == [[8], [8, 5], [8, 5], [8, 5], [5, 6], [6, 7]]
    assert kept[3][8] is kept[0][8]


def test_no_product_depends_on_earlier_ones():
    layer = PackedLinear(linear(128, 64))
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        first = layer(x)
        for rows in (5, 6, 7, 9):
            layer(torch.ones(rows, 64))
        assert torch.equal(layer(x), first) and torch.equal(layer(x), first)


def test_copies_pack_their_own_weights():
    layer, x = PackedLinear(linear(64, 64)), torch.ones(8, 64)
    with torch.no_grad():
        expected = layer(x)
        copied = copy.deepcopy(layer)
        assert not copied.packed.by_rows and torch.equal(copied(x), expected)


@pytest.mark.parametrize("shape", [(2, 4, 64), (8, 1, 64), (64,)])
@pytest.mark.parametrize("inference", [True, False])
def test_any_shape_of_input_is_accepted(shape: tuple[int, ...], inference: bool):
    layer = PackedLinear(linear(80, 64))
    x = torch.randn(*shape[:-1], 128, generator=torch.Generator().manual_seed(1))[..., ::2]  # in larger strides
    with torch.inference_mode(inference), torch.no_grad():
        layer(x)
        torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.weight, layer.bias), rtol=1e-5, atol=1e-6)


def test_changed_weights_are_packed_again():
    layer, x = PackedLinear(linear(64, 64, bias=False)), torch.ones(8, 64)
    with torch.no_grad():
        layer(x), layer(x)
        layer.weight.mul_(2)
        torch.testing.assert_close(layer(x), x @ layer.weight.T)
        layer.weight.data = torch.eye(64)
        torch.testing.assert_close(layer(x), x)


def test_gradients_pass_and_the_state_dict_is_that_of_the_plain_layer():
    plain = linear(64, 64)
    layer, x = PackedLinear(plain), torch.ones(8, 64)
    with torch.no_grad():
        layer(x), layer(x)
    layer(x).sum().backward()
    assert layer.weight is plain.weight and plain.weight.grad is not None
    assert torch.equal(plain.weight.grad, torch.full((64, 64), 8.0))
    assert layer.state_dict().keys() == plain.state_dict().keys()


def test_other_dtypes_take_the_plain_product():
    layer = PackedLinear(linear(64, 64)).bfloat16()
    with torch.no_grad():
        x = torch.ones(8, 64, dtype=torch.bfloat16)
        layer(x)
        assert layer(x).dtype == torch.bfloat16 and not layer.packed.by_rows


def test_only_matrices_worth_it_are_replaced(monkeypatch: pytest.MonkeyPatch):
    def network() -> nn.Sequential:
        return nn.Sequential(linear(64, 64), nn.Sequential(linear(63, 64), linear(128, 64)), nn.Embedding(100, 64))

    found = network()
    pack_linears(found)
    kinds = [type(module) for module in found.modules() if isinstance(module, nn.Linear)]
    assert kinds == [PackedLinear, nn.Linear, PackedLinear]
    half = network().half()
    pack_linears(half)
    assert not any(isinstance(module, PackedLinear) for module in half.modules())
    monkeypatch.setattr(packed, "MAX_BYTES", 4 * (64 * 64 + 128 * 64) - 1)
    large = network()
    pack_linears(large)
    assert not any(isinstance(module, PackedLinear) for module in large.modules())
