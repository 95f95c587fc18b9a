"""The papers' data sets as sources of training clips."""

from typing import Any

from mutoscope.data.loader import BatchSource, ItemSource
from mutoscope.data.sources.clips import RandomClips
from mutoscope.data.sources.datasets.catalog import list_dataset, open_dataset
from mutoscope.data.sources.images import ImageDataset, RandomCrops
from mutoscope.training.config import DataConfig


def dataset_source(data: DataConfig) -> BatchSource:
    """The clips or images of one split, evenly spread or drawn anew each time.

    Raises UserError for an unusable copy.
    """
    path, split = data.path or "", data.split
    if data.kind == "imagenet":
        images = ImageDataset(list_dataset("imagenet", path, split).checked(), data.height, data.width, data.ten_crops)
        return RandomCrops(images, data.seed) if data.random_crops else ItemSource(images)
    sizes = (data.num_frames, data.height, data.width, data.frame_stride)
    shared: dict[str, Any] = {"fold": data.fold, "max_interval": data.max_interval, "seed": data.seed}
    shared["with_actions"] = data.kind == "bair" and not data.mirrored  # they have no mirror image
    if data.random_crops:
        shared |= {"random_start": True, "random_crop": True, "random_flip": data.mirrored}
        return RandomClips(open_dataset(data.kind, path, split, *sizes, **shared), data.seed)
    shared |= {"windows": data.windows, "crops": data.crops, "mirrored": data.mirrored}
    return ItemSource(open_dataset(data.kind, path, split, *sizes, **shared))


def describe_dataset(data: DataConfig) -> dict[str, Any]:
    """What model_index.json and the token cache say about the clips."""
    names = ["kind", "split", "windows", "crops", "mirrored", "frame_stride"]
    if data.kind == "imagenet":
        names = ["kind", "split", "ten_crops"]
    elif data.kind == "ucf101":
        names.append("fold")
    classes = list_dataset(data.kind, data.path or "", data.split, fold=data.fold).classes
    return {name: getattr(data, name) for name in names} | {"class_names": classes}
