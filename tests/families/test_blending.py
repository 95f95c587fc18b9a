"""Blending: given pixels stay, their tone spreads, far differences matter less than near ones."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from mutoscope.families.blending import POWER, blend, blended_and_coded, spread
from tiny_models import tiny_tokenizer

SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 7), st.integers(1, 7))


def some_mask(shape: tuple[int, int, int], seed: int) -> torch.Tensor:
    """At least one pixel, at most all."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(shape, generator=generator) < 0.4
    mask.view(-1)[int(torch.randint(mask.numel(), (1,), generator=generator))] = True
    return mask


@settings(max_examples=40, deadline=None)
@given(SHAPES, st.integers(0, 1000), st.floats(-0.4, 0.4))
def test_a_tone_that_is_off_by_a_constant_is_put_right_everywhere(shape, seed, offset):
    mask = some_mask(shape, seed)
    truth = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(seed)) - 0.5
    torch.testing.assert_close(blend(truth + offset, truth, mask), truth, atol=1e-5, rtol=0)


@settings(max_examples=40, deadline=None)
@given(SHAPES, st.integers(0, 1000))
def test_given_pixels_stay_and_the_others_keep_the_range(shape, seed):
    mask, generator = some_mask(shape, seed), torch.Generator().manual_seed(seed)
    generated, given_clip = (2 * torch.rand(n, 3, *shape, generator=generator) - 1 for n in (2, 1))
    result = blend(generated, given_clip, mask)
    assert torch.equal(result[..., mask], given_clip[..., mask].expand(2, -1, -1))
    assert result.abs().max() <= 1


@settings(max_examples=40, deadline=None)
@given(SHAPES, st.integers(0, 1000))
def test_what_is_spread_lies_between_the_given_values(shape, seed):
    mask = some_mask(shape, seed)
    values = torch.randn(1, 2, *shape, generator=torch.Generator().manual_seed(seed)).masked_fill(~mask, 0.0)
    result, known = spread(values, mask), values[0][:, mask]
    assert (result[0].amax((1, 2, 3)) <= known.amax(1) + 1e-4).all()
    assert (result[0].amin((1, 2, 3)) >= known.amin(1) - 1e-4).all()


def test_weights_fall_with_the_distance_to_the_given_power():
    """Between two given pixels the value follows Shepard's formula, as closely as doubling widths allow."""
    mask = torch.zeros(1, 1, 41, dtype=torch.bool)
    mask[..., [0, 40]] = True
    values = torch.zeros(1, 1, 1, 1, 41)
    values[..., 40] = 1.0
    found = spread(values, mask)[0, 0, 0, 0]
    near, far = torch.arange(10, 31).float(), 40 - torch.arange(10, 31).float()
    expected = far**-POWER / (near**-POWER + far**-POWER)
    torch.testing.assert_close(found[10:31], expected, atol=0.05, rtol=0)
    assert (found.diff() > -1e-6).all()


def test_far_pixels_of_large_clips_are_reached():
    mask = torch.zeros(2, 3, 700, dtype=torch.bool)
    mask[0, 0, 0] = True
    result = spread(mask.float()[None, None], mask)
    torch.testing.assert_close(result, torch.ones_like(result))


@pytest.mark.parametrize("num_given", [1, 2])
def test_one_given_clip_may_stand_for_all(num_given):
    generator = torch.Generator().manual_seed(0)
    generated, shown = (torch.randint(256, (n, 8, 8, 8, 3), generator=generator).byte() for n in (2, num_given))
    mask = torch.zeros(8, 8, 8, dtype=torch.bool)
    mask[:, :4] = True
    tokenizer = tiny_tokenizer()
    found = blended_and_coded(tokenizer, generated, shown, mask)
    for i in range(2):
        one = blend(*(tokenizer.from_uint8(x[None]) for x in (generated[i], shown[i % num_given])), mask)
        expected = tokenizer.to_uint8(tokenizer.decode(tokenizer.encode(one)))[0]
        assert (found[i].int() - expected.int()).abs().max() <= 1


def test_frames_without_anything_given_stay_as_they_are():
    generated, shown = torch.randint(256, (2, 1, 8, 8, 8, 3), generator=torch.Generator().manual_seed(0)).byte()
    mask = torch.zeros(8, 8, 8, dtype=torch.bool)
    mask[:2, 3] = True
    tokenizer = tiny_tokenizer()
    one = blend(tokenizer.from_uint8(generated), tokenizer.from_uint8(shown), mask)
    found = blended_and_coded(tokenizer, generated, shown, mask)
    assert torch.equal(found[:, 2:], generated[:, 2:])
    coded = tokenizer.to_uint8(tokenizer.decode(tokenizer.encode(one)))
    assert torch.equal(found[:, :2], coded[:, :2]) and not torch.equal(coded[:, 2:], found[:, 2:])
