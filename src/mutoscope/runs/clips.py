"""Where the clips of a recipe come from: the built-in world, a folder, images, or a data set; and how a run says so."""

from dataclasses import fields, replace
from typing import Any

from mutoscope.data.loader import BatchSource, ItemSource, ShapesSource
from mutoscope.data.sources.datasets.catalog import KINDS
from mutoscope.data.sources.folder import find_videos, spread
from mutoscope.data.sources.images import ImageDataset, RandomCrops, find_images
from mutoscope.data.sources.shapes.mixed import VariedShapesSource
from mutoscope.data.sources.shapes.world import HELD_BACK_SEED, ShapesConfig, ShapesWorld
from mutoscope.data.sources.tokens import TokenCache
from mutoscope.errors import UserError
from mutoscope.runs.datasets import dataset_source, describe_dataset
from mutoscope.training.config import DataConfig
from mutoscope.training.trainer import Batch


def shapes_world(data: DataConfig, seed: int) -> ShapesWorld:
    """The built-in world at the sizes of `data`."""
    config = ShapesConfig(data.height, data.width, data.num_frames, data.fps, data.max_objects, data.controllable)
    return ShapesWorld(config, seed)


def clip_source(data: DataConfig) -> BatchSource:
    """Batches with "video" uint8 (b, t, h, w, 3) and "label" (b,) of the built-in world, a folder or a data set."""
    if data.kind == "shapes":
        return shapes_source(data, data.seed)
    if data.kind == "folder" and data.path:
        from mutoscope.data.sources.clips import ClipDataset

        sizes = data.num_frames, data.height, data.width, data.frame_stride
        return ItemSource(ClipDataset(data.path, *sizes, max_interval=data.max_interval, seed=data.seed))
    if data.kind == "images" and data.path:
        images = ImageDataset(data.path, data.height, data.width, data.ten_crops)
        return RandomCrops(images, data.seed) if data.random_crops else ItemSource(images)
    if data.kind in KINDS and data.path:
        return dataset_source(data)
    raise UserError(
        'Clips come from kind "shapes", or "folder", "images" or a data set with a path; '
        f"found {data.kind!r} and {data.path!r}."
    )


def shapes_source(data: DataConfig, seed: int) -> BatchSource:
    """Clips of the built-in world, plain or varied."""
    world = shapes_world(data, seed)
    if data.max_interval == 1 and not data.mixed and not data.max_jump:
        return ShapesSource(world)
    steered = replace(data, mixed=False, max_interval=1, max_jump=0, flawed_history=False, controllable=True)
    agents = shapes_world(steered, seed) if data.mixed else None
    return VariedShapesSource(world, data.max_interval, agents, data.max_jump, data.flawed_history)


def example_clips(data: DataConfig, count: int = 4) -> Batch:
    """The same few clips every time; of the built-in world ones that training never sees, without jumps and flaws."""
    plain = replace(data, max_jump=0, flawed_history=False)
    source = shapes_source(plain, HELD_BACK_SEED) if data.kind == "shapes" else clip_source(data)
    return source[spread(source.num_clips or count, count)]


def describe_data(data: DataConfig) -> dict[str, Any]:
    """What model_index.json and the token cache say about the clips; cached ones are described by their cache."""
    if data.kind == "tokens":
        return TokenCache(data.path or "").info.data
    varied = {} if data.max_interval == 1 else {"max_interval": data.max_interval}
    if data.kind == "folder":
        return {"kind": "folder", "class_names": find_videos(data.path or "")[1]} | varied
    if data.kind == "images":
        return {"kind": "images", "class_names": find_images(data.path or "")[1], "ten_crops": data.ten_crops}
    if data.kind in KINDS:
        return describe_dataset(data) | varied
    names = ("height", "width", "num_frames", "fps", "max_objects", "controllable")
    varied |= {"mixed": True} if data.mixed else {}
    varied |= {"max_jump": data.max_jump} if data.max_jump else {}
    varied |= {"flawed_history": True} if data.flawed_history else {}
    return {"kind": "shapes"} | {name: getattr(data, name) for name in names} | varied


def from_description(data: DataConfig, described: dict[str, Any]) -> DataConfig:
    """`data` with everything a description says about its clips."""
    known = {f.name for f in fields(DataConfig)}
    return replace(data, **{name: value for name, value in described.items() if name in known})
