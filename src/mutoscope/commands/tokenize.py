"""mutoscope tokenize: a cache of tokens, so that training need not encode every clip again."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import mutoscope.commands.common as common
from mutoscope.errors import UserError

if TYPE_CHECKING:
    from mutoscope.data.base import DataConfig

# Refused where they have no meaning
OWN_OPTIONS = frozenset({"windows", "camera", "intervals", "max_gap", "tasks_as_classes"})
ENDLESS_CLIPS = 4096  # default number of clips of an endless source


def tokenize(
    model: str,
    data: str,
    out: str,
    /,
    *,
    num_clips: int | None = None,
    num_frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    frame_stride: int = 1,
    dataset: str | None = None,
    split: str = "train",
    windows: int | None = None,
    window_choice: Literal["even", "random"] = "even",
    camera: str | None = None,
    action_axes: Literal["sum", "mean"] = "sum",
    intervals: tuple[int, ...] = (),
    max_gap: int = 0,
    gap_share: float = 0.5,
    tasks_as_classes: bool = False,
    tasks: tuple[str, ...] | None = None,
    batch_size: int | None = None,
    num_workers: int = 0,
    device: str = "cpu",
) -> common.Report:
    """Encode clips once and store their tokens, with everything that the models trained on them read.

    For a model that is what it reads: conditions of its tasks, captions through its encoder, actions. For a tokenizer
    alone it is everything that the data have. An interrupted run continues when it is started again. A recipe trains on
    the cache with --data OUT.

    Args:
        model: bundled name or folder of a tokenizer, or of a model with one
        data: folder of videos or images, LeRobot dataset, another dataset, or "shapes" for the synthetic dataset
        out: folder of the cache, which must not exist
        num_clips: how many clips (default: all of a folder, 4096 of the synthetic dataset)
        num_frames: frames per clip (default: those of the model)
        height: of the clips (default: that of the model)
        width: of the clips (default: that of the model)
        frame_stride: source frames per clip frame
        dataset: layout of the folder, if it is not the one that is found out: ucf101, bair, kinetics600, ssv2,
            nuscenes, objectron or imagenet
        split: of the dataset: train, validation or test
        windows: clips of every video or episode (default: as many as fit one after the other; of a dataset: one)
        window_choice: where the windows start: even, at equal distances over a video's time, or random, drawn once
        camera: of a LeRobot dataset: key of the camera's feature or its last part (default: the first camera)
        action_axes: how the axes of actions between two frames of a clip are joined: sum or mean
        intervals: frames of a clip are one of these numbers of strides apart, drawn for each window
        max_gap: windows with a temporal gap omit 1 to this many frames after their first one; 0: no gaps
        gap_share: share of the windows that have a gap, of those with earlier frames in their video
        tasks_as_classes: the tasks of a LeRobot dataset are classes
        tasks: the tasks whose condition videos are encoded too (default: those of the model; all ten for a tokenizer
            that gives codes)
        batch_size: clips encoded together (default: as many as have 2^19 pixels on a CPU, 2^22 on a GPU)
        num_workers: processes that read the clips
        device: cpu, cuda, cuda:1, mps ...
    """
    for name, value in {
        "--num-clips": num_clips,
        "--num-frames": num_frames,
        "--height": height,
        "--width": width,
    }.items():
        common.check_range(name, value, low=1)
    common.check_range("--frame-stride", frame_stride, low=1)
    common.check_range("--batch-size", batch_size, low=1)
    common.check_range("--num-workers", num_workers, low=0)
    common.check_range("--windows", windows, low=1)
    if data != "shapes" and not Path(data).expanduser().exists():
        raise UserError(f"There is no folder {data!r}. Give a folder of videos, or shapes for the synthetic dataset.")

    from mutoscope import hub
    from mutoscope.runs.adapt import tokenizer_warnings
    from mutoscope.runs.contents import contents_for
    from mutoscope.runs.tokenize import tokenize as encode
    from mutoscope.sampling.tasks import check_task

    for task in tasks or ():
        check_task(task)
    folder = hub.open_folder(model)
    index = folder.index
    target = Path(out).expanduser()
    hub.check_writable_folder(target.parent)
    sizes = {
        "num_frames": num_frames or index.num_frames,
        "height": height or index.height,
        "width": width or index.width,
    }
    options = {
        "frame_stride": frame_stride,
        "split": split,
        "windows": windows,
        "window_choice": window_choice,
        "camera": camera,
        "action_axes": action_axes,
        "intervals": intervals or None,
        "max_gap": max_gap or None,
        "gap_share": gap_share,
        "tasks_as_classes": tasks_as_classes or None,
    }
    config = clip_config(data, dataset, sizes, options)
    source = config.open()
    contents = contents_for(folder, config, source, tasks)
    tokenizer = folder.load_tokenizer().to(common.parse_device(device))
    start = time.perf_counter()
    cache = encode(
        tokenizer,
        model,
        source,
        target,
        num_clips=num_clips or source.num_clips or ENDLESS_CLIPS,
        tasks=contents.tasks,
        data=config.origin(),
        batch_size=batch_size,
        num_workers=num_workers,
        context_frames=contents.context_frames,
        text=contents.text,
        fields=contents.fields,
        words=contents.words,
    )
    return {
        "model": model,
        "data": data,
        "output": out,
        "clips": cache.num_clips,
        "latent_shape": list(cache.info.clip_shape),
        "conditions": list(cache.info.conditions),
        "fields": sorted({"label", *cache.info.fields, *(["caption"] if cache.info.caption_shape else [])}),
        "warnings": list(tokenizer_warnings(model, index, config)),
        "bytes": sum(file.stat().st_size for file in target.rglob("*")),
        "seconds": time.perf_counter() - start,
    }


def clip_config(
    data: str, dataset: str | None, sizes: Mapping[str, int], options: Mapping[str, object]
) -> "DataConfig":
    """The data that DATA and --dataset name. `options`: settings that only some kinds of data have."""
    from dataclasses import fields

    from mutoscope.data.sources.datasets.catalog import KINDS
    from mutoscope.data.sources.registry import kind_of, source_class

    folder = None if data == "shapes" else str(Path(data).expanduser())
    if dataset is not None and (dataset not in KINDS or folder is None):
        raise UserError(f"--dataset is one of {', '.join(KINDS)}, and DATA its folder; found {dataset} and {data}.")
    kind = dataset or (kind_of(folder) if folder else "shapes")
    known = {field.name for field in fields(source_class(kind))}
    for name in OWN_OPTIONS - known:
        if options.get(name) is not None:
            raise UserError(f"--{name.replace('_', '-')} has no meaning for data of kind {kind!r}: omit it.")
    stated = {name: value for name, value in options.items() if value is not None}
    values = {"kind": kind, "path": folder, **sizes, **stated}
    return source_class(kind)(**{name: value for name, value in values.items() if name in known})


def summary(report: common.Report) -> str:
    size = common.human_bytes(report["bytes"])
    shape = tuple(report["latent_shape"])
    return f"{report['output']}\n{report['clips']} clips of {shape} tokens, {size}, in {report['seconds']:.1f} s"
