"""All samplers are called alike and yield the same kind of event."""

import inspect
import itertools

import pytest
import torch

from mutoscope.models.magi import MAGI, FrameConditions
from mutoscope.sampling.autoregressive import AutoregressiveSampler
from mutoscope.sampling.base import SampleEvent, Sampler
from mutoscope.sampling.frame_ar import FrameARSampler
from mutoscope.sampling.frame_flow import FrameFlowSampler
from mutoscope.sampling.frame_history import StreamCondition
from mutoscope.sampling.frame_stream import FrameStreamSampler, FrameStreamSamplerConfig
from mutoscope.sampling.masked import MaskedSampler
from mutoscope.sampling.parallel_ar import ParallelARSampler
from tiny_magi import SAMPLING, tiny_magi

SAMPLERS = [
    MaskedSampler,
    AutoregressiveSampler,
    ParallelARSampler,
    FrameARSampler,
    FrameStreamSampler,
    FrameFlowSampler,
]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.__name__)
def test_samplers_share_one_call(sampler: type[Sampler]):
    assert issubclass(sampler, Sampler)
    parameters = list(inspect.signature(sampler.sample).parameters.values())
    assert [parameter.name for parameter in parameters[:4]] == ["self", "model", "condition", "generator"]
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters[4:])


def test_an_event_builds_its_tensors_once_and_only_when_they_are_read():
    built: list[int] = []

    def draft() -> torch.Tensor:
        built.append(1)
        return torch.zeros(1, 3, 2, 2, dtype=torch.int64)

    decided = torch.ones(1, 3, 2, 2, dtype=torch.bool)
    event = SampleEvent(step=0, num_steps=1, decided=decided, frames=slice(1, 3), seconds=0.0, draft=draft)
    assert event.is_last and built == []
    assert event.finished.shape == (1, 2, 2, 2) and event.proposal is event.proposal and built == [1]


def stream(model: MAGI, num_frames: int | None = None):
    condition = StreamCondition(lambda frame: FrameConditions(torch.ones(2, dtype=torch.int64)), 2, num_frames)
    config = FrameStreamSamplerConfig(**SAMPLING)
    return FrameStreamSampler(config).sample(model, condition, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("num_frames", [4, None])
def test_an_event_read_late_shows_the_state_of_its_own_step(num_frames: int | None):
    late = list(itertools.islice(stream(tiny_magi(), num_frames), 9))
    at_once = [event.proposal.clone() for event in itertools.islice(stream(tiny_magi(), num_frames), 9)]
    for event, expected in zip(late, at_once, strict=True):
        assert torch.equal(event.proposal, expected)


def test_a_stream_lays_out_its_window_only_for_a_reader(monkeypatch: pytest.MonkeyPatch):
    model, layouts = tiny_magi(), []
    lay_out = model.to_frames
    monkeypatch.setattr(model, "to_frames", lambda tokens: (layouts.append(tokens.shape[1]), lay_out(tokens))[1])
    events = list(itertools.islice(stream(model), 30))
    assert layouts == []
    finished = [event.finished for event in events if event.frames is not None]
    assert layouts == [1] * len(finished) and len(finished) == 10  # a finished frame alone, never the window
