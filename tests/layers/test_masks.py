import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mutoscope.layers.masks import (
    causal_mask,
    first_positions_mask,
    frame_history_mask,
    frame_slots,
    hide_padded_frames,
    hide_padding,
    interleaved,
    num_visible,
    visible_frames,
)


@given(queries=st.integers(1, 8), earlier=st.integers(0, 8))
def test_every_query_sees_itself_and_all_earlier_positions(queries: int, earlier: int):
    mask = causal_mask(queries, earlier + queries, torch.device("cpu"))
    assert mask.shape == (queries, earlier + queries)
    for query, row in enumerate(mask.tolist()):
        assert row == [key <= earlier + query for key in range(earlier + queries)]


CPU = torch.device("cpu")


@given(length=st.integers(1, 40), prefix=st.integers(1, 6), parallel=st.sampled_from([1, 4, 9]), start=st.booleans())
def test_parallel_groups_see_each_other_and_all_earlier_positions(length: int, prefix: int, parallel: int, start: bool):
    visible = num_visible(length, prefix, parallel, CPU, start).tolist()
    for position, count in enumerate(visible):
        step = position - (prefix - 1)  # the token predicted here
        if step < (parallel if start else 0):
            assert count == position + 1
        else:
            group = step // parallel
            assert count == prefix - 1 + parallel * (group + 1) > position
    assert visible == sorted(visible)


def test_one_token_at_a_time_is_causal():
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


# ------------------------------------------------------------------------------------- complete teacher forcing


slots = st.integers(1, 9).flatmap(lambda count: st.tuples(st.just(count), st.integers(0, count - 1), st.booleans()))


@given(slots=slots, window=st.none() | st.integers(1, 9), keeps_first=st.booleans())
def test_a_slot_sees_complete_earlier_frames_and_itself(
    slots: tuple[int, int, bool], window: int | None, keeps_first: bool
):
    frames, masked = frame_slots(*slots)
    mask = frame_history_mask(frames, masked, window, keeps_first)
    for query in range(len(frames)):
        for key in range(len(frames)):
            distance = int(frames[query] - frames[key])
            kept = keeps_first and int(frames[key]) == 0
            earlier = not masked[key] and distance > 0 and (window is None or distance < window or kept)
            assert bool(mask[query, key]) == (earlier or query == key)


@given(slots=slots)
def test_a_masked_frame_sees_the_same_frames_in_training_and_sampling(slots: tuple[int, int, bool]):
    frames, masked = frame_slots(*slots)
    mask = frame_history_mask(frames, masked)
    for row in masked.nonzero().flatten().tolist():
        cached = int(frames[row])
        seen = torch.cat([mask[row, :cached], mask[row, row : row + 1]])
        assert torch.equal(seen, visible_frames(frames[row : row + 1], torch.arange(cached + 1))[0])
        assert int(mask[row].sum()) == cached + 1


@given(slots=slots)
def test_interleaved_slots_are_in_order_of_time_with_copies_after_their_frames(slots: tuple[int, int, bool]):
    frames, masked = frame_slots(*slots)
    order = interleaved(frames, masked)
    assert sorted(order.tolist()) == list(range(len(frames)))
    keys = (2 * frames + masked)[order].tolist()
    assert keys == sorted(keys)


def test_padded_frames_are_hidden_and_see_only_themselves():
    frames, masked = frame_slots(3)
    mask = hide_padded_frames(frame_history_mask(frames, masked), frames, torch.tensor([2, 3]))
    padded = frames == 2
    assert torch.equal(mask[0, padded], torch.eye(6, dtype=torch.bool)[padded])
    assert int(mask[0][:, padded].sum()) == 2
    assert torch.equal(mask[1], frame_history_mask(frames, masked))


def test_an_empty_slot_is_seen_by_no_frame():
    assert visible_frames(torch.tensor([5]), torch.tensor([4, -1, 0, 5, 3]), 3, True)[0].tolist() == [
        True,
        False,
        True,
        True,
        True,
    ]
    assert not visible_frames(torch.tensor([9]), torch.tensor([-1]), None, True).any()
