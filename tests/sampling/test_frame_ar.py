import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mutoscope.errors import UserError
from mutoscope.layers.diffusion import DDPM
from mutoscope.layers.shortcut import Shortcut
from mutoscope.sampling.base import SampleEvent
from mutoscope.sampling.frame_ar import FrameARSampler, FrameARSamplerConfig, FrameCondition, combine, set_sizes
from tiny_nova import condition, tiny_nova

CONFIG = FrameARSamplerConfig(num_decoding_steps=4, num_diffusion_steps=3, guidance_scale=3.0)


def sample(model, config=CONFIG, frames=3, seed=0, given=None, count=2, guided=True) -> list[SampleEvent]:
    chosen = dataclasses.replace(condition(model, count, guided), num_frames=frames, context=given)
    return list(FrameARSampler(config).sample(model, chosen, torch.Generator().manual_seed(seed)))


@settings(max_examples=60, deadline=None)
@given(steps=st.integers(1, 200), tokens=st.integers(1, 300))
def test_sets_cover_every_token_once(steps, tokens):
    sizes = set_sizes(steps, tokens)
    assert len(sizes) == steps and sum(sizes) == tokens and min(sizes) >= 0


def test_every_token_is_decided_once_and_frames_finish_in_order():
    events = sample(tiny_nova())
    assert torch.stack([event.decided for event in events]).sum(0).eq(1).all()
    finished = [event.frames for event in events if event.frames is not None]
    assert finished == [slice(0, 1), slice(1, 2), slice(2, 3)]
    assert [event.step for event in events] == list(range(events[0].num_steps))
    assert events[-1].is_last and not any(event.is_last for event in events[:-1])


def test_decided_tokens_never_change_again():
    events = sample(tiny_nova())
    last = events[-1].proposal
    for before in events[:-1]:
        written = before.proposal != 0
        assert torch.equal(before.proposal[written], last[written])


def test_a_clip_depends_on_its_seed_and_caption_but_not_on_its_neighbours():
    model = tiny_nova()
    first = sample(model)[-1].proposal
    assert torch.equal(first, sample(model)[-1].proposal)
    assert not torch.equal(first, sample(model, seed=1)[-1].proposal)
    assert not torch.equal(first[0], first[1])


def test_equal_prompts_read_once_give_what_separate_rows_give():
    model = tiny_nova()
    once = condition(model, 1)
    shared = FrameCondition(once.prefix, torch.tensor([0, 0, 1, 1]), 2, num_frames=3)
    apart = FrameCondition(once.prefix[[0, 0, 1, 1]], torch.arange(4), 2, num_frames=3)
    results = []
    for chosen in (shared, apart):
        events = FrameARSampler(CONFIG).sample(model, chosen, torch.Generator().manual_seed(0))
        results.append(list(events)[-1].proposal)
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-4)


def test_given_frames_stay_and_condition_what_follows():
    model = tiny_nova()
    given = torch.randn(2, 3, 2, 8, 8)
    events = sample(model, frames=4, given=given)
    assert torch.equal(events[-1].proposal[:, :, :2], given)
    assert [event.frames for event in events if event.frames is not None] == [slice(0, 3), slice(3, 4)]
    for frame in range(2):  # each given frame matters, not only the last
        other = given.clone()
        other[:, :, frame] += 1
        assert not torch.allclose(
            sample(model, frames=4, given=other)[-1].proposal[:, :, 2:], events[-1].proposal[:, :, 2:]
        )
    with pytest.raises(UserError, match="nothing is left"):
        sample(model, frames=2, given=given)


def test_guidance_of_one_needs_no_second_pass():
    model = tiny_nova()
    off = dataclasses.replace(CONFIG, guidance_scale=1.0)
    alone = sample(model, off, guided=False)[-1].proposal
    nearly = dataclasses.replace(CONFIG, guidance_scale=1.0 + 1e-7)
    torch.testing.assert_close(sample(model, nearly)[-1].proposal, alone, atol=1e-4, rtol=1e-3)


def test_truncation_above_all_times_turns_guidance_off():
    model = tiny_nova()
    truncated = sample(model, dataclasses.replace(CONFIG, guidance_trunc=2000.0))[-1].proposal
    alone = sample(model, dataclasses.replace(CONFIG, guidance_scale=1.0), guided=False)[-1].proposal
    torch.testing.assert_close(truncated, alone, atol=1e-5, rtol=1e-4)


def test_ddpm_models_decode_too_and_refuse_a_flow_shift():
    model = tiny_nova(diffusion=DDPM())
    assert sample(model)[-1].proposal.isfinite().all()
    with pytest.raises(UserError, match="flow_shift"):
        sample(model, dataclasses.replace(CONFIG, flow_shift=2.0))


@pytest.mark.parametrize("steps", [1, 4])
def test_a_head_that_reads_the_lengths_of_its_steps_decodes_in_few(steps: int):
    model = tiny_nova(diffusion=Shortcut(8))
    assert sample(model, dataclasses.replace(CONFIG, num_diffusion_steps=steps))[-1].proposal.isfinite().all()
    with pytest.raises(UserError, match="1, 2, 4 … 8 diffusion steps or more, found 3"):
        sample(model, dataclasses.replace(CONFIG, num_diffusion_steps=3))


@pytest.mark.parametrize("positions", ["absolute", "rotary"])
def test_refreshing_seldom_approximates_and_every_time_is_exact(positions):
    model = tiny_nova(positions=positions)
    config = dataclasses.replace(CONFIG, num_decoding_steps=8)
    exact = sample(model, config)[-1].proposal
    near, far = (sample(model, dataclasses.replace(config, context_refresh=n))[-1].proposal for n in (2, 8))
    other = sample(model, config, seed=1)[-1].proposal
    assert not torch.equal(near, exact) and near.isfinite().all()
    assert 0 < (near - exact).norm() < 0.5 * (other - exact).norm()
    assert (far - exact).norm() < (other - exact).norm()


def test_refreshing_seldom_computes_less_between(monkeypatch: pytest.MonkeyPatch):
    model, calls = tiny_nova(), []
    for name, label in (("fill", "all"), ("fill_in_part", "part")):
        method = getattr(model, name)
        counted = lambda *a, m=method, said=label, **k: (calls.append(said), m(*a, **k))[1]  # noqa: E731
        monkeypatch.setattr(model, name, counted)
    events = sample(model, dataclasses.replace(CONFIG, num_decoding_steps=5, context_refresh=3), frames=2)
    sets = events[-1].num_steps // 2
    assert calls == [("all" if index % 3 == 0 else "part") for index in range(sets)] * 2 and sets > 3


def test_renorm_never_lengthens_what_guidance_made():
    outputs = torch.randn(2, 4, 6).abs(), torch.zeros(2, 4, 6)
    plain = combine(outputs, torch.zeros(2, 0, 6), 4.0, CONFIG)
    bounded = combine(outputs, torch.zeros(2, 0, 6), 4.0, dataclasses.replace(CONFIG, guidance_renorm=0.5))
    torch.testing.assert_close(bounded, plain * 0.5)
    free = combine(outputs, torch.zeros(2, 0, 6), 4.0, dataclasses.replace(CONFIG, guidance_renorm=0.1))
    torch.testing.assert_close(free, outputs[0])


@pytest.mark.parametrize(
    "changes",
    [
        {"num_decoding_steps": 0},
        {"num_diffusion_steps": 1001},
        {"guidance_scale": float("nan")},
        {"guidance_renorm": 0.0},
        {"flow_shift": -1.0},
        {"context_refresh": 0},
    ],
)
def test_senseless_options_are_refused(changes):
    with pytest.raises(UserError):
        dataclasses.replace(CONFIG, **changes)
