import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mutoscope.layers.masks import causal_mask, first_positions_mask, hide_padding, num_visible


@given(queries=st.integers(1, 8), earlier=st.integers(0, 8))
def test_every_query_sees_itself_and_all_before_it(queries: int, earlier: int):
    mask = causal_mask(queries, earlier + queries, torch.device("cpu"))
    assert mask.shape == (queries, earlier + queries)
    for query, row in enumerate(mask.tolist()):
        assert row == [key <= earlier + query for key in range(earlier + queries)]


CPU = torch.device("cpu")


@given(length=st.integers(1, 40), prefix=st.integers(1, 6), parallel=st.sampled_from([1, 4, 9]), start=st.booleans())
def test_parallel_groups_see_each_other_and_everything_before(length: int, prefix: int, parallel: int, start: bool):
    visible = num_visible(length, prefix, parallel, CPU, start).tolist()
    for position, count in enumerate(visible):
        step = position - (prefix - 1)  # the token predicted here
        if step < (parallel if start else 0):
            assert count == position + 1
        else:
            group = step // parallel
            assert count == prefix - 1 + parallel * (group + 1) > position
    assert visible == sorted(visible)


def test_one_token_at_a_time_is_plain_causality():
    visible = num_visible(7, 3, 1, CPU)
    assert torch.equal(first_positions_mask(visible, 7), causal_mask(7, 7, CPU))


@pytest.mark.parametrize("queries", [5, 2])
def test_padded_columns_are_hidden_but_every_position_sees_itself(queries: int):
    mask = causal_mask(queries, 5, CPU)
    rows = torch.arange(5 - queries, 5)
    hidden = hide_padding(mask, torch.tensor([[False, True], [True, True]]), rows)  # (2, 1, queries, 5)
    assert torch.equal(hidden[1, 0], mask)
    for query, row in enumerate(hidden[0, 0].tolist()):
        position = 5 - queries + query
        assert row == [key <= position and (key != 0 or position == 0) for key in range(5)]
