from pathlib import Path
from typing import get_args

import pytest
import torch
from PIL import Image

from mutoscope.data.sources.datasets.catalog import DatasetKind
from mutoscope.data.sources.datasets.source import DatasetData, ImagenetData
from mutoscope.data.sources.images import ImagesData
from mutoscope.data.sources.recorded_data import FolderData
from mutoscope.data.sources.registry import SOURCES, from_description, kind_of, of_kind, without_former_fields
from mutoscope.data.sources.shapes.source import ShapesData
from mutoscope.data.sources.tokens import TokenCacheInfo, TokenCacheWriter, TokensData
from mutoscope.errors import UserError


def test_every_data_set_is_a_kind():
    assert set(SOURCES) == {"shapes", "folder", "lerobot", "images", "tokens", *get_args(DatasetKind)}
    for kind, cls in SOURCES.items():
        assert cls(kind=kind).kind == kind


def cache(folder: Path) -> Path:
    writer = TokenCacheWriter(folder, TokenCacheInfo(1, (1, 1, 1), "int16", "vq", "hash"))
    writer.write(torch.zeros(1, 1, 1, 1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    return writer.finish().folder


def test_the_kind_is_found_from_the_path(tmp_path: Path, miniature):
    assert kind_of(cache(tmp_path / "tokens")) == "tokens"
    assert kind_of(miniature("bair")) == "bair" and kind_of(miniature("imagenet")) == "imagenet"
    images = tmp_path / "images" / "ant"
    images.mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(images / "a.png")
    assert kind_of(tmp_path / "images") == "images"
    (images / "clip.mp4").touch()
    assert kind_of(tmp_path / "images") == "folder" and kind_of(images / "clip.mp4") == "folder"


def test_a_path_without_data_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="There is no"):
        kind_of(tmp_path / "missing")
    with pytest.raises(UserError, match="neither videos nor images"):
        kind_of(tmp_path)


def test_another_kind_keeps_the_settings_that_both_have():
    shapes = ShapesData(num_frames=9, height=20, width=24, fps=5, seed=3, max_interval=2, mixed=True)
    folder = of_kind(shapes, "folder", "clips")
    assert folder == FolderData(path="clips", num_frames=9, height=20, width=24, fps=5, seed=3, max_interval=2)
    assert of_kind(folder, "bair") == DatasetData(
        kind="bair", path="clips", num_frames=9, height=20, width=24, fps=5, seed=3, max_interval=2
    )
    crops = ImagenetData(path="a", num_frames=1, random_crops=True)
    assert of_kind(crops, "images") == ImagesData(path="a", num_frames=1, random_crops=True)


def test_an_unknown_kind_gets_the_nearest_name():
    with pytest.raises(UserError, match="unknown kind of data 'ucf'.*did you mean 'ucf101'"):
        of_kind(ShapesData(), "ucf")


def test_a_description_restores_the_data_of_a_cache():
    data = DatasetData(kind="bair", path="b", num_frames=8, seed=2, windows=3)
    described = {"class_names": [], **{name: getattr(data, name) for name in ("kind", "path", "seed", "windows")}}
    assert from_description(TokensData(path="cache", num_frames=8), described | {"context_frames": 2}) == data
    assert from_description(TokensData(path="cache"), {}) == TokensData(path="cache")


def test_former_settings_of_other_kinds_are_ignored_unless_they_were_set():
    values = {"kind": "folder", "path": "x", "num_frames": 8, "max_objects": 3, "windows": 1, "mixed": False}
    assert without_former_fields(values) == {"kind": "folder", "path": "x", "num_frames": 8}
    assert without_former_fields(values | {"windows": 2})["windows"] == 2
    with pytest.raises(UserError, match="'data.crops' has no meaning for data of kind 'folder'"):
        without_former_fields(values | {"crops": 2})
    assert without_former_fields({"kind": "tokens", "path": "x", "mixed": True}) == {"kind": "tokens", "path": "x"}
    assert without_former_fields({"kind": "folder", "spells": 1}) == {"kind": "folder", "spells": 1}
