from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mutoscope.errors import UserError
from mutoscope.models.par import PAR, PARConfig
from mutoscope.sampling.parallel_ar import (
    ParallelARSampler,
    ParallelARSamplerConfig,
    PrefillMemo,
    PrefixCondition,
    group_starts,
)

SMALL = PARConfig(2, 16, 2, codebook_size=11, latent_shape=(3, 4, 4), num_parallel=4, num_classes=3, mlp_size=24)


def model(**changes) -> PAR:
    torch.manual_seed(0)
    network = PAR(replace(SMALL, **changes)).eval()
    torch.nn.init.normal_(network.output.weight)
    return network


def condition(network: PAR, labels: tuple[int, ...] = (0, 2)) -> PrefixCondition:
    given = torch.tensor(labels)
    return PrefixCondition(network.class_prefix(given, len(given)), network.class_prefix(None, len(given)))


def greedy(logits: Tensor, positions: slice) -> Tensor:
    return logits.argmax(-1)


@pytest.mark.parametrize("shape, n, start, steps", [
    ((1, 24, 24), 4, 4, 147), ((1, 24, 24), 16, 16, 51), ((1, 16, 16), 4, 4, 67), ((1, 16, 16), 16, 16, 31),
    ((5, 16, 16), 4, 4, 323), ((5, 16, 16), 16, 16, 95), ((5, 16, 16), 1, 1, 1280), ((1, 24, 24), 4, 0, 144),
])  # fmt: skip
def test_number_of_steps_is_the_published_one(shape: tuple[int, int, int], n: int, start: int, steps: int):
    assert len(group_starts(shape, n, start)) == steps


@pytest.mark.parametrize("n", [1, 4, 16])
def test_every_token_is_decided_once_and_frames_come_in_order(n: int):
    network = model(num_parallel=n)
    events = list(ParallelARSampler().sample(network, condition(network), torch.Generator().manual_seed(0)))
    assert torch.stack([event.decided for event in events]).sum(0).eq(1).all()
    finished = [event.frames for event in events if event.frames is not None]
    assert [frame for frames in finished for frame in range(frames.start, frames.stop)] == [0, 1, 2]
    assert events[-1].is_last and len(events) == events[0].num_steps
    for event in events:  # whatever is finished does not change any more
        if event.frames is not None:
            assert torch.equal(event.tokens[:, event.frames], events[-1].tokens[:, event.frames])


def test_same_seed_same_clip_and_other_seed_another():
    network = model()
    clips = []
    for seed in (3, 3, 4):
        *_, last = ParallelARSampler().sample(network, condition(network), torch.Generator().manual_seed(seed))
        clips.append(last.tokens)
    assert torch.equal(clips[0], clips[1]) and not torch.equal(clips[0], clips[2])


@settings(max_examples=12, deadline=None)
@given(scale=st.sampled_from([0.5, 1.5, 4.0]), interval=st.sampled_from([None, 0, 3, 7, 40]), n=st.sampled_from([1, 4]))
def test_guidance_equals_two_separate_passes(scale: float, interval: int | None, n: int):
    """Dropping the unconditional half when it is no longer needed, and sharing its first layer, change nothing."""
    network = model(num_parallel=n)
    config = ParallelARSamplerConfig(guidance_scale=scale, guidance_interval=interval)
    given = condition(network)
    seen: list[Tensor] = []

    def recorded(logits: Tensor, positions: slice) -> Tensor:
        seen.append(logits)
        return logits.argmax(-1)

    *_, last = ParallelARSampler(config).sample(network, given, torch.Generator(), draw=recorded)
    tokens = last.tokens.flatten(1)[:, network.token_order()]
    with torch.no_grad():
        assert given.unconditional is not None
        c, u = (network(tokens, prefix) for prefix in (given.prefix, given.unconditional))
    place = 0
    for logits in seen:
        rows = slice(place, place + logits.shape[1])
        wanted = u[:, rows] + scale * (c - u)[:, rows] if config.guides(place, n) else c[:, rows]
        torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=1e-4)
        place = rows.stop


def test_guidance_interval_counts_from_the_start_of_each_stage():
    config = ParallelARSamplerConfig(guidance_scale=2.0, guidance_interval=5)
    guided = [place for place in [*range(9), *range(9, 36, 9)] if config.guides(place, 9)]
    assert guided == [0, 1, 2, 3, 4, 5, 6, 9]
    assert not ParallelARSamplerConfig().guides(0, 9)


def test_remembered_prefixes_are_computed_once(monkeypatch: pytest.MonkeyPatch):
    network, memo = model(), PrefillMemo()
    given = replace(condition(network, (0, 2, 0)), labels=(0, 2, 0, 3, 3, 3))
    sampler = ParallelARSampler(ParallelARSamplerConfig(guidance_scale=1.5))
    *_, plain = sampler.sample(network, given, torch.Generator(), draw=greedy)
    read, sizes = network.read_prefix, []
    monkeypatch.setattr(
        network, "read_prefix", lambda prefix, state: (sizes.append(len(prefix)), read(prefix, state))[1]
    )
    for _ in range(2):
        *_, last = sampler.sample(network, given, torch.Generator(), draw=greedy, memo=memo)
        assert torch.equal(last.tokens, plain.tokens)
    assert sizes == [3]  # labels 0 and 2, and no class


def test_larger_grid_than_the_model_was_trained_on():
    network = model()
    *_, last = ParallelARSampler().sample(
        network, condition(network), torch.Generator().manual_seed(0), latent_shape=(2, 8, 8)
    )
    assert last.tokens.shape == (2, 2, 8, 8)


def test_what_cannot_be_is_refused():
    network = model()
    with pytest.raises(UserError, match="regions"):
        next(ParallelARSampler().sample(network, condition(network), torch.Generator(), latent_shape=(1, 5, 5)))
    with pytest.raises(ValueError, match="unconditional"):
        sampler = ParallelARSampler(ParallelARSamplerConfig(guidance_scale=2.0))
        next(sampler.sample(network, PrefixCondition(condition(network).prefix), torch.Generator()))
    for options in ({"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}, {"guidance_interval": -1}):
        with pytest.raises(UserError):
            replace(ParallelARSamplerConfig(), **options)
