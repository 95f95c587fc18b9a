"""Whole recordings are held back, and nothing of them reaches training, not even in place of a broken file."""

import warnings
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mutoscope.data.base import ClipBatch, ClipSource
from mutoscope.data.held_back import drawn_clips, split_clips
from mutoscope.data.sources.images import ImageDataset, RandomCrops
from mutoscope.errors import UserError


class Recordings(ClipSource[ClipBatch]):
    """Clips whose label is their number. broken: recordings whose clips are replaced by the source's first clip."""

    def __init__(self, episodes: Sequence[int], broken: Sequence[int] = ()):
        self.episodes, self.num_clips, self.broken = np.array(episodes), len(episodes), set(broken)

    def __getitem__(self, indices: Sequence[int]) -> ClipBatch:
        assert self.episodes is not None
        read = [0 if self.episodes[i] in self.broken else i for i in indices]
        clips = torch.zeros(len(read), 1, 1, 1, 3, dtype=torch.uint8)
        episode = torch.from_numpy(self.episodes[read])
        return {"video": clips, "label": torch.tensor(read), "caption": [""] * len(read), "episode": episode}


class Independent(Recordings):
    """The same without recordings."""

    def __init__(self, num_clips: int | None):
        super().__init__(range(num_clips or 3))
        self.episodes, self.num_clips = None, num_clips

    def __getitem__(self, indices: Sequence[int]) -> ClipBatch:
        label = torch.tensor([int(i) for i in indices])
        return {"video": torch.zeros(len(label), 1, 1, 1, 3), "label": label, "caption": [""] * len(label)}


def labels(source: ClipSource[ClipBatch]) -> list[int]:
    return source[range(source.num_clips or 0)]["label"].tolist()


@given(st.lists(st.integers(1, 5), min_size=2, max_size=40), st.floats(0.001, 0.999), st.integers(0, 5))
def test_every_recording_is_on_one_side_and_every_clip_is_used(lengths: list[int], share: float, seed: int):
    episodes = np.repeat(np.arange(len(lengths)) * 3, lengths)
    split, again = (split_clips(Recordings(episodes.tolist()), share, seed) for _ in range(2))
    assert split and again
    trained, held = labels(split.training), labels(split.held_back)
    assert sorted(trained + held) == list(range(len(episodes)))
    assert trained and held and not set(episodes[trained]) & set(episodes[held])
    assert held == labels(again.held_back) == split.indices.tolist()
    wanted = min(max(1, round(share * len(lengths))), len(lengths) - 1)
    assert len(set(episodes[held])) == wanted and str(wanted) in split.note


def test_every_class_of_a_sorted_folder_is_held_back_in_proportion():
    split = split_clips(Recordings(range(100)), 0.1)
    assert split and [label // 20 for label in labels(split.held_back)] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_the_last_part_of_a_single_recording_is_held_back_with_a_warning():
    with pytest.warns(UserWarning, match="All clips are from one recording"):
        split = split_clips(Recordings([7] * 10), 0.2)
    assert split and labels(split.training) == list(range(8)) and labels(split.held_back) == [8, 9]


def test_the_last_of_independent_clips_are_held_back_without_a_warning():
    with warnings.catch_warnings(action="error"):
        split = split_clips(Independent(5), 0.01)
    assert split and labels(split.training) == [0, 1, 2, 3] and labels(split.held_back) == [4]


def test_an_endless_dataset_loses_nothing():
    source = Independent(None)
    split = split_clips(source, 0.5)
    assert split and split.training is source and min(labels(split.held_back)) >= 2**40


def test_a_single_clip_and_a_share_of_zero_hold_nothing_back():
    with pytest.warns(UserWarning, match="a single clip"):
        assert split_clips(Independent(1), 0.5) is None
    assert split_clips(Independent(5), 0.0) is None


def test_a_replacement_from_the_other_side_is_replaced_in_turn():
    source = Recordings([0, 0, 1, 1, 2, 2], broken=[1])
    held_back = source.among(np.array([2, 3, 4, 5]))
    assert held_back[[0, 1, 2]]["label"].tolist() == [4, 4, 4]
    assert source.among(np.array([0, 2]))[[0, 1]]["label"].tolist() == [0, 0]  # the replacement is of this side
    with pytest.raises(UserError, match="None of 1 chosen recordings can be read"):
        source.among(np.array([2, 3]))[[0]]


def test_random_crops_stay_among_the_chosen_images(tmp_path):
    for number in range(4):
        Image.new("RGB", (4, 4), (number * 60,) * 3).save(tmp_path / f"{number}.png")
    (tmp_path / "1.png").write_bytes(b"no image")
    source = RandomCrops(ImageDataset(tmp_path, 2, 2)).among(np.array([1, 3]))
    with pytest.warns(UserWarning, match="cannot be read"):
        batch = source[range(8)]  # image 2 follows image 1, but it was not chosen
    assert set(batch["episode"].tolist()) == {3} and source.num_clips is None
    assert set(batch["video"].flatten().tolist()) == {180}


def test_crops_of_one_image_stay_together(tmp_path):
    for number in range(3):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{number}.png")
    dataset = ImageDataset(tmp_path, 2, 2, ten_crops=True)
    assert dataset.episodes.tolist() == [0] * 10 + [1] * 10 + [2] * 10
    assert [dataset[item]["episode"] for item in (0, 9, 10, 29)] == [0, 0, 1, 2]


def test_drawn_clips_are_the_same_every_time_and_have_no_period():
    drawn = drawn_clips(Independent(1024), 64)
    assert drawn == drawn_clips(Independent(1024), 64) and len(set(drawn)) == 64
    assert 16 < sum(clip % 2 for clip in drawn) < 48  # clips of a mixed dataset alternate
    assert drawn_clips(Independent(3), 64) == [0, 1, 2] and drawn_clips(Independent(None), 2) == [0, 1]
