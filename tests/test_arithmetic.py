import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mutoscope.arithmetic import CountOperations, Operations, matrix_rate, memory_rate
from mutoscope.layers.int8 import quantize_linears
from mutoscope.layers.packed import pack_linears

CPU = torch.device("cpu")
ROWS, IN, OUT = 8, 64, 128
LINEAR = 2 * ROWS * IN * OUT


def linear() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(IN, OUT))


def counted(call: object) -> Operations:
    with CountOperations() as counter:
        call()  # type: ignore[operator]
    return counter.found


def test_a_linear_layer_is_counted_with_and_without_gradients():
    network, x = linear(), torch.randn(ROWS, IN)
    with torch.inference_mode():
        found = counted(lambda: network(x))
    assert found.by_number == {"float32": LINEAR} and found.read_bytes == 4 * IN * OUT
    assert counted(lambda: network(x).sum().backward()).total == 2 * LINEAR  # forward, gradient of the weight
    assert counted(lambda: network(x.requires_grad_()).sum().backward()).total == 3 * LINEAR


def test_packed_and_8_bit_layers_are_the_same_work():
    packed, narrow, x = linear(), linear(), torch.randn(ROWS, IN)
    pack_linears(packed)
    quantize_linears(narrow)
    with torch.inference_mode():
        assert counted(lambda: packed(x)).by_number == {"float32": LINEAR}
        found = counted(lambda: narrow(x))
    assert found.by_number == {"int8": LINEAR} and found.read_bytes == IN * OUT
    with torch.inference_mode():
        assert counted(lambda: narrow(x[:2])).by_number == {"int8": LINEAR // 4}


def test_products_in_16_bits_are_counted_as_such():
    network, x = linear().bfloat16(), torch.randn(ROWS, IN).bfloat16()
    assert counted(lambda: network(x)).by_number == {"bfloat16": LINEAR}


@pytest.mark.parametrize("is_masked", [False, True])
def test_attention_is_two_products_forward_and_four_backward(is_masked: bool):
    q, k, v = (torch.randn(2, 4, n, 16, requires_grad=True) for n in (8, 32, 32))
    mask = torch.ones(8, 32, dtype=torch.bool) if is_masked else None
    forward = 2 * 2 * (2 * 4 * 8 * 32 * 16)

    def attend() -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    assert counted(attend).total == forward
    assert counted(lambda: attend().sum().backward()).total == 3 * forward
    with torch.inference_mode():
        found = counted(attend)
    assert found.total == forward and found.read_bytes == 2 * 4 * k.numel()


def test_convolutions_count_their_kernel_at_every_output():
    x = torch.randn(2, 3, 4, 8, 8, requires_grad=True)
    conv, transposed = nn.Conv3d(3, 5, 3, padding=1), nn.ConvTranspose3d(3, 5, 2, stride=2)
    forward = 2 * (2 * 5 * 4 * 8 * 8) * 3 * 27
    assert counted(lambda: conv(x)).total == forward
    assert counted(lambda: conv(x).sum().backward()).total == 3 * forward
    assert counted(lambda: transposed(x)).total == 2 * (2 * 3 * 4 * 8 * 8) * 5 * 8


def test_counting_changes_no_bit():
    network, x = linear(), torch.randn(ROWS, IN)
    network(x).square().sum().backward()
    expected = [parameter.grad for parameter in network.parameters()]
    network.zero_grad()
    with CountOperations():
        network(x).square().sum().backward()
    found = [parameter.grad for parameter in network.parameters()]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_bound_adds_the_times_of_each_number():
    found = Operations()
    found.by_number.update({"float32": 100, "int8": 300})
    assert found.total == 400
    assert found.seconds({"float32": 50.0, "int8": 100.0}) == pytest.approx(5.0)


def test_rates_of_this_machine_are_plausible():
    """Products of this size take milliseconds, and reading a megabyte microseconds."""
    assert 1e8 < matrix_rate(CPU) < 1e15
    assert 1e8 < matrix_rate(CPU, "int8") < 1e15
    assert 1e8 < memory_rate(CPU, 2**20) < 1e13
