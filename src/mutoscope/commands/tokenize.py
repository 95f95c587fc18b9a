"""mutoscope tokenize: a cache of tokens, so that training need not encode every clip again."""

import time
from pathlib import Path
from typing import Any, cast

import mutoscope.commands.common as common
from mutoscope.errors import UserError


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
    windows: int = 1,
    tasks: tuple[str, ...] = ("class-conditional", "frame-prediction"),
    batch_size: int = 32,
    num_workers: int = 0,
    device: str = "cpu",
) -> common.Report:
    """Encode clips once and keep their tokens, with those of the condition videos that the tasks need.

    An interrupted run continues when it is started again. A recipe takes the cache with
    --data.kind tokens --data.path OUT.

    Args:
        model: bundled name or folder of a tokenizer, or of a model with one
        data: folder of videos, or "shapes" for the built-in world
        out: folder of the cache, made new
        num_clips: how many clips (default: all of a folder, 4096 of the built-in world)
        num_frames: frames per clip (default: those of the model)
        height: of the clips (default: that of the model)
        width: of the clips (default: that of the model)
        frame_stride: source frames per clip frame
        dataset: layout of the folder, if it is a copy of a data set: ucf101, bair, kinetics600, ssv2, nuscenes,
            objectron or imagenet
        split: of the data set: train, validation or test
        windows: of the data set: clips of every video, evenly spread over its time
        tasks: the tasks whose conditions are encoded too
        batch_size: clips encoded together
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
    if data != "shapes" and not Path(data).expanduser().is_dir():
        raise UserError(f"There is no folder {data!r}. Give a folder of videos, or shapes for the built-in world.")

    from mutoscope import hub
    from mutoscope.data.sources.datasets.catalog import KINDS
    from mutoscope.runs.clips import clip_source, describe_data
    from mutoscope.runs.tokenize import tokenize as encode
    from mutoscope.sampling.tasks import check_task
    from mutoscope.training.config import DataConfig

    for task in tasks:
        check_task(task)
    index = hub.load_index(model)
    target = Path(out).expanduser()
    hub.check_writable_folder(target.parent)
    folder = None if data == "shapes" else str(Path(data).expanduser())
    if dataset is not None and (dataset not in KINDS or folder is None):
        raise UserError(f"--dataset is one of {', '.join(KINDS)}, and DATA its folder; found {dataset} and {data}.")
    values: dict[str, Any] = {"split": split, "windows": windows} if dataset else {}
    config = DataConfig(
        kind=cast(Any, dataset or ("folder" if folder else "shapes")),
        path=folder,
        num_frames=num_frames or index.num_frames,
        height=height or index.height,
        width=width or index.width,
        frame_stride=frame_stride,
        **values,
    )
    source = clip_source(config)
    tokenizer = hub.load_tokenizer(model).to(common.parse_device(device))
    start = time.perf_counter()
    count = num_clips or source.num_clips or 4096
    cache = encode(
        tokenizer,
        model,
        source,
        target,
        num_clips=count,
        tasks=tasks,
        data=describe_data(config) | {"seed": config.seed, "path": folder},
        batch_size=batch_size,
        num_workers=num_workers,
    )
    return {
        "model": model,
        "data": data,
        "output": out,
        "clips": cache.num_clips,
        "latent_shape": list(cache.info.clip_shape),
        "conditions": list(cache.info.conditions),
        "bytes": sum(file.stat().st_size for file in target.iterdir()),
        "seconds": time.perf_counter() - start,
    }


def summary(report: common.Report) -> str:
    size = common.human_bytes(report["bytes"])
    shape = tuple(report["latent_shape"])
    return f"{report['output']}\n{report['clips']} clips of {shape} tokens, {size}, in {report['seconds']:.1f} s"
