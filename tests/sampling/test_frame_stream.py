"""MAGI's decoding: sets, windows, memory, guidance, streams without an end."""

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mutoscope.errors import UserError
from mutoscope.layers.gaussian_diffusion import LearnedVariance
from mutoscope.layers.shortcut import Shortcut
from mutoscope.models.magi import MAGI, FrameConditions
from mutoscope.sampling.frame_history import StreamCondition
from mutoscope.sampling.frame_stream import FrameStreamSampler, FrameStreamSamplerConfig, masked_counts, set_sizes
from tiny_magi import SAMPLING, batch_of, tiny_magi

Conditioning = Callable[[int], FrameConditions]


def conditioned(count: int, passes: int = 1, actions: Tensor | None = None) -> Conditioning:
    """The same class for every frame; the second pass of guidance has none."""
    label = torch.cat([torch.arange(count) % 3, *[torch.full((count,), -1)] * (passes - 1)])
    interval = torch.ones(len(label), dtype=torch.int64)

    def at(frame: int) -> FrameConditions:
        return FrameConditions(interval, label, None if actions is None else actions[:, frame : frame + 1])

    return at


def config_of(**changes) -> FrameStreamSamplerConfig:
    return FrameStreamSamplerConfig(**{**SAMPLING, **changes})


def sampled(model: MAGI, frames: int, given: Tensor | None = None, seed: int = 0, **changes) -> Tensor:
    config = config_of(**changes)
    sampler, generator = FrameStreamSampler(config), torch.Generator().manual_seed(seed)
    *_, last = sampler.sample(model, StreamCondition(conditioned(2, config.num_passes), 2, frames, given), generator)
    return last.proposal


@given(st.integers(1, 80), st.integers(1, 80))
def test_every_token_is_decided_once(steps, tokens):
    sizes = set_sizes(steps, tokens)
    assert len(sizes) == steps
    assert sum(sizes) == tokens
    assert min(sizes) >= 0
    assert 0 not in sizes or steps > tokens


def test_counts_of_a_published_size():
    counts = masked_counts(64, 256)
    assert counts[:4] == [256, 255, 254, 253]
    assert counts[-5:] == [31, 25, 18, 12, 6]


MODES = ["sliding", "anchored", "chunked", "growing"]
CHANGE = {"predicts_change": True, "diffusion": LearnedVariance(prediction="sample")}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("changes", [{}, {"codebook_parts": (8, 4)}, {"teacher_forcing": "masked"}, CHANGE])
def test_a_cache_changes_nothing(mode, changes):
    model = tiny_magi(**changes)
    with_cache = sampled(model, 9, window_mode=mode, guidance_scale=2.0)
    without = sampled(model, 9, window_mode=mode, guidance_scale=2.0, use_cache=False)
    torch.testing.assert_close(with_cache, without, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("changes", [{}, CHANGE], ids=["plain", "change"])
def test_a_cache_changes_nothing_where_one_pass_sees_no_history(changes):
    model, options = tiny_magi(**changes), {"guidance_scale": 2.0, "guidance_by": "history"}
    torch.testing.assert_close(
        sampled(model, 7, **options), sampled(model, 7, use_cache=False, **options), atol=1e-4, rtol=1e-4
    )


RELATIVE = {"time_positions": "relative", "window": 3, "clean_first_frame": True}
FIRST_KEPT = {**RELATIVE, "window": 2, "keeps_first": True, "noise_mode": "channel"}


@pytest.mark.parametrize("options", [{}, {"guidance_scale": 2.0}, {"guidance_scale": 2.0, "guidance_by": "history"}])
@pytest.mark.parametrize("changes", [RELATIVE, FIRST_KEPT, RELATIVE | CHANGE, RELATIVE | {"codebook_parts": (8, 4)}])
def test_a_rolling_cache_gives_what_reading_all_frames_anew_gives(changes, options):
    model = tiny_magi(**changes)
    given = batch_of(model)["tokens"]
    given = given[..., :4, :, :]  # longer than the window
    rolling = sampled(model, 11, given, window_mode="rolling", **options)
    for other in ({"window_mode": "rolling", "use_cache": False}, {"window_mode": "growing"}):
        torch.testing.assert_close(rolling, sampled(model, 11, given, **other, **options), atol=1e-4, rtol=1e-4)


def test_a_rolling_cache_reads_every_frame_once_and_keeps_its_size(monkeypatch):
    model, frames, sizes = tiny_magi(**FIRST_KEPT), [], set()
    observe = model.observe

    def watched(cache, tokens, *rest):
        frames.append(tokens.shape[1])
        observe(cache, tokens, *rest)
        sizes.add(tuple(cache.keys.shape))

    monkeypatch.setattr(model, "observe", watched)
    condition = StreamCondition(conditioned(2), 2)
    events = FrameStreamSampler(config_of(window_mode="rolling")).sample(model, condition, torch.Generator())
    list(itertools.islice((event for event in events if event.frames is not None), 30))
    assert frames == [1] * 29
    assert len(sizes) == 1


@pytest.mark.parametrize("keeps_first", [False, True])
def test_a_rolling_window_forgets_all_but_the_first_frame(keeps_first):
    model = tiny_magi(num_layers=1, **{**RELATIVE, "keeps_first": keeps_first})  # what later layers know goes further
    first = batch_of(model)["tokens"]
    for changed in range(4):
        second = first.clone()
        second[:, :, changed] += 1.0
        one, other = (sampled(model, 6, given, window_mode="rolling")[:, :, 5] for given in (first, second))
        seen = changed >= 3 or (keeps_first and changed == 0)
        assert torch.allclose(one, other) != seen


@pytest.mark.parametrize("options", [{}, {"guidance_scale": 2.0}])
@pytest.mark.parametrize("steps", [1, 4, 8, 11])
def test_a_head_that_reads_the_lengths_of_its_steps_samples_in_any_number_it_knows(steps, options):
    model = tiny_magi(diffusion=Shortcut(8), **RELATIVE)
    options = options | {"num_diffusion_steps": steps, "sample_range": None}
    rolling = sampled(model, 6, window_mode="rolling", **options)
    torch.testing.assert_close(rolling, sampled(model, 6, window_mode="growing", **options), atol=1e-4, rtol=1e-4)
    assert rolling.isfinite().all()


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"diffusion": Shortcut(8)}, {"num_diffusion_steps": 3, "sample_range": None}, "1, 2, 4 … 8 diffusion steps"),
        ({"diffusion": Shortcut(8)}, {"num_diffusion_steps": 4}, "has no sample_range"),
        ({}, {"window_mode": "rolling"}, "needs a network with relative positions"),
        (RELATIVE, {}, "has window_mode rolling"),
        (RELATIVE, {"window_mode": "rolling", "window": 4}, "leave out window, found 4"),
        (RELATIVE, {"window_mode": "rolling", "use_cache": False}, "without a cache has no end"),
    ],
)
def test_a_window_that_does_not_go_with_the_positions_is_refused(changes, options, message):
    sampler = FrameStreamSampler(config_of(**options))
    with pytest.raises(UserError, match=message):
        next(sampler.sample(tiny_magi(**changes), StreamCondition(conditioned(2), 2), torch.Generator()))


@pytest.mark.parametrize("changes", [RELATIVE, FIRST_KEPT])
@pytest.mark.parametrize("before", [1, 2, 7])
@torch.no_grad()  # the checks of shapes in tests hide from torch that a sampler's method is a generator
def test_a_rolling_stream_goes_on_from_any_of_its_frames(changes, before):
    model = tiny_magi(**changes)
    sampler, condition = FrameStreamSampler(config_of(window_mode="rolling")), StreamCondition(conditioned(2), 2)
    events = (e for e in sampler.sample(model, condition, torch.Generator().manual_seed(3)) if e.frames is not None)
    *_, marked = itertools.islice(events, before)
    assert marked.again is not None
    again = (e for e in marked.again() if e.frames is not None)
    expected = [e.finished for e in itertools.islice(events, 5)]
    for a, b in zip(expected, [e.finished for e in itertools.islice(again, 5)], strict=True):
        assert torch.equal(a, b)


def test_windows_agree_up_to_their_length_and_part_behind_it():
    model = tiny_magi()
    clips = [sampled(model, 9, window_mode=mode) for mode in MODES]
    for a, b in itertools.combinations(clips, 2):
        assert torch.equal(a[:, :, :5], b[:, :, :5])
        assert not torch.allclose(a[:, :, 5:], b[:, :, 5:])


@pytest.mark.parametrize("mode", MODES)
def test_a_longer_clip_begins_like_a_shorter_one(mode):
    model = tiny_magi()
    assert torch.equal(sampled(model, 7, window_mode=mode), sampled(model, 9, window_mode=mode)[:, :, :7])


def test_given_frames_stay_and_matter():
    model = tiny_magi()
    given = batch_of(model)["tokens"][:, :, :2]
    clip = sampled(model, 6, given)
    assert torch.equal(clip[:, :, :2], given)
    assert not torch.allclose(clip[:, :, 2:], sampled(model, 6, -given)[:, :, 2:])


def test_a_window_forgets():
    model = tiny_magi()
    first, second = (batch_of(model)["tokens"][:, :, :2] for _ in range(2))
    second = second.clone()
    second[:, :, 0] += 1.0

    def new_frame(given: Tensor, window: int) -> Tensor:
        return sampled(model, 3, given, window=window)[:, :, 2]

    assert not torch.allclose(new_frame(first, 3), new_frame(second, 3))
    with pytest.raises(UserError, match="window of 2 holds 1"):
        new_frame(first, 2)
    assert torch.equal(sampled(model, 2, first[:, :, 1:], window=2), sampled(model, 2, second[:, :, 1:], window=2))


def test_an_anchored_window_forgets_all_but_the_first_frame(monkeypatch):
    model, read = tiny_magi(), []
    observe = model.observe

    def watched(cache, tokens, conditions, first, level):
        read.append(tokens)
        observe(cache, tokens, conditions, first, level)

    monkeypatch.setattr(model, "observe", watched)
    clip = sampled(model, 8, window=4, window_mode="anchored", use_cache=False)
    tokens = model.to_tokens(clip)  # (b, f, n, k)
    histories = {tuple(next(i for i in range(8) if torch.equal(tokens[:, i], h)) for h in r.unbind(1)) for r in read}
    assert histories == {(0,), (0, 1), (0, 1, 2), (0, 2, 3), (0, 3, 4), (0, 4, 5), (0, 5, 6)}
    with pytest.raises(UserError, match="at least 2 frames, found 1"):
        sampled(model, 3, window=1, window_mode="anchored")


def test_events_tell_what_was_decided_and_finished():
    model, frames = tiny_magi(), 4
    given = batch_of(model)["tokens"][:, :, :1]
    sampler = FrameStreamSampler(config_of())
    events = list(sampler.sample(model, StreamCondition(conditioned(2), 2, frames, given), torch.Generator()))
    assert len(events) == events[0].num_steps == 9
    decided = torch.stack([event.decided for event in events]).sum(0)
    assert (decided[:, 0] == 0).all()
    assert (decided[:, 1:] == 1).all()
    finished = [event.frames for event in events if event.frames is not None]
    assert finished == [slice(0, 2), slice(2, 3), slice(3, 4)]
    assert events[-1].is_last
    assert torch.equal(torch.cat([e.finished for e in events if e.frames is not None], dim=2), events[-1].proposal)


def test_a_stream_without_an_end_makes_the_same_frames_in_bounded_memory():
    model = tiny_magi()
    sampler = FrameStreamSampler(config_of())
    events = sampler.sample(model, StreamCondition(conditioned(2), 2), torch.Generator().manual_seed(0))
    frames, longest, memory = [], 0, set()
    for event in events:
        longest = max(longest, event.proposal.shape[2])
        memory.add(event.proposal.shape[2])
        if event.frames is not None:
            frames.append(event.finished)
        if len(frames) == 12:
            break
    assert longest == 6  # the window and the frame in progress
    torch.testing.assert_close(torch.cat(frames, dim=2), sampled(model, 12))


@pytest.mark.parametrize("mode", [*MODES, "rolling"])
def test_work_done_ahead_changes_nothing_and_leaves_no_reading_to_the_next_frame(mode, monkeypatch):
    model, reads = tiny_magi(**(RELATIVE if mode == "rolling" else {})), []
    clip = sampled(model, 9, window_mode=mode)
    observe = model.observe
    monkeypatch.setattr(model, "observe", lambda *rest: (reads.append(rest), observe(*rest)))
    condition, generator = StreamCondition(conditioned(2), 2, 9), torch.Generator().manual_seed(0)
    for event in FrameStreamSampler(config_of(window_mode=mode)).sample(model, condition, generator):
        assert not reads
        if event.ahead is not None:
            event.ahead()
            assert bool(reads) != event.is_last
            reads.clear()
            event.ahead()
    assert torch.equal(event.proposal, clip)


def test_a_full_window_is_read_once_per_frame(monkeypatch):
    model, frames = tiny_magi(), []
    observe = model.observe
    monkeypatch.setattr(
        model, "observe", lambda c, tokens, *rest: (frames.append(tokens.shape[1]), observe(c, tokens, *rest))
    )
    sampled(model, 8, window=4)
    assert frames == [1, 1, 1, 3, 3, 3, 3]


def test_conditions_of_a_frame_are_read_just_before_it_is_generated():
    model, asked = tiny_magi(), []

    def at(frame: int) -> FrameConditions:
        asked.append(frame)
        return conditioned(2)(frame)

    events = FrameStreamSampler(config_of()).sample(model, StreamCondition(at, 2), torch.Generator())
    next(events)
    assert asked == [0]
    for _ in range(3):
        next(events)
    assert asked == [0, 1]


def test_a_change_on_the_way_leaves_what_is_done_and_changes_what_follows():
    model = tiny_magi()
    fast, slow = torch.full((2,), 9), torch.ones(2, dtype=torch.int64)
    label = torch.tensor([0, 1])

    def clip(at: Conditioning) -> Tensor:
        *_, last = FrameStreamSampler(config_of()).sample(
            model, StreamCondition(at, 2, 8), torch.Generator().manual_seed(0)
        )
        return last.proposal

    steady = clip(lambda frame: FrameConditions(slow, label))
    changed = clip(lambda frame: FrameConditions(slow if frame < 3 else fast, label))
    assert torch.equal(steady[:, :, :3], changed[:, :, :3])
    assert not torch.allclose(steady[:, :, 3:], changed[:, :, 3:])


def test_neighbours_told_alike_are_read_together():
    interval, label = torch.ones(2, dtype=torch.int64), torch.tensor([0, 1])
    frames = [FrameConditions(interval, label, torch.full((2, 1, 2), float(i))) for i in range(3)]
    frames.append(FrameConditions(interval.clone(), label, torch.zeros(2, 1, 2)))
    groups = FrameConditions.grouped(frames)
    assert [count for count, _ in groups] == [3, 1]
    joined = groups[0][1].actions
    assert joined is not None
    assert joined[0, :, 0].tolist() == [0.0, 1.0, 2.0]


def test_actions_of_a_moved_window_are_those_of_its_frames():
    """Reading the window again in one go equals reading it with other values told apart, frame by frame."""
    model = tiny_magi()
    actions = torch.randn(2, 9, 2, generator=torch.Generator().manual_seed(3))
    interval, label = torch.ones(2, dtype=torch.int64), torch.tensor([0, 1])

    def clip(at: Conditioning) -> Tensor:
        *_, last = FrameStreamSampler(config_of()).sample(
            model, StreamCondition(at, 2, 9), torch.Generator().manual_seed(0)
        )
        return last.proposal

    joined = clip(lambda frame: FrameConditions(interval, label, actions[:, frame : frame + 1]))
    apart = clip(lambda frame: FrameConditions(interval.clone(), label, actions[:, frame : frame + 1]))
    torch.testing.assert_close(joined, apart, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("by", ["conditions", "history"])
def test_guidance_leads_away_from_the_other_pass(by):
    model = tiny_magi(history_dropout=0.1)
    plain, guided = sampled(model, 4), sampled(model, 4, guidance_scale=3.0, guidance_by=by)
    assert not torch.allclose(plain, guided)
    assert guided.isfinite().all()


def test_a_pass_that_sees_no_history_has_none_read_for_it(monkeypatch):
    model, rows = tiny_magi(), []
    clip = sampled(model, 8, guidance_scale=2.0, guidance_by="history", window=4)
    reserve, observe = model.reserve, model.observe

    def never_written(batch_size, num_frames):
        cache = reserve(batch_size, num_frames)
        for memory in (cache.keys, cache.values):
            memory.fill_(torch.nan)
        return cache

    def watched(cache, tokens, *rest):
        rows.append((len(tokens), cache.keys.shape[1] // (len(tokens) * 8)))  # 6 tokens, the class, the level of noise
        observe(cache, tokens, *rest)

    monkeypatch.setattr(model, "reserve", never_written)
    monkeypatch.setattr(model, "observe", watched)
    assert torch.equal(clip, sampled(model, 8, guidance_scale=2.0, guidance_by="history", window=4))
    assert set(rows) == {(2, 1)}


def test_guidance_rises_with_the_share_of_decided_tokens():
    config = FrameStreamSamplerConfig(guidance_scale=3.0)
    assert config.scale_at(16, 16) == 1.0
    assert config.scale_at(4, 16) == 2.5
    assert FrameStreamSamplerConfig(guidance_scale=3.0, guidance_schedule="constant").scale_at(16, 16) == 3.0


def test_equal_seeds_give_equal_clips_and_others_do_not():
    model = tiny_magi()
    assert torch.equal(sampled(model, 4, seed=5), sampled(model, 4, seed=5))
    assert not torch.allclose(sampled(model, 4, seed=5), sampled(model, 4, seed=6))


def test_ddim_without_noise_depends_on_its_start_alone():
    model = tiny_magi()
    assert torch.equal(sampled(model, 3, eta=0.0), sampled(model, 3, eta=0.0))
    assert not torch.allclose(sampled(model, 3, eta=0.0), sampled(model, 3))


@pytest.mark.parametrize("parts", [(32,), (8, 4)])
@pytest.mark.parametrize("selection", ["random", "confidence"])
def test_discrete_tokens_are_codes(parts, selection):
    model = tiny_magi(codebook_parts=parts)
    clip = sampled(model, 7, selection=selection, guidance_scale=2.0)
    assert clip.shape == (2, 7, 2, 3)
    assert clip.min() >= 0
    assert clip.max() < 32
    assert clip.unique().numel() > 4


def test_temperature_0_of_discrete_tokens_takes_the_most_probable():
    model = tiny_magi(codebook_parts=(32,))
    order_free = [sampled(model, 2, seed=seed, temperature=0.0, num_decoding_steps=1) for seed in (0, 1)]
    assert torch.equal(*order_free)


@pytest.mark.parametrize(
    "options",
    [
        {"num_decoding_steps": 0},
        {"num_diffusion_steps": 0},
        {"temperature": -1.0},
        {"guidance_scale": float("inf")},
        {"sample_range": 0.0},
        {"window": 0},
        {"eta": -0.5},
        {"context_noise_level": -1},
    ],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(UserError):
        FrameStreamSamplerConfig(**options)


def test_a_growing_window_needs_an_end():
    sampler = FrameStreamSampler(config_of(window_mode="growing"))
    with pytest.raises(UserError, match="num_frames"):
        next(sampler.sample(tiny_magi(), StreamCondition(conditioned(2), 2), torch.Generator()))
