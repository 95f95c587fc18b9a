"""Numbers that are not finite are refused by a message that names stage, dtype and remedy."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mutoscope.errors import UserError
from mutoscope.layers.diffusion import DDPM, bounded
from mutoscope.layers.finite import require_finite
from mutoscope.layers.gaussian_diffusion import LearnedVariance

BAD = [math.nan, math.inf, -math.inf]


@given(st.integers(0, 23), st.sampled_from(BAD), st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
def test_one_bad_number_among_many_is_found(position: int, bad: float, dtype: torch.dtype):
    values = torch.full((2, 3, 4), 7.0, dtype=dtype)
    require_finite(values, "The numbers")
    values.view(-1)[position] = bad
    with pytest.raises(UserError, match=f"^The numbers hold .* {str(dtype).removeprefix('torch.')}"):
        require_finite(values, "The numbers")


def test_large_numbers_are_finite_though_their_sum_is_not():
    require_finite(torch.full((4,), 3e38), "The numbers")
    require_finite(torch.full((9,), 6e4, dtype=torch.float16), "The numbers")
    require_finite(torch.zeros(0), "The numbers")
    require_finite(torch.arange(3), "The codes")


@pytest.mark.parametrize(
    ("dtype", "advice"),
    [
        (torch.float16, "use --dtype float32 or bfloat16"),
        (torch.bfloat16, "use --dtype float32"),
        (torch.float32, "the weights are damaged"),
    ],
)
def test_the_remedy_depends_on_the_dtype(dtype: torch.dtype, advice: str):
    with pytest.raises(UserError, match=advice):
        require_finite(torch.tensor(math.nan), "The logits", dtype)
    with pytest.raises(UserError, match=advice.replace("--dtype", "--tokenizer-dtype")):
        require_finite(torch.tensor(math.nan), "The pixels", dtype, option="tokenizer_dtype")


@pytest.mark.parametrize("bad", BAD)
def test_the_bound_of_a_predicted_sample_does_not_hide_an_infinite_prediction(bad: float):
    sample = torch.tensor([0.5, -9.0, bad])
    assert torch.equal(bounded(sample[:2], 3.0), torch.tensor([0.5, -3.0])) and bounded(sample, 3.0)[2].isnan()
    x, output = torch.zeros(1, 2), torch.tensor([[0.1, bad, 0.0, 0.0]])
    learned = LearnedVariance().plan(10, sample_range=3.0)
    assert learned.step(2, x, output, torch.zeros(1, 2)).isfinite().tolist() == [[True, False]]
    clipped = DDPM(clip_sample=True).plan(10)
    assert clipped.step(2, x, output[:, :2], torch.zeros(1, 2)).isfinite().tolist() == [[True, False]]
