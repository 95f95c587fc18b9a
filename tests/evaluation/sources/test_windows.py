"""Which clips of which videos are measured."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evaluation.fakes import write_videos
from mutoscope.data.fit import fit_frames
from mutoscope.data.sources.clips import ClipDataset
from mutoscope.data.sources.folder import MediaFile
from mutoscope.data.video.read import read_video
from mutoscope.errors import UserError
from mutoscope.evaluation.sources.windows import (
    ClipListing,
    Window,
    WindowRule,
    even_shares,
    list_videos,
    read_window,
    windows,
)

LISTING = ClipListing(Path("f"), tuple(MediaFile(Path(f"f/{n}.mp4"), -1) for n in "abc"), (30, 16, 20))


def starts(rule: WindowRule, **options) -> list[tuple[str, int]]:
    return [(window.file.path.stem, window.start) for window in windows(LISTING, rule, 16, **options)]


def test_first_windows_start_at_the_beginning():
    assert starts(WindowRule()) == [("a", 0), ("b", 0), ("c", 0)]


def test_fewer_windows_than_there_are_come_from_all_over_the_videos():
    assert starts(WindowRule(), total=2) == [("a", 0), ("b", 0)]
    assert [name for name, _ in starts(WindowRule("all"), total=7)] == ["a"] * 5 + ["b", "c"]
    assert [name for name, _ in starts(WindowRule("uniform", count=4), total=3)] == ["a", "b", "c"]


def test_a_video_of_thirty_frames_has_fifteen_windows():
    found = starts(WindowRule("all"))
    assert [start for name, start in found if name == "a"] == list(range(15))
    assert Counter(name for name, _ in found) == {"a": 15, "b": 1, "c": 5}


def test_uniform_windows_reach_from_the_first_to_the_last_and_crops_from_side_to_side():
    found = windows(LISTING, WindowRule("uniform", count=2, crops=3), 16)
    assert [(w.start, w.share) for w in found[:6]] == [(s, c) for s in (0, 14) for c in (0.0, 0.5, 1.0)]
    assert {w.start for w in windows(LISTING, WindowRule("uniform"), 16)} == {7, 0, 2}


def test_random_windows_follow_the_seed_and_take_every_video_once_before_any_again():
    rule = WindowRule("random", crops=0)
    found = windows(LISTING, rule, 16, total=300, seed=1)
    assert found == windows(LISTING, rule, 16, total=300, seed=1) != windows(LISTING, rule, 16, total=300, seed=2)
    assert all(len({w.file for w in found[i : i + 3]}) == 3 for i in range(0, 300, 3))
    assert {w.start for w in found if w.file.path.stem == "a"} == set(range(15))
    assert {w.start for w in found if w.file.path.stem == "b"} == {0}
    assert 0.4 < np.mean([w.share for w in found]) < 0.6
    assert {w.share for w in windows(LISTING, WindowRule("random"), 16)} == {0.5}


@pytest.mark.parametrize("size", [(16, 16), (10, 12), (20, 30), (40, 60)])
def test_evaluation_and_training_read_the_same_pixels(tmp_path, size):
    write_videos(tmp_path, 1, num_frames=8)
    dataset = ClipDataset(tmp_path, 8, *size, crops=3)
    window = Window(dataset.videos[0])
    for crop, share in enumerate(even_shares(3)):
        clip = read_window(replace(window, share=share), 8, 1, size)
        assert clip.equal(dataset[crop]["video"])
    context = fit_frames(read_video(dataset.videos[0].path).frames, *size)
    assert np.abs(context.astype(int) - dataset[1]["video"].numpy()).mean() < 1


def test_short_and_broken_videos_are_omitted_and_named(tmp_path):
    write_videos(tmp_path, 2)
    write_videos(tmp_path, 1, names=lambda i: "short", num_frames=10)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    listing = list_videos(tmp_path, 16)
    assert [file.path.stem for file in listing.files] == ["0", "1"] and listing.num_frames == (16, 16)
    assert len(listing.skipped) == 2 and any("10 frames, 16 are needed" in note for note in listing.skipped)
    with pytest.raises(UserError, match="No video of .* gives a clip: 4 omitted"):
        list_videos(tmp_path, 17)


def test_windows_are_read_at_their_position_and_size(tmp_path):
    write_videos(tmp_path, 1, num_frames=20)
    window = windows(list_videos(tmp_path, 16), WindowRule("uniform"), 16)[0]
    clip = read_window(window, 16, 1, None)
    assert window.start == 2 and clip.shape == (16, 32, 32, 3)
    assert read_window(window, 16, 1, (8, 8)).shape == (16, 8, 8, 3)
    with pytest.raises(UserError, match="18 frames from 2 on, 19 are needed"):
        read_window(window, 19, 1, None)


def test_names_pair_generated_with_real_videos():
    assert LISTING.name(MediaFile(Path("f/sub/a-3.mp4"), -1)) == "sub/a-3"
