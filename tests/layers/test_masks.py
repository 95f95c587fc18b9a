import torch
from hypothesis import given
from hypothesis import strategies as st

from mutoscope.layers.masks import causal_mask


@given(queries=st.integers(1, 8), earlier=st.integers(0, 8))
def test_every_query_sees_itself_and_all_before_it(queries: int, earlier: int):
    mask = causal_mask(queries, earlier + queries, torch.device("cpu"))
    assert mask.shape == (queries, earlier + queries)
    for query, row in enumerate(mask.tolist()):
        assert row == [key <= earlier + query for key in range(earlier + queries)]
