"""Which frames of which videos are compared: one length, rate and size for both sides."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mutoscope.errors import UserError
from mutoscope.evaluation.sources.clip_choice import (
    CLIP_FRAMES,
    Frame,
    Scanned,
    common_frame,
    frame_notes,
    pairs_of,
    scan,
    shared_size,
    windows_of,
    with_clips,
)
from mutoscope.evaluation.sources.footage import Footage, FootageFolder, FootageInfo
from mutoscope.evaluation.sources.pairing import Pairing


@dataclass(frozen=True)
class Listed(Footage):
    """A video that is known by its numbers only; None is a broken one."""

    name: str
    known: FootageInfo | None

    def info(self) -> FootageInfo:
        if self.known is None:
            raise UserError("is broken")
        return self.known

    def read(self, frames: Sequence[int], size: tuple[int, int] | None = None) -> np.ndarray:
        raise UserError("has no pixels")

    def num_bytes(self) -> int:
        return 0


def folder(*videos: FootageInfo | None, path: str = "f") -> FootageFolder:
    return FootageFolder(Path(path), "videos", tuple(Listed(f"v{i}", info) for i, info in enumerate(videos)))


def side(*videos: FootageInfo | None, wanted: int = 100) -> Scanned:
    return scan(folder(*videos), wanted, False)


def video(num_frames: int = 16, fps: float | None = 8.0, height: int = 32, width: int = 32) -> FootageInfo:
    return FootageInfo(num_frames, fps, height, width)


def test_the_lower_rate_and_the_shorter_length_count():
    frame = common_frame(side(video(16, 8)), side(video(300, 24)), False, 256)
    assert frame == Frame(16, 8.0, (32, 32))
    assert common_frame(side(video(12, 8)), side(video(300, 24)), False, 256).num_frames == 12
    assert common_frame(side(video(16, 8)), side(video(30, 24)), False, 256).num_frames == 10
    assert common_frame(side(video(16, 8)), side(video(30, 24)), True, 256) == Frame(16, None, (32, 32))
    assert common_frame(side(video(1, None)), side(video(30, 24)), False, 256) == Frame(1, None, (32, 32))


def test_a_few_short_videos_are_omitted_and_named_instead_of_shortening_all():
    scanned = side(*[video(40)] * 19, video(5))
    clips = with_clips(scanned, common_frame(scanned, scanned, False, 256), 19)
    assert clips.problems == ("v19: 5 frames, a clip has 16",) and len(clips.takes) == 19


@pytest.mark.parametrize(
    ("mine", "real", "size"),
    [
        ((64, 64), (64, 64), (64, 64)),
        ((64, 64), (720, 1280), (64, 64)),  # mine is never enlarged; the real one is cropped to its shape
        ((512, 512), (90, 160), (90, 90)),
        ((122, 162), (121, 161), (121, 161)),
        ((1080, 1920), (1080, 1920), (144, 256)),
        ((4, 4000), (4, 4000), (1, 256)),
    ],
)
def test_clips_are_compared_at_the_smaller_size_in_the_shape_of_mine(mine, real, size):
    assert shared_size(mine, real, 256) == size


def test_the_most_common_size_and_rate_count_and_of_equally_common_sizes_the_middle_one():
    assert side(video(height=8), video(height=8), video(fps=30.0, height=64)).size == (8, 32)
    assert side(video(fps=30.0), video(fps=30.0), video()).fps == 30
    assert side(video(height=8), video(height=64), video(height=16)).size == (16, 32)


@given(st.integers(1, 400), st.integers(1, CLIP_FRAMES), st.sampled_from([8.0, 12.5, 30.0]), st.integers(1, 9))
def test_windows_are_inside_the_video_do_not_overlap_and_reach_both_ends(num_frames, length, fps, wanted):
    info, frame = video(num_frames, fps), Frame(length, 8.0, (8, 8))
    if info.length(8.0) < length:
        return
    found = windows_of([info], frame, wanted)
    assert 1 <= len(found) <= wanted and all(len(window) == length for window in found)
    assert all(window[-1] < num_frames and list(window) == sorted(set(window)) for window in found)
    assert all(before[-1] < after[0] for before, after in pairwise(found))
    if len(found) > 1:
        assert found[0][0] == 0 and found[-1][-1] > num_frames - 1 - 2 * info.step(8.0)


def test_every_video_gives_as_many_clips_as_others_do():
    scanned = side(*[video(160)] * 4)
    takes = with_clips(scanned, Frame(16, 8.0, (8, 8)), 12).takes
    assert [take.video for take in takes] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_videos_are_chosen_evenly_those_with_a_partner_first_and_broken_ones_are_named():
    found = scan(folder(*[video()] * 10), 3, False)
    assert found.positions == (0, 4, 9)
    assert scan(folder(*[video()] * 10), 3, False, [7, 8]).positions == (0, 7, 8)
    found = scan(folder(video(), None), 5, False)
    assert found.positions == (0,) and found.problems == ("v1: is broken",)
    with pytest.raises(UserError, match="No video of 'f' can be read: 1 tried; the first, v0: is broken"):
        scan(folder(None), 5, False)


def test_pairs_have_the_same_windows_within_the_common_length_at_their_own_size():
    mine, real = side(video(32, 8, 16, 16), None), side(video(200, 16, 64, 64), video())
    frame = common_frame(mine, real, False, 256)
    pairs, notes = pairs_of(mine, real, Pairing("", ((0, 0), (1, 1))), frame, 10, 256)
    assert [own.frames[0] for own, _ in pairs] == [0, 16] and [other.frames[0] for _, other in pairs] == [0, 32]
    assert pairs[0][1].frames[1] == 2 and {take.size for pair in pairs for take in pair} == {(16, 16)}
    assert "1 pairs differ in length" in notes[0]


def test_what_was_adapted_is_said():
    mine, real = side(video(16, 8)), side(video(300, 25, 90, 160), video(300, 25, 10, 10), video(300, 25, 90, 160))
    notes = "; ".join(frame_notes(mine, real, common_frame(mine, real, False, 256), False))
    assert "25 frames/s and is read at 8, every 3.125 frames" in notes and "--by-frame" in notes
    assert "cropped to the shape" in notes and "1 videos of f differ in size" in notes
    notes = "; ".join(frame_notes(mine, real, common_frame(mine, real, True, 256), True))
    assert "frame by frame although the rates differ (8 and 25 frames/s)" in notes
    assert frame_notes(mine, mine, common_frame(mine, mine, False, 256), False) == []
