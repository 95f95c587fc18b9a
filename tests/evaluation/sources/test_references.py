"""The real side of a protocol: datasets in their own formats, plain folders, the shapes dataset."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from evaluation.fakes import write_videos
from mutoscope.data.sources.shapes.world import HELD_BACK_SEED, ShapesWorld
from mutoscope.errors import UserError
from mutoscope.evaluation.protocols.published import VIDEO_PROTOCOLS, video_protocol
from mutoscope.evaluation.sources.references import open_reference
from mutoscope.evaluation.sources.windows import Window

Miniature = Callable[[str], Path]

# dataset -> a protocol of its own, how many videos of the miniature suit it, and notes on the others
EXPECTED = {
    "ucf101": ("ucf101-magvit", 2, ("no such file", "8 frames, 16 are needed")),
    "bair": ("bair-frame-prediction", 2, ()),
    "kinetics600": ("kinetics600-frame-prediction", 1, ("no such file",)),
    "ssv2": ("ssv2-class-conditional", 2, ("no such file",)),
    "nuscenes": ("nuscenes-frame-prediction", 2, ()),
    "objectron": ("objectron-frame-interpolation", 2, ()),
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_a_data_set_is_read_in_its_own_format(miniature: Miniature, kind: str):
    name, count, reasons = EXPECTED[kind]
    listing = open_reference(video_protocol(name), miniature(kind))
    assert len(listing.files) == count and kind in listing.notes[0]
    for reason in reasons:
        assert any(reason in note for note in listing.skipped)
    clip = listing.read(Window(listing.files[0], 2), 16, 1, (24, 24))
    assert clip.shape == (16, 24, 24, 3) and clip.dtype == torch.uint8 and clip.float().std() > 5
    whole = listing.read(Window(listing.files[0], 2), 16, 1, None)
    assert whole.shape[0] == 16


def test_the_labels_of_a_data_set_number_its_classes(miniature: Miniature):
    listing = open_reference(video_protocol("ucf101-magvit"), miniature("ucf101"))
    assert listing.classes == ("ApplyEyeMakeup", "HandstandPushups")
    assert [listing.classes[file.label] in file.path.as_posix() for file in listing.files] == [True, True]


def test_frames_of_records_are_those_of_the_record(miniature: Miniature):
    listing = open_reference(video_protocol("bair-frame-prediction"), miniature("bair"))
    first, second = (listing.read(Window(file), 16, 1, (64, 64)).float().mean() for file in listing.files)
    assert second - first == pytest.approx(20, abs=1)  # the second trajectory is that much brighter


def test_protocols_of_two_splits_have_both(miniature: Miniature):
    listing = open_reference(video_protocol("ucf101-stylegan-v"), miniature("ucf101"))
    assert len(listing.files) == 4 and "train and test" in listing.notes[0]


def test_another_split_can_be_named(miniature: Miniature):
    listing = open_reference(video_protocol("ucf101-magvit"), miniature("ucf101"), "test")
    assert len(listing.files) == 2 and all("g01" in file.path.name for file in listing.files)
    with pytest.raises(UserError, match="ucf101 has the splits train, test"):
        open_reference(video_protocol("ucf101-magvit"), miniature("ucf101"), "validation")


def test_a_protocol_of_any_data_set_needs_the_split(miniature: Miniature):
    with pytest.raises(UserError, match="laid out as bair.*--split train or test"):
        open_reference(video_protocol("fvd"), miniature("bair"))
    assert len(open_reference(video_protocol("fvd"), miniature("bair"), "test").files) == 2


def test_a_plain_folder_is_searched_for_videos(tmp_path: Path):
    write_videos(tmp_path, 2, names=lambda i: f"class{i}/{i}")
    listing = open_reference(video_protocol("ucf101-magvit"), tmp_path)
    assert len(listing.files) == 2 and listing.classes == ("class0", "class1")
    with pytest.raises(UserError, match="plain folder of videos, which has no split 'test'"):
        open_reference(video_protocol("ucf101-magvit"), tmp_path, "test")


def test_another_data_set_than_the_protocols_is_refused(miniature: Miniature):
    with pytest.raises(UserError, match="is about ucf101; .* is laid out as bair"):
        open_reference(video_protocol("ucf101-magvit"), miniature("bair"))


def test_a_missing_reference_and_one_of_short_videos_are_refused(miniature: Miniature):
    with pytest.raises(UserError, match="--reference FOLDER"):
        open_reference(video_protocol("ucf101-magvit"), None)
    long = replace(video_protocol("ucf101-magvit"), num_frames=60)
    with pytest.raises(UserError, match="No video of .* gives a clip: 6 omitted"):
        open_reference(long, miniature("ucf101"))


def test_clips_of_the_shapes_dataset_are_rendered_when_they_are_read(tmp_path: Path):
    protocol = VIDEO_PROTOCOLS["shapes-10k"]
    listing = open_reference(protocol, None, num_clips=3)
    assert len(listing.files) == 6  # the second half is for real-against-real
    clip = listing.read(Window(listing.files[4]), 16, 1, protocol.size)
    assert torch.equal(clip, torch.from_numpy(ShapesWorld(seed=HELD_BACK_SEED).clip(4).frames))
    assert len(open_reference(protocol, None).files) == 20_000
    with pytest.raises(UserError, match="omit --reference"):
        open_reference(protocol, tmp_path)
