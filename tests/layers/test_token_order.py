import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mutoscope.errors import UserError
from mutoscope.layers.token_order import inverse_order, region_order, regions_per_side

SIDES = st.integers(1, 3)


@given(frames=st.integers(1, 3), side=SIDES, rows=SIDES, columns=SIDES)
def test_every_step_takes_the_same_position_in_every_region(frames: int, side: int, rows: int, columns: int):
    shape, n = (frames, side * rows, side * columns), side**2
    order = region_order(shape, n)
    assert sorted(order.tolist()) == list(range(order.numel()))
    for step in order.view(-1, n).tolist():
        places = [(i // (shape[1] * shape[2]), i // shape[2] % shape[1], i % shape[2]) for i in step]
        assert len({(t, r % rows, c % columns) for t, r, c in places}) == 1
        assert [(r // rows, c // columns) for _, r, c in places] == [(a, b) for a in range(side) for b in range(side)]


@given(frames=st.integers(1, 3), side=SIDES, rows=SIDES)
def test_inverse_order_undoes_the_order(frames: int, side: int, rows: int):
    order = region_order((frames, side * rows, side * rows), side**2)
    assert torch.equal(order[inverse_order(order)], torch.arange(len(order)))


def test_frames_are_finished_one_after_the_other_and_one_token_per_step_is_raster_order():
    order = region_order((3, 4, 6), 4)
    assert (order // 24).tolist() == [0] * 24 + [1] * 24 + [2] * 24
    assert torch.equal(region_order((2, 3, 5), 1), torch.arange(30))


@pytest.mark.parametrize("n, message", [(2, "square"), (0, "square"), (-4, "square"), (9, "3x3 equal regions")])
def test_other_numbers_of_parallel_tokens_are_refused(n: int, message: str):
    with pytest.raises(UserError, match=message):
        regions_per_side((1, 8, 8), n)
