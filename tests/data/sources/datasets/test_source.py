from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mutoscope.data.sources.datasets.source import DatasetData, ImagenetData
from mutoscope.errors import UserError

Miniature = Callable[[str], Path]
SIDE = 16

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # every miniature lacks something


def bair(miniature: Miniature) -> DatasetData:
    data = DatasetData(kind="bair", path=str(miniature("bair")), split="test", windows=6, max_interval=3)
    return replace(data, num_frames=8, height=SIDE, width=SIDE)


def test_unmirrored_bair_has_actions_and_intervals_of_its_frames(miniature: Miniature):
    source = bair(miniature).open()
    batch = source[range(12)]
    # The miniature's second number is the frame's own; the rows of an interval are added.
    steps = batch["actions"][:, 1:-1, 1] - batch["actions"][:, :-2, 1]
    assert (steps == batch["interval"][:, None] ** 2).all() and set(batch["interval"].tolist()) == {1, 2, 3}
    assert source.fields["actions"].shape == (8, 4) and {"label", "interval"} <= set(source.fields)


def test_a_mirrored_clip_has_no_actions(miniature: Miniature):
    source = replace(bair(miniature), mirrored=True).open()
    assert "actions" not in source[[0]] and "actions" not in source.fields


def test_an_interval_is_no_field_where_all_clips_have_the_same(miniature: Miniature):
    assert "interval" not in replace(bair(miniature), max_interval=1).open().fields


def test_random_views_are_endless_and_have_the_fields_of_the_clips(miniature: Miniature):
    data = replace(bair(miniature), windows=1, random_crops=True)
    source = data.open()
    assert data.redraws and source.num_clips is None and "actions" in source[[5]] and "actions" in source.fields


def test_a_description_names_the_split_and_how_clips_were_cut(miniature: Miniature):
    described = bair(miniature).describe()
    assert described["max_interval"] == 3 and described["split"] == "test" and "fold" not in described
    ucf = DatasetData(kind="ucf101", path=str(miniature("ucf101"))).describe()
    assert ucf["fold"] == 1 and ucf["class_names"] == ["ApplyEyeMakeup", "HandstandPushups"]


def test_imagenet_is_described_by_its_split_and_crops(miniature: Miniature):
    data = ImagenetData(path=str(miniature("imagenet")), num_frames=1, height=SIDE, width=SIDE, ten_crops=True)
    described = data.describe()
    assert set(described) == {"kind", "split", "ten_crops", "class_names"} and described["ten_crops"]
    source = data.open()
    assert source.num_clips == 60 and tuple(source.class_names) == tuple(data.class_names())


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(UserError, match="without ten_crops"):
        ImagenetData(random_crops=True, ten_crops=True)
    with pytest.raises(UserError, match="leave windows and crops at 1"):
        DatasetData(kind="ucf101", random_crops=True, windows=4)
    with pytest.raises(UserError, match="max_interval must be between"):
        DatasetData(kind="ucf101", max_interval=26)


def test_a_data_set_without_a_path_or_in_another_layout_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="'ucf101' needs a path"):
        DatasetData(kind="ucf101").open()
    with pytest.raises(UserError, match="holds neither lists of its splits nor a folder 'train'"):
        DatasetData(kind="ucf101", path=str(tmp_path)).open()
