import inspect
import math

import pytest
import torch

from mutoscope.layers.attention import attention


def test_equals_the_formula():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 8, generator=generator) for n in (4, 5, 5))
    mask = torch.rand(4, 5, generator=generator) < 0.7
    mask[:, 0] = True
    scores = (q @ k.transpose(-1, -2) / math.sqrt(8)).masked_fill(~mask, -math.inf)
    torch.testing.assert_close(attention(q, k, v, mask), scores.softmax(-1) @ v)


def test_a_hidden_key_has_no_influence():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 1, 3, 4, generator=generator) for _ in range(3))
    mask = torch.ones(3, 3, dtype=torch.bool)
    mask[:, 2] = False
    before = attention(q, k, v, mask)
    v[..., 2, :] += 100
    torch.testing.assert_close(attention(q, k, v, mask), before)
    assert not torch.allclose(attention(q, k, v, None), before)


def test_the_mask_is_a_required_argument():
    assert inspect.signature(attention).parameters["mask"].default is inspect.Parameter.empty
    with pytest.raises(TypeError):
        attention(*(torch.zeros(1, 1, 2, 4) for _ in range(3)))  # type: ignore[call-arg]


def test_training_in_half_precision_agrees_with_single_precision():
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(2, 3, 5, 8, generator=generator).bfloat16() for _ in range(3)]
    single = [part.float().requires_grad_() for part in parts]
    half = [part.clone().requires_grad_() for part in parts]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = attention(*half, None)
    assert out.dtype == torch.bfloat16
    expected = attention(*single, None)
    torch.testing.assert_close(out.float(), expected, atol=2e-2, rtol=2e-2)
    out.float().square().sum().backward()
    expected.square().sum().backward()
    for a, b in zip(half, single, strict=True):
        torch.testing.assert_close(a.grad.float(), b.grad, atol=0.1, rtol=0.05)
