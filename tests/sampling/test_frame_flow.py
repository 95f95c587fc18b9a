"""Frame after frame by flow matching: with and without memory, windows, rewinding, and what is refused."""

import itertools
from typing import Any

import pytest
import torch

from mutoscope.errors import UserError
from mutoscope.models.far import FAR, FrameConditions
from mutoscope.sampling.base import SampleEvent
from mutoscope.sampling.frame_flow import FlowCondition, FrameFlowSampler, FrameFlowSamplerConfig
from tiny_far import LONG, tiny_far


def conditions(frame: int) -> FrameConditions:
    """An action of its own for every frame."""
    generator = torch.Generator().manual_seed(frame)
    return FrameConditions(torch.tensor([1, 2]), torch.randn(2, 1, 2, generator=generator))


def guided(frame: int) -> FrameConditions:
    own = conditions(frame)
    assert own.actions is not None
    return FrameConditions(torch.tensor([1, 2, -1, -1]), torch.cat([own.actions, torch.full((2, 1, 2), torch.nan)]))


def events(model: FAR, num_frames: int | None, context: int = 0, **options: Any):
    config = FrameFlowSamplerConfig(**{"num_decoding_steps": 3, **options})
    at = guided if config.num_passes(True) == 2 else conditions
    latents = torch.randn(2, 3, context, 4, 6, generator=torch.Generator().manual_seed(9)) if context else None
    condition = FlowCondition(at, 2, num_frames, latents)
    return FrameFlowSampler(config).sample(model, condition, torch.Generator().manual_seed(0))


def clip(*args: Any, **options: Any) -> torch.Tensor:
    *_, last = events(*args, **options)
    return last.proposal


VARIANTS = {
    "short": ({}, {}),
    "guidance": ({}, {"guidance_scale": 2.0}),
    "long": (LONG, {}),
    "long, guidance": (LONG, {"guidance_scale": 1.5}),
    "slope": ({"slope": 0.2, **LONG}, {}),
    "sliding": ({}, {"window": 3}),
    "chunked": (LONG, {"window": 5, "window_mode": "chunked"}),
    "shift": ({}, {"flow_shift": 3.0}),
}


@pytest.mark.parametrize(("changes", "options"), VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("context", [0, 2])
def test_memory_changes_nothing(changes, options, context: int):
    model = tiny_far(**changes)
    remembered, anew = (clip(model, 7, context, use_cache=use, **options) for use in (True, False))
    torch.testing.assert_close(remembered, anew, atol=2e-5, rtol=1e-4)
    assert remembered.shape == (2, 3, 7, 4, 6)


def test_a_finished_frame_is_read_with_the_action_of_the_moment_in_which_the_next_begins():
    model, asked = tiny_far(), []
    at = lambda frame: (asked.append(frame), conditions(frame))[1]  # noqa: E731
    config = FrameFlowSamplerConfig(num_decoding_steps=2)
    list(FrameFlowSampler(config).sample(model, FlowCondition(at, 2, 4), torch.Generator().manual_seed(0)))
    assert asked == [0, 0, 1, 1, 2, 2, 3]


def test_an_endless_stream_sees_as_many_frames_as_training_and_goes_on():
    model = tiny_far()
    found = list(itertools.islice(events(model, None), 3 * 9))
    finished = [event for event in found if event.frames is not None]
    assert len(finished) == 9 and all(event.finished.shape[2] == 1 for event in finished)
    assert finished[-1].proposal.shape[2] == 5 + 1 and found[-1].num_steps == 0


def test_the_window_of_a_stream_depends_on_distances_only():
    """A stream whose window has moved on goes on as a clip that starts with the frames in the window."""
    model = tiny_far(action_size=None)
    condition = FlowCondition(lambda frame: FrameConditions(torch.tensor([1, 2])), 2, None)
    config = FrameFlowSamplerConfig(num_decoding_steps=3)
    stream = FrameFlowSampler(config).sample(model, condition, torch.Generator().manual_seed(0))
    finished = [event for event in itertools.islice(stream, 3 * 8) if event.frames is not None]
    window = torch.cat([event.finished for event in finished[3:7]], dim=2)
    again = FlowCondition(lambda frame: FrameConditions(torch.tensor([1, 2])), 2, 5, window)
    random = torch.Generator().manual_seed(0)
    for _ in range(7):
        torch.randn(2, 3, 1, 4, 6, generator=random)
    *_, last = FrameFlowSampler(config).sample(model, again, random)
    torch.testing.assert_close(last.proposal[:, :, -1:], finished[7].finished, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("mode", ["sliding", "chunked"])
@pytest.mark.parametrize("changes", [{}, LONG])
def test_a_stream_goes_on_from_any_frame_as_it_did(changes, mode: str):
    model = tiny_far(**changes)
    found = [e for e in itertools.islice(events(model, None, 1, window_mode=mode), 3 * 11) if e.frames is not None]
    event: SampleEvent = found[5]
    assert event.again is not None
    again = [e for e in itertools.islice(event.again(), 3 * 5) if e.frames is not None]
    for a, b in zip(again, found[6:], strict=True):
        torch.testing.assert_close(a.finished, b.finished, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("changes", [{}, LONG], ids=["short", "long"])
@pytest.mark.parametrize("mode", ["sliding", "chunked"])
def test_work_ahead_changes_no_frame_and_leaves_the_last_one_to_its_action(
    changes, mode: str, monkeypatch: pytest.MonkeyPatch
):
    model = tiny_far(**changes)
    expected = [e.finished for e in itertools.islice(events(model, None, 1, window_mode=mode), 3 * 9) if e.frames]
    found, read = [], []
    read_frames = model.read
    counted = lambda cache, latents, *rest: (read.append(latents.shape[2]), read_frames(cache, latents, *rest))[1]  # noqa: E731
    monkeypatch.setattr(model, "read", counted)
    for event in itertools.islice(events(model, None, 1, window_mode=mode), 3 * 9):
        if event.frames is not None:
            found.append(event.finished)
            assert event.ahead is not None
            event.ahead()
            event.ahead()
            read.clear()
        else:
            assert event.ahead is None
            assert sum(read) <= (2 if len(found) == 0 else 1)  # at first the context
            read.clear()
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


def test_the_context_comes_with_the_first_finished_frame():
    finished = [event for event in events(tiny_far(), 5, 2) if event.frames is not None]
    assert [event.frames for event in finished] == [slice(0, 3), slice(3, 4), slice(4, 5)]
    assert [event.finished.shape[2] for event in finished] == [3, 1, 1] and finished[-1].is_last


def test_a_preview_shows_where_the_frame_is_heading():
    """The guess of a step is the noisy latents minus what remains of the noise, not the noisy latents."""
    early, *_, last = events(tiny_far(), 1)
    assert not torch.equal(early.proposal, last.proposal) and early.proposal.isfinite().all()
    assert not early.decided.any() and last.decided.all()


def test_guidance_of_a_network_without_conditions_is_one_pass():
    config = FrameFlowSamplerConfig(guidance_scale=2.0)
    assert config.num_passes(False) == 1 and config.num_passes(True) == 2
    assert FrameFlowSamplerConfig(guidance_scale=0.0).num_passes(True) == 1
    model = tiny_far(num_classes=None, action_size=None)
    plain, scaled = (
        FrameFlowSampler(FrameFlowSamplerConfig(2, scale)).sample(
            model, FlowCondition(lambda frame: FrameConditions(), 2, 3), torch.Generator().manual_seed(0)
        )
        for scale in (1.0, 2.0)
    )
    assert torch.equal(list(plain)[-1].proposal, list(scaled)[-1].proposal)


@pytest.mark.parametrize(
    ("frames", "context", "options", "message"),
    [
        (2, 2, {}, "nothing is left to generate"),
        (6, 3, {"window": 3}, "a window of 3 holds 2 beside the one in progress"),
        (None, 5, {}, "a window of 5 holds 4"),
    ],
)
def test_contexts_that_leave_no_room_are_refused(frames, context, options, message):
    with pytest.raises(UserError, match=message):
        next(events(tiny_far(), frames, context, **options))


@pytest.mark.parametrize("options", [{"num_decoding_steps": 0}, {"guidance_scale": -1.0}, {"flow_shift": 0.0}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(UserError, match=next(iter(options))):
        FrameFlowSamplerConfig(**options)
