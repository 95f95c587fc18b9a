"""Streams that are rewound: the same again under the same conditions, another way under others."""

import itertools
from typing import Any

import numpy as np
import pytest

from mutoscope.errors import UserError
from mutoscope.pipeline import VideoPipeline, VideoStream


@pytest.fixture(scope="module")
def pipeline() -> VideoPipeline:
    return VideoPipeline.from_pretrained("magi-shapes")


def some(stream: VideoStream, count: int) -> list[np.ndarray]:
    return list(itertools.islice(stream, count))


def close(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    """Equal up to the rounding of one matrix product over many frames in place of many over one."""
    return len(a) == len(b) and all(np.abs(x.astype(int) - y).max() <= 4 for x, y in zip(a, b, strict=True))


FAST = {"num_decoding_steps": 2, "num_diffusion_steps": 5, "seed": 5}


@pytest.mark.parametrize("mode", ["sliding", "anchored", "chunked"])
@pytest.mark.parametrize("before", [1, 6, 20])
def test_a_rewound_stream_gives_the_same_frames_again(pipeline: VideoPipeline, before: int, mode: str):
    stream = pipeline.stream(class_label=0, num_frames=None, window_mode=mode, **FAST)
    some(stream, before)
    bookmark = stream.bookmark()
    following = some(stream, 6)
    stream.rewind(bookmark)
    assert close(some(stream, 6), following)
    some(stream, 3)
    stream.rewind(bookmark)  # more than once, and from any later place
    assert close(some(stream, 6), following)


def test_other_actions_after_rewinding_lead_elsewhere_and_back(pipeline: VideoPipeline):
    stream = pipeline.stream(class_label=0, num_frames=None, **FAST)
    stream.change(action="dx=2")
    some(stream, 4)
    bookmark = stream.bookmark()
    one_way = some(stream, 4)
    stream.rewind(bookmark)
    stream.change(action="dx=-2")
    other_way = some(stream, 4)
    assert not close(other_way, one_way)
    stream.rewind(bookmark)
    stream.change(action="dx=2")
    assert close(some(stream, 4), one_way)


def test_a_stream_with_an_end_still_ends_there(pipeline: VideoPipeline):
    stream = pipeline.stream(class_label=0, num_frames=7, **FAST)
    some(stream, 3)
    bookmark = stream.bookmark()
    assert len(list(stream)) == 4
    stream.rewind(bookmark)
    assert len(list(stream)) == 4


def test_frames_of_the_context_are_delivered_again(pipeline: VideoPipeline):
    options: dict[str, Any] = {"class_label": 1, "num_frames": 5, **FAST}
    context = pipeline.generate(**options).clips[0].frames
    stream = pipeline.stream(context=context, num_frames=None, **FAST)
    some(stream, 2)  # the context and its first continuation are finished at once
    bookmark = stream.bookmark()
    following = some(stream, 6)
    stream.rewind(bookmark)
    assert close(some(stream, 6), following)


def test_what_cannot_be_rewound_is_refused(pipeline: VideoPipeline):
    with pytest.raises(UserError, match="no frame is finished yet"):
        pipeline.stream(class_label=0, num_frames=4, **FAST).bookmark()
    other = VideoPipeline.from_pretrained("par-shapes-4x").stream(class_label=0)
    next(other)
    with pytest.raises(UserError, match="cannot be rewound"):
        other.bookmark()
