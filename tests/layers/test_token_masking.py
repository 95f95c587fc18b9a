import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mutoscope.layers.token_masking import SMALLEST_RATIO, cosine_mask_ratio, num_masked_tokens, select_lowest


@given(st.floats(0, 1))
def test_cosine_ratio_stays_in_its_range(progress: float):
    ratio = cosine_mask_ratio(torch.tensor(progress))
    assert SMALLEST_RATIO * 0.999 <= float(ratio) <= 1


def test_cosine_ratio_at_known_points():
    ratio = cosine_mask_ratio(torch.tensor([0.0, 2 / 3, 1.0]))
    torch.testing.assert_close(ratio, torch.tensor([1.0, 0.5, 1e-6]))


def test_counts_are_floored_in_float32_and_never_zero():
    # 48 * (1 - 4/12) is 32 in exact arithmetic; in float32 the product falls just below it.
    progress = torch.tensor(4.0) / torch.tensor(12.0)
    assert int(num_masked_tokens(1 - progress, 48)) == 31
    assert int(num_masked_tokens(torch.tensor(1e-6), 48)) == 1
    assert num_masked_tokens(torch.tensor([0.5, 0.5]), torch.tensor([5, 8])).tolist() == [2, 4]


@given(st.integers(0, 12), st.integers(0, 2**16))
def test_distinct_scores_give_exactly_the_count(count: int, seed: int):
    scores = torch.randperm(12, generator=torch.Generator().manual_seed(seed)).float()[None]
    selected = select_lowest(scores, torch.tensor([count]))
    assert int(selected.sum()) == count
    if 0 < count < 12:
        assert scores[selected].max() < scores[~selected].min()


def test_ties_at_the_threshold_are_all_selected():
    selected = select_lowest(torch.tensor([[0.0, 1.0, 1.0, 2.0]]), torch.tensor([2]))
    assert selected.tolist() == [[True, True, True, False]]


@pytest.mark.parametrize("counts", [[0, 4], [1, 3]])
def test_every_row_has_its_own_count(counts: list[int]):
    scores = torch.arange(4.0).expand(2, 4)
    assert select_lowest(scores, torch.tensor(counts)).sum(1).tolist() == counts
