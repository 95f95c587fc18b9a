import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mutoscope.data.base import ClipSource
from mutoscope.data.loader import StepSampler, make_loader, stream_index
from mutoscope.errors import UserError


class Indices(ClipSource):
    """A batch source whose batches are their own indices."""

    def __init__(self, num_clips=None):
        self.num_clips = num_clips

    def __getitem__(self, indices):
        return {"index": torch.tensor(indices)}


def flat(sampler):
    return [index for batch in sampler for index in batch]


clips = st.one_of(st.none(), st.integers(1, 20))


@given(num_clips=clips, batch=st.integers(1, 7), steps=st.integers(1, 12), seed=st.integers(0, 9), data=st.data())
def test_a_resumed_order_is_the_tail_of_the_whole_one(num_clips, batch, steps, seed, data):
    start = data.draw(st.integers(0, steps))
    whole = list(StepSampler(num_clips, batch, steps, seed))
    assert list(StepSampler(num_clips, batch, steps, seed, start_step=start)) == whole[start:]
    assert len(StepSampler(num_clips, batch, steps, seed, start)) == steps - start


@given(num_clips=clips, share=st.integers(1, 4), ranks=st.integers(1, 4), steps=st.integers(1, 6))
def test_ranks_share_out_the_batch_of_one_process(num_clips, share, ranks, steps):
    batch = share * ranks
    alone = StepSampler(num_clips, batch, steps)
    parts = [StepSampler(num_clips, batch, steps, rank=rank, world_size=ranks) for rank in range(ranks)]
    for step in range(steps):
        assert [i for part in parts for i in part.indices(step)] == alone.indices(step)


@given(num_clips=st.integers(1, 20), batch=st.integers(1, 7), seed=st.integers(0, 9), epochs=st.integers(1, 3))
def test_every_clip_comes_once_per_epoch_in_an_order_that_changes(num_clips, batch, seed, epochs):
    order = flat(StepSampler(num_clips, batch, epochs * num_clips, seed))[: epochs * num_clips]
    for epoch in range(epochs):
        assert sorted(order[epoch * num_clips : (epoch + 1) * num_clips]) == list(range(num_clips))


def test_the_order_depends_on_the_seed_and_the_epoch():
    orders = [[stream_index(epoch * 50 + i, 50, seed) for i in range(50)] for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4


def test_an_endless_source_is_read_in_order():
    assert list(StepSampler(None, 3, 4, seed=7, start_step=2)) == [[6, 7, 8], [9, 10, 11]]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_change_the_order(workers):
    sampler = StepSampler(10, 4, 9, seed=3)
    batches = [batch["index"].tolist() for batch in make_loader(Indices(10), sampler, num_workers=workers)]
    assert batches == list(sampler)


class Unreadable(Indices):
    def __getitem__(self, indices):
        if 3 in indices:
            raise UserError("clip 3 is damaged")
        if 5 in indices:
            raise FileNotFoundError(2, "No such file", "clip 5")
        return super().__getitem__(indices)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("clip, error, message", [(3, UserError, "clip 3 is damaged"), (5, OSError, "clip 5")])
def test_what_a_source_refuses_arrives_as_it_was_said(workers, clip, error, message):
    with pytest.raises(error) as found:
        list(make_loader(Unreadable(10), [[0], [clip]], num_workers=workers))
    assert message in str(found.value) and "Traceback" not in str(found.value)
