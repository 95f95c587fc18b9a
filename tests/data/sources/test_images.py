from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mutoscope.data.sources.images import ImageDataset, RandomCrops, find_images
from mutoscope.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes; pixel values say where a crop came from: red the row, green the column."""
    for label, (height, width) in {"ant": (44, 66), "bee": (88, 44)}.items():
        (tmp_path / label).mkdir()
        rows, columns = np.mgrid[0:height, 0:width]
        pixels = np.stack([rows * 2, columns * 2, 0 * rows], axis=-1).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / label / "x.png")
    return tmp_path


def test_classes_are_folders_and_hidden_or_foreign_files_do_not_count(folder: Path):
    (folder / "ant" / ".unfinished.png").touch()
    (folder / "notes.txt").touch()
    files, classes = find_images(folder)
    assert [(file.path.parent.name, file.label) for file in files] == [("ant", 0), ("bee", 1)]
    assert classes == ["ant", "bee"]


def test_an_image_is_scaled_to_cover_and_cropped_to_the_middle(folder: Path):
    dataset = ImageDataset(folder, 44, 44)
    item = dataset[0]
    assert item["video"].shape == (1, 44, 44, 3) and item["label"] == 0 and len(dataset) == 2
    columns = item["video"][0, 0, :, 1].tolist()
    assert columns == [2 * column for column in range(11, 55)]  # the middle 44 of 66


def test_ten_crops_are_the_middle_four_corners_and_their_mirrors(folder: Path):
    dataset = ImageDataset(folder, 40, 40, ten_crops=True)
    crops = [dataset[i]["video"][0].numpy() for i in range(10)]  # of 44x66, not scaled: a tenth larger than 40
    corners = [(int(c[0, 0, 0]) // 2, int(c[0, 0, 1]) // 2 - 11) for c in crops[:5]]
    assert corners == [(2, 2), (0, 0), (0, 4), (4, 0), (4, 4)]
    for crop, mirror in zip(crops[:5], crops[5:], strict=True):
        np.testing.assert_array_equal(crop[:, ::-1], mirror)
    assert dataset[10]["label"] == 1 and len(dataset) == 20


def test_random_crops_show_most_of_an_image_at_any_position_and_mirrored_half_the_time(folder: Path):
    source = RandomCrops(ImageDataset(folder / "bee", 44, 44))  # 88x44: whole width, or 0.8 of it
    crops = [source[[position]]["video"][0, 0].numpy().astype(int) for position in range(200)]
    widths = [abs(crop[0, -1, 1] - crop[0, 0, 1]) / 2 for crop in crops]  # green is twice the column
    assert min(widths) < 36 and max(widths) > 42 and min(widths) > 32
    mirrored = sum(crop[0, 0, 1] > crop[0, -1, 1] for crop in crops)
    assert 70 < mirrored < 130
    tops = [crop[0, 0, 0] / 2 for crop in crops]
    assert min(tops) < 3 and max(tops) > 40


def test_random_crops_depend_on_the_position_alone_and_every_image_comes_once_an_epoch(folder: Path):
    source, again = (RandomCrops(ImageDataset(folder, 20, 24), seed=3) for _ in range(2))
    assert source.num_clips is None and source[[0, 1]]["video"].shape == (2, 1, 20, 24, 3)
    for epoch in range(4):
        batch = source[[2 * epoch, 2 * epoch + 1]]
        assert sorted(batch["label"].tolist()) == [0, 1]
        assert batch["video"].equal(again[[2 * epoch, 2 * epoch + 1]]["video"])
    assert not source[[0]]["video"].equal(RandomCrops(source.dataset, seed=4)[[0]]["video"])


def test_a_broken_image_is_reported_once_and_replaced(folder: Path):
    (folder / "ant" / "a.png").write_bytes(b"\x89PNG nothing")
    dataset = ImageDataset(folder, 8, 8)
    with pytest.warns(UserWarning, match="cannot be read"):
        assert dataset[0]["path"].endswith("ant/x.png")
    assert dataset[0]["label"] == 0 and [path.name for path in dataset.broken] == ["a.png"]


def test_folders_without_images_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="no folder"):
        find_images(tmp_path / "missing")
    with pytest.raises(UserError, match="no images"):
        find_images(tmp_path)
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.warns(UserWarning), pytest.raises(UserError, match="can be read"):
        ImageDataset(tmp_path, 8, 8)[0]


def test_captions_are_the_text_files_beside_images(tmp_path):
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "b.png")
    (tmp_path / "a.txt").write_text(" a dark room\n")
    dataset = ImageDataset(tmp_path, 8, 8)
    assert [dataset[i]["caption"] for i in range(2)] == ["a dark room", ""]
