"""Every kind of training data by name, and the ways to find the right one: a name, a path, a JSON object.

The package's `__init__` stays empty, so that listing the files of a dataset does not import torch.
"""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from mutoscope.data.base import DataConfig, flat
from mutoscope.data.media import IMAGE_SUFFIXES, VIDEO_SUFFIXES, files_below
from mutoscope.data.sources.datasets.catalog import recognise
from mutoscope.data.sources.datasets.source import DatasetData, ImagenetData
from mutoscope.data.sources.images import ImagesData
from mutoscope.data.sources.lerobot_tables import is_lerobot
from mutoscope.data.sources.recorded_data import FolderData, LeRobotData, RecordedData
from mutoscope.data.sources.shapes.source import ShapesData
from mutoscope.data.sources.tokens import METADATA, TokensData
from mutoscope.errors import UserError
from mutoscope.json_config import nearest

SOURCES: dict[str, type[DataConfig]] = {
    "shapes": ShapesData,
    "folder": FolderData,
    "lerobot": LeRobotData,
    "images": ImagesData,
    "tokens": TokensData,
    "ucf101": DatasetData,
    "bair": DatasetData,
    "kinetics600": DatasetData,
    "ssv2": DatasetData,
    "nuscenes": DatasetData,
    "objectron": DatasetData,
    "imagenet": ImagenetData,
}

# Recipes of earlier versions hold the settings of all kinds in one object. Those of another kind are ignored as long as
# they have the value that meant "not set".
_FORMER_DEFAULTS: dict[str, object] = {
    "path": None,
    "frame_stride": 1,
    "split": "train",
    "fold": 1,
    "windows": 1,
    "crops": 1,
    "mirrored": False,
    "random_crops": False,
    "ten_crops": False,
    "max_objects": 3,
    "controllable": False,
    "max_interval": 1,
    "mixed": False,
    "max_jump": 0,
    "flawed_history": False,
}


def source_class(kind: object) -> type[DataConfig]:
    """The configuration class of a kind. Raises UserError for an unknown one, with the nearest name."""
    if (found := SOURCES.get(str(kind))) is None:
        raise UserError(f"unknown kind of data {kind!r}: {nearest(str(kind), SOURCES)}")
    return found


def kind_of(path: str | Path) -> str:
    """Which kind of data a path holds: a token cache, LeRobot's, a known dataset's, images only, else videos.

    Raises UserError for a path that holds none of these.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"There is no {str(path)!r}; name a folder of videos or images, a dataset or a token cache.")
    if (path / METADATA).is_file() and (path / "tokens.npy").is_file():
        return "tokens"
    if is_lerobot(path):
        return "lerobot"
    if (dataset := recognise(path)) is not None:
        return dataset
    if path.is_file():
        return "folder"
    if files_below(path, VIDEO_SUFFIXES):
        return "folder"
    if files_below(path, IMAGE_SUFFIXES):
        return "images"
    raise UserError(f"{str(path)!r} holds neither videos nor images, and it is no dataset and no token cache.")


def of_kind(data: DataConfig, kind: str, path: str | None = None) -> DataConfig:
    """`data` as another kind: settings that both kinds have keep their values, the others are dropped."""
    target = source_class(kind)
    values = _shared(data, target) | {"kind": kind}
    if path is not None:
        values["path"] = path
    return _create(target, values)


def from_description(data: DataConfig, described: Mapping[str, object]) -> DataConfig:
    """The data that a description (`DataConfig.origin`) names, with the sizes of `data` where it names none."""
    if "kind" not in described:
        return data
    target = source_class(described["kind"])
    known = {name: value for name, value in flat(described).items() if name in _names(target)}
    return _create(target, _shared(data, target) | known)


def without_former_fields(values: Mapping[str, object]) -> dict[str, object]:
    """Settings in JSON without those that an earlier version wrote for other kinds.

    Raises UserError for a setting that was changed from its default and has no meaning for this kind. A token cache
    ignores all of them: its own metadata describes the clips.
    """
    target = source_class(values.get("kind", "shapes"))
    if "max_objects" in values and issubclass(target, RecordedData) and values.get("windows") == 1:
        values = {name: value for name, value in values.items() if name != "windows"}  # it meant "not set"
    foreign = {name: value for name, value in values.items() if name not in _names(target) and name in _FORMER_DEFAULTS}
    for name, value in foreign.items():
        if value != _FORMER_DEFAULTS[name] and target is not TokensData:
            raise UserError(f"'data.{name}' has no meaning for data of kind {values.get('kind')!r}: remove it.")
    return {name: value for name, value in values.items() if name not in foreign}


def _create(target: type[DataConfig], values: Mapping[str, Any]) -> DataConfig:
    return target(**values)


def _shared(data: DataConfig, target: type[DataConfig]) -> dict[str, object]:
    """Settings that both kinds have. One window is a dataset's default; a folder's default is every clip."""
    names = _names(target) & _names(type(data)) - {"kind"}
    if issubclass(target, RecordedData) and isinstance(data, DatasetData) and data.windows == 1:
        names -= {"windows"}
    if isinstance(data, RecordedData) and data.windows is None:
        names -= {"windows"}
    return {name: getattr(data, name) for name in names}


def _names(cls: type[DataConfig]) -> set[str]:
    assert is_dataclass(cls)
    return {field.name for field in fields(cls)}


__all__ = ["SOURCES", "from_description", "kind_of", "of_kind", "source_class", "without_former_fields"]
