"""Every dataset in miniature: what is listed, what is missing, what clips look like."""

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from miniatures import LONG, bair_tfds, moving, names, ucf101, video, write
from mutoscope.data.sources.clips import ClipDataset
from mutoscope.data.sources.datasets.catalog import KINDS, list_dataset, open_dataset, present_splits, recognise
from mutoscope.data.sources.datasets.listing import read_lines
from mutoscope.data.sources.images import ImageDataset
from mutoscope.data.sources.recorded_data import RandomClips
from mutoscope.data.video.read import read_video
from mutoscope.errors import UserError

Miniature = Callable[[str], Path]
FRAMES = {"imagenet": 1}

# kind: classes, entries and missing ones of the training split, entries of the other one
EXPECTED: dict[str, tuple[list[str], int, int, tuple[str, int]]] = {
    "ucf101": (["ApplyEyeMakeup", "HandstandPushups"], 4, 2, ("test", 2)),
    "bair": ([], 4, 1, ("test", 2)),
    "kinetics600": (["abseiling", "riding a bike"], 4, 1, ("validation", 1)),
    "ssv2": (["Pushing something from left to right", "Holding something next to something"], 3, 1, ("validation", 1)),
    "nuscenes": ([], 17, 1, ("validation", 2)),
    "objectron": (["bike", "shoe"], 2, 1, ("test", 2)),
    "imagenet": (["n01440764", "n02105855"], 6, 0, ("validation", 6)),
}


def opened(kind: str, folder: Path, split: str = "train", **options: Any) -> ClipDataset:
    """Clips of a copy that lacks something, as all of them do."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return open_dataset(kind, folder, split, FRAMES.get(kind, 16), 16, 16, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_is_recognised_and_its_splits_are_counted(miniature: Miniature, kind: str):
    classes, entries, missing, (other, others) = EXPECTED[kind]
    assert recognise(miniature(kind)) == kind
    listing = list_dataset(kind, miniature(kind))
    assert (listing.classes, len(listing.files), len(listing.missing)) == (classes, entries, missing)
    assert sum(listing.class_counts().values()) == (entries if classes else 0)
    assert len(list_dataset(kind, miniature(kind), other).files) == others
    assert {"train", other} <= set(present_splits(kind, miniature(kind)))


@pytest.mark.parametrize("kind", KINDS)
def test_every_clip_has_frames_and_broken_files_are_reported_once_and_replaced(miniature: Miniature, kind: str):
    dataset = opened(kind, miniature(kind))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        items = [dataset[i] for i in range(len(dataset))] + [dataset[i] for i in range(len(dataset))]
    assert all(item["video"].shape == (FRAMES.get(kind, 16), 16, 16, 3) for item in items)
    assert all(item["video"].float().std() > 1 for item in items)  # no silent black clip
    unusable = dataset.broken + dataset.skipped
    assert len(caught) == len(unusable)
    broken = {"ucf101": 1, "bair": 1, "kinetics600": 1, "ssv2": 1, "nuscenes": 1, "objectron": 0, "imagenet": 1}
    assert len(dataset.broken) == broken[kind]
    assert len(dataset.skipped) == (kind in ("ucf101", "kinetics600"))
    assert not {problem.path for problem in unusable} & {item["path"] for item in items}


@pytest.mark.parametrize("kind", KINDS)
def test_missing_files_are_reported_once_when_a_split_is_opened(miniature: Miniature, kind: str):
    missing = EXPECTED[kind][2]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dataset = open_dataset(kind, miniature(kind), "train", 1, 16, 16)
    assert len(caught) == bool(missing) and len(dataset.missing) == missing
    assert not missing or f"lacks {missing} of" in str(caught[0].message)


def test_ucf101_takes_the_class_from_the_folder_and_the_frames_from_the_file(miniature: Miniature):
    listing = list_dataset("ucf101", miniature("ucf101"))
    assert [(file.path.name, file.label) for file in listing.files][:2] == [
        ("v_ApplyEyeMakeup_g08_c01.avi", 0),
        ("v_HandStandPushups_g08_c01.avi", 1),
    ]
    assert listing.unlisted == 1  # group 25 is in neither list of this fold
    assert names(problem.path for problem in listing.missing) == [
        "v_ApplyEyeMakeup_g10_c01.avi",
        "v_HandStandPushups_g10_c01.avi",
    ]
    item = opened("ucf101", miniature("ucf101"), windows=3)[2]
    whole = read_video(listing.files[0].path, size=(16, 16), keep_aspect=True).frames
    left = (whole.shape[2] - 16) // 2
    assert item["start"] == LONG - 16
    np.testing.assert_array_equal(item["video"].numpy(), whole[-16:, :, left : left + 16])


def test_ucf101_is_also_read_without_lists_from_train_and_test_folders(tmp_path: Path):
    for split in ("train", "test"):
        for name in ("Archery", "Biking") if split == "train" else ("Biking",):
            video(tmp_path / split / name / f"v_{name}_g01_c01.avi", moving(20), "mpeg4")
    assert recognise(tmp_path) == "ucf101"
    assert [file.label for file in list_dataset("ucf101", tmp_path, "test").files] == [1]
    assert list_dataset("ucf101", tmp_path, "test").classes == ["Archery", "Biking"]


def test_ucf101_may_be_named_by_the_folder_of_its_videos(miniature: Miniature):
    assert len(list_dataset("ucf101", miniature("ucf101") / "UCF-101", "test").files) == 2


def test_other_folds_need_their_lists(miniature: Miniature):
    with pytest.raises(UserError, match=r"trainlist02\.txt cannot be read"):
        list_dataset("ucf101", miniature("ucf101"), fold=2)
    with pytest.raises(UserError, match="found fold 4"):
        list_dataset("ucf101", miniature("ucf101"), fold=4)


def test_bair_gives_raw_pixels_of_the_camera_and_actions_of_the_frames(miniature: Miniature):
    frames = moving(30, 64, 64, 60)
    options = {"num_frames": 16, "height": 64, "width": 64, "windows": 15, "with_actions": True}
    dataset = open_dataset("bair", miniature("bair"), "test", **options)
    assert len(dataset) == 30 and [dataset[i]["start"] for i in range(15)] == list(range(15))
    item = dataset[4]
    np.testing.assert_array_equal(item["video"].numpy(), frames[4:20])
    assert item["actions"].dtype == torch.float32 and item["actions"].shape == (16, 4)
    assert item["actions"][:, 1].tolist() == list(range(4, 20)) and dataset[15]["actions"][0, 0] == 1
    assert item["endeffector_positions"].shape == (16, 3) and item["label"] == -1
    top = list_dataset("bair", miniature("bair"), "test", camera="image_main")
    np.testing.assert_array_equal(ClipDataset(top, 16, 64, 64, windows=1)[0]["video"].numpy(), 255 - frames[:16])


def test_bair_names_the_record_that_is_damaged_and_keeps_those_before_a_cut(miniature: Miniature):
    listing = list_dataset("bair", miniature("bair"))
    assert [file.name.rpartition("/")[2] for file in listing.files][:3] == [
        f"traj_0_to_255.tfrecords#{number}" for number in range(3)
    ]
    assert listing.missing[0].reason == "ends inside record 1"
    dataset = opened("bair", miniature("bair"))
    with pytest.warns(UserWarning, match=r"#1|checksum"):
        dataset[1]
    assert [problem.path.rpartition("#")[2] for problem in dataset.broken] == ["1"]


def test_the_copy_of_bair_by_tensorflow_datasets(tmp_path: Path):
    assert recognise(bair_tfds(tmp_path)) == "bair"
    item = open_dataset("bair", tmp_path, "train", 16, 64, 64, with_actions=True)[0]
    np.testing.assert_array_equal(item["video"].numpy(), moving(30, 64, 64)[:16])
    assert item["actions"][1].tolist() == [4, 5, 6, 7]
    with pytest.raises(UserError, match="there is nothing of the test split of bair"):
        open_dataset("bair", tmp_path, "test", 16, 64, 64)


def test_kinetics_finds_files_by_identifier_and_time_flat_or_in_class_folders(miniature: Miniature):
    listing = list_dataset("kinetics600", miniature("kinetics600"))
    labels = {file.path.name: file.label for file in listing.files}
    assert labels["aaaaaaaaaaa_000001_000011.mp4"] == 1 and labels["-bbbbbbbbbb_000020_000030.mp4"] == 0
    assert names(problem.path for problem in listing.missing) == ["dead0000000_000003_000013.mp4"]
    validation = list_dataset("kinetics600", miniature("kinetics600"), "validation")
    assert [file.label for file in validation.files] == [0] and len(validation.missing) == 1
    test = list_dataset("kinetics600", miniature("kinetics600"), "test")
    assert [file.label for file in test.files] == [-1] and test.classes == listing.classes


def test_windows_and_crops_are_spread_evenly(miniature: Miniature):
    dataset = open_dataset("kinetics600", miniature("kinetics600"), "test", 16, 16, 16, windows=2, crops=3)
    items = [dataset[i] for i in range(len(dataset))]
    assert [item["start"] for item in items] == [0, 0, 0, LONG - 16, LONG - 16, LONG - 16]
    whole = read_video(items[0]["path"], size=(16, 16), keep_aspect=True).frames[:16]
    room = whole.shape[2] - 16
    for item, left in zip(items[:3], (0, room // 2, room), strict=True):
        np.testing.assert_array_equal(item["video"].numpy(), whole[:, :, left : left + 16])


def test_mirrored_clips_come_beside_the_others(miniature: Miniature):
    dataset = opened("objectron", miniature("objectron"), mirrored=True)
    assert len(dataset) == 4
    assert torch.equal(dataset[1]["video"], dataset[0]["video"].flip(2)) and dataset[1]["path"] == dataset[0]["path"]


def test_something_something_has_classes_from_templates_and_captions_from_labels(miniature: Miniature):
    listing = list_dataset("ssv2", miniature("ssv2"))
    assert [(file.label, file.caption) for file in listing.files][:2] == [
        (1, "holding a potato next to a cup"),
        (0, "pushing a cup from left to right"),
    ]
    assert [file.label for file in list_dataset("ssv2", miniature("ssv2"), "test").files] == [1]
    with pytest.raises(UserError, match="must not be mirrored"):
        opened("ssv2", miniature("ssv2"), random_flip=True)


def test_an_unknown_template_is_reported_and_not_guessed(miniature: Miniature, tmp_path: Path):
    shutil.copytree(miniature("ssv2"), tmp_path / "copy")
    path = tmp_path / "copy" / "labels" / "train.json"
    path.write_text(path.read_text().replace("Holding [something]", "Dropping [something]", 1))
    assert len(list_dataset("ssv2", tmp_path / "copy").missing) == 2
    path.write_text("{}")
    with pytest.raises(UserError, match="must hold a JSON list"):
        list_dataset("ssv2", tmp_path / "copy")
    path.write_text("[")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        list_dataset("ssv2", tmp_path / "copy")


def test_nuscenes_videos_are_runs_of_the_front_camera_in_order_of_time(miniature: Miniature):
    listing = list_dataset("nuscenes", miniature("nuscenes"))
    assert [file.part for file in listing.files][:3] == ["scene-0000/0", "scene-0001/0", "scene-0001/32"]
    assert "1 of 32 images of scene-0000 from 32 on" in listing.missing[0].reason
    validation = open_dataset("nuscenes", miniature("nuscenes"), "validation", 16, 18, 32, windows=16)
    assert len(validation) == 32 and validation[15]["start"] == 16
    clip = validation[0]["video"].numpy().astype(int)
    assert np.abs(clip - moving(65, 18, 32, 140)[:16]).mean() < 6  # scene 9, in order, but for JPEG
    assert "not published" in listing.notes[0]


def test_objectron_videos_are_upright(miniature: Miniature):
    item = opened("objectron", miniature("objectron"))[0]
    info = list_dataset("objectron", miniature("objectron")).files[0]
    assert info.path.name == "video.MOV" and read_video(info.path).frames.shape[1:3] == (32, 24)
    assert item["label"] == 0


def test_imagenet_reads_images_of_any_content_and_flat_validation(miniature: Miniature, tmp_path: Path):
    listing = list_dataset("imagenet", miniature("imagenet"))
    images = ImageDataset(listing, 16, 16)
    with pytest.warns(UserWarning, match="n01440764_0"):
        items = [images[i] for i in range(len(images))]
    assert [item["label"] for item in items] == [0, 0, 0, 1, 1, 1] and images.class_names == listing.classes
    kaggle = tmp_path / "ILSVRC" / "Data" / "CLS-LOC"
    kaggle.mkdir(parents=True)
    shutil.copytree(miniature("imagenet") / "train", kaggle / "train")
    (kaggle / "val").mkdir()
    shutil.copy(
        miniature("imagenet") / "val" / "n02105855" / "n02105855_0.JPEG", kaggle / "val" / "ILSVRC2012_val_1.JPEG"
    )
    write(tmp_path / "LOC_val_solution.csv", "ImageId,PredictionString\nILSVRC2012_val_1,n02105855 1 2 3 4\n")
    assert recognise(tmp_path) == "imagenet"
    assert [file.label for file in list_dataset("imagenet", tmp_path, "validation").files] == [1]


def test_random_clips_depend_on_the_position_alone_and_every_video_comes_once_an_epoch(miniature: Miniature):
    options = {"random_start": True, "random_crop": True, "random_flip": True}
    source, again = (RandomClips(opened("bair", miniature("bair"), "test", **options), seed=3) for _ in range(2))
    seen = set()
    for epoch in range(6):
        batch = source[[2 * epoch, 2 * epoch + 1]]
        assert len(set(batch["path"])) == 2
        assert batch["video"].equal(again[[2 * epoch, 2 * epoch + 1]]["video"])
        seen |= set(batch["start"].tolist())
    assert len(seen) > 4 and max(seen) <= 14 and min(seen) >= 0


def test_short_videos_may_be_looped(miniature: Miniature):
    dataset = opened("ucf101", miniature("ucf101"), short="loop")
    item = dataset[2]
    assert item["path"].endswith("g09_c01.avi") and torch.equal(item["video"][8:], item["video"][:8])


def test_data_sets_that_cannot_be_opened_are_refused_in_a_sentence(miniature: Miniature, tmp_path: Path):
    with pytest.raises(UserError, match="unknown dataset 'mnist'"):
        list_dataset("mnist", tmp_path)
    with pytest.raises(UserError, match="has the splits train, test; found 'validation'"):
        list_dataset("ucf101", tmp_path, "validation")
    with pytest.raises(UserError, match="no folder"):
        list_dataset("bair", tmp_path / "none")
    with pytest.raises(UserError, match="must not be mirrored: actions"):
        open_dataset("bair", miniature("bair"), "test", 16, 64, 64, with_actions=True, mirrored=True)
    with pytest.raises(UserError, match="has no actions"):
        open_dataset("objectron", miniature("objectron"), "test", 16, 16, 16, with_actions=True)
    for kind in KINDS:
        with pytest.raises(UserError):
            open_dataset(kind, tmp_path, "train", 16, 16, 16)
    assert recognise(tmp_path) is None and recognise(tmp_path / "none") is None


def test_a_copy_of_which_every_video_is_gone_is_an_error(tmp_path: Path):
    shutil.rmtree(ucf101(tmp_path) / "UCF-101")
    with pytest.raises(UserError, match=r"all 6 entries are missing, the first: .*g08_c01\.avi: there is no such file"):
        open_dataset("ucf101", tmp_path, "train", 16, 16, 16)


def test_tables_of_nuscenes_that_are_damaged_are_named(miniature: Miniature, tmp_path: Path):
    shutil.copytree(miniature("nuscenes") / "v1.0-trainval", tmp_path / "v1.0-trainval")
    write(tmp_path / "v1.0-trainval" / "sample.json", '[{"token": "x"}]')
    with pytest.raises(UserError, match=r"sample\.json is not a table of nuScenes: every row needs token, scene_token"):
        list_dataset("nuscenes", tmp_path)
    write(tmp_path / "v1.0-trainval" / "sample.json", "[{")
    with pytest.raises(UserError, match=r"sample\.json is not JSON"):
        list_dataset("nuscenes", tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_lists_and_tables_of_every_editor_are_read(tmp_path: Path, encoding: str):
    for line_end in ("\n", "\r\n"):
        (tmp_path / "list.txt").write_bytes(f"  Übung/a.avi 1{line_end}{line_end}b.avi 2".encode(encoding))
        assert read_lines(tmp_path / "list.txt") == ["Übung/a.avi 1", "b.avi 2"]
    (tmp_path / "train.csv").write_bytes(
        'label,youtube_id,time_start,time_end,split\r\n"jouer, à la pétanque",abc,0,10,train\r\n'.encode(encoding)
    )
    (tmp_path / "other.csv").write_bytes("größe,farbe\n1,2\n".encode("latin-1"))  # belongs to something else
    (tmp_path / "abc_000000_000010.mp4").write_bytes(b"video")
    listing = list_dataset("kinetics600", tmp_path)
    assert listing.classes == ["jouer, à la pétanque"] and len(listing.files) == 1


def test_tables_in_another_encoding_are_refused_by_name(tmp_path: Path):
    rows = "label,youtube_id,time_start,time_end,split\njouer à la pétanque,abc,0,10,train\n"
    (tmp_path / "train.csv").write_bytes(rows.encode("latin-1"))
    with pytest.raises(UserError, match=r"train\.csv is not UTF-8 text"):
        list_dataset("kinetics600", tmp_path)
