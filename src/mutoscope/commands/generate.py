"""mutoscope generate: video clips from a model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mutoscope.commands.common as common
from mutoscope.commands.options import (
    HARDWARE,
    OUTPUT,
    Flag,
    dataclass_flags,
    family_of_folder,
    help_text,
    model_flags,
    parse_options,
)
from mutoscope.errors import UserError
from mutoscope.writing import new_folder

if TYPE_CHECKING:
    import numpy as np

    from mutoscope.data.video.read import VideoClip
    from mutoscope.families.actions import ActionRows
    from mutoscope.hub import ModelFolder, ModelIndex
    from mutoscope.pipeline import Generation, Request, VideoPipeline

MAX_CONTEXT = 256  # frames read of a file whose number of context frames is not stated


@dataclass(frozen=True)
class OutputOptions:
    """The file to write."""

    out: str
    """File to write: .mp4 .webm .gif, or .png for a contact sheet; several samples become NAME-0, NAME-1 ..."""
    fps: float | None = None
    """Frames per second of the file; default: as in training."""
    upscale: int = 1
    """Repeat every pixel this many times in both directions."""


def generate(
    model: str, /, *, output: OutputOptions, load: common.LoadOptions, overrides: Sequence[str] = ()
) -> common.Report:
    """Generate video clips with a model and write them to files.

    `mutoscope generate MODEL --help` shows the options of this model.

    Args:
        model: bundled name or model folder
        output: the file to write
        load: how the model is loaded
        overrides: options of the model's calls
    """
    path = common.check_output_file(output.out)
    common.check_range("--fps", output.fps, above=0, high=1000)
    common.check_range("--upscale", output.upscale, low=1, high=64)
    from mutoscope import hub

    folder = hub.open_folder(model)  # an unknown name is refused before anything slow
    options = parse_options(folder, f"mutoscope generate {model}", overrides)
    _check_options(options)
    files = _read_files(folder, options)
    pipeline = common.load_pipeline(folder, load)
    result = _generate(pipeline, options, files)
    fps = output.fps or folder.index.fps
    outputs, size, warnings = _write(result.clips, path, fps, output.upscale)
    warnings = [*result.request.warnings, *warnings]
    written = {"outputs": outputs, "height": size[0], "width": size[1], "fps": fps, "warnings": warnings}
    return _report(model, result, pipeline, load) | written


def _generate(
    pipeline: "VideoPipeline", options: Mapping[str, object], files: Mapping[str, "np.ndarray"]
) -> "Generation":
    """Clips of any length and width that the family offers."""
    asked = {**options, **files}
    if "context" in files and pipeline.model is not None:
        count = options.get("context_frames") or pipeline.model.config.context_frames
        asked["context"] = files["context"][: int(str(count))]
    panorama, length = int(str(asked.pop("panorama", 0))), pipeline.index.num_frames
    num_frames = int(str(options.get("num_frames") or length))
    extends = pipeline.family.capabilities.extends
    if extends and num_frames > length:
        asked["num_frames"] = None  # the model generates its own length, which is continued below
    request = pipeline.prepare(**asked)
    if not extends:
        return run_with_progress(pipeline, request)
    _check_extension(pipeline, num_frames, panorama)
    return _extend(pipeline, run_with_progress(pipeline, request), num_frames, panorama)


def _report(model: str, result: "Generation", pipeline: "VideoPipeline", load: common.LoadOptions) -> common.Report:
    request = result.request
    return {
        "model": model,
        "mode": request.task,
        "frames": len(result.clips[0].frames),
        "seed": request.seed,
        "num_samples": request.num_samples,
        "class_labels": None if request.labels is None else request.labels.tolist(),
        "guidance_scale": request.sampling.get("guidance_scale"),
        "temperature": request.sampling.get("temperature"),
        **timing(result),
        "peak_memory_bytes": common.peak_memory(pipeline.device),
        **common.machine(pipeline.device, load.dtype),
        "weights": load.weights,
    }


def show_help(model: str | None) -> str:
    """The options of `generate`; with a model, exactly those that it takes."""
    output = dataclass_flags(OutputOptions, OUTPUT)
    if model is None:
        flags = [*output, *dataclass_flags(common.LoadOptions, HARDWARE)]
        text = "Generate video clips with a model. mutoscope generate MODEL --help adds the options of that model."
        return help_text("mutoscope generate MODEL --out FILE [options] [--json]", text, flags)
    from mutoscope import hub

    folder = hub.open_folder(model)
    family, index = family_of_folder(folder), folder.index
    flags = [*model_flags(folder), *output, *_loading_flags(folder)]
    text = (
        f"{family.title} (arXiv {family.paper}): clips of {index.num_frames} frames of {index.height}×{index.width} "
        f"pixels, {index.fps:g} frames per second. Defaults are those of this model."
    )
    return help_text(f"mutoscope generate {model} --out FILE [options] [--json]", text, flags)


def _loading_flags(folder: "ModelFolder") -> list[Flag]:
    """The options of loading that have an effect on this model."""
    capabilities = family_of_folder(folder).capabilities
    no_effect = set() if folder.index.text_encoder else {"text_encoder_offload", "text_encoder_dtype"}
    no_effect |= set() if folder.pipeline is not None else {"tokenizer_dtype", "tokenizer_window"}
    no_effect |= set() if capabilities.packs else {"weights"}
    no_effect |= set() if capabilities.captures else {"capture"}
    return [flag for flag in dataclass_flags(common.LoadOptions, HARDWARE) if flag.name not in no_effect]


RANGES: dict[str, tuple[float | None, float | None]] = {
    "num_samples": (1, 10_000),
    "num_frames": (1, 100_000),
    "context_frames": (1, None),
    "batch_size": (1, None),
    "panorama": (0, 1000),
    "num_decoding_steps": (1, None),
    "guidance_scale": (0, None),
    "temperature": (0, None),
}
"""Lowest and highest value of options that several families share."""


def _check_options(options: dict[str, object]) -> None:
    for name, (low, high) in RANGES.items():
        value = options.get(name)
        if isinstance(value, int | float):
            common.check_range("--" + name.replace("_", "-"), value, low=low, high=high)
    common.check_seed(int(str(options.get("seed", 0))))


def _read_files(folder: "ModelFolder", options: dict[str, object]) -> "dict[str, np.ndarray]":
    """The contents of the video files that options name, which leave `options`. Actions are read within `options`."""
    flags = {flag.name: flag.file for flag in model_flags(folder) if flag.file is not None}
    values = {name: value for name in flags if (value := options.pop(name, None)) is not None}
    options |= {name: read_call_actions(folder, str(values[name])) for name in values if flags[name] == "actions"}
    videos = {name: str(path) for name, path in values.items() if flags[name] == "video"}
    return {name: _read_video(name, path, options, folder.index) for name, path in videos.items()}


def _read_video(name: str, path: str, options: dict[str, object], index: "ModelIndex") -> "np.ndarray":
    """Frames scaled to cover the model's size, as training reads them."""
    from mutoscope.data.video.read import read_video

    common.check_input_file(path)
    count = options.get("context_frames") if name == "context" else None
    frames = count if isinstance(count, int) else MAX_CONTEXT
    return read_video(path, max_frames=frames, size=(index.height, index.width), keep_aspect=True).frames


def read_call_actions(folder: "ModelFolder", actions: str) -> "ActionRows | str":
    """The rows of a file or of a text, checked before a network is loaded. See `families.actions`.

    A model without actions gets the text itself, which its family refuses.
    """
    from mutoscope.families.actions import read_actions, spec_of
    from mutoscope.hub import CONFIG
    from mutoscope.json_config import read_json

    size = read_json(folder.model_path / CONFIG).get("action_size")
    spec = spec_of(folder.index.actions, size if isinstance(size, int) else None)
    return actions if spec is None else read_actions(actions, spec)


def _check_extension(pipeline: "VideoPipeline", num_frames: int, panorama: int) -> None:
    """Refuse before anything is generated what the model was not trained to continue."""
    from mutoscope.sampling.tasks import check_task

    if num_frames > pipeline.index.num_frames:
        check_task("frame-prediction", pipeline.index.tasks)
    if panorama:
        check_task("outpaint-vertical", pipeline.index.tasks)
        if num_frames != pipeline.index.num_frames:
            raise UserError("Make a clip longer or wider, not both: omit --num-frames or --panorama.")


def _extend(pipeline: "VideoPipeline", result: "Generation", num_frames: int, panorama: int) -> "Generation":
    """The clips continued to `num_frames`, or widened by `panorama` segments, and the time of all segments."""
    if num_frames <= pipeline.index.num_frames and not panorama:
        return result
    from mutoscope.data.video.read import VideoClip
    from mutoscope.extension import longer, wider

    request, segments, clips = result.request, [result], []
    keeps_class = "class-conditional-frame-prediction" in pipeline.index.tasks
    labels = request.labels.tolist() if request.labels is not None and keeps_class else [None] * len(result.clips)
    with common.progress_steps("extend", None, "segment") as advance:

        def finished(segment: "Generation") -> None:
            segments.append(segment)
            advance()

        options: dict[str, Any] = {**request.repeated_options(), "on_segment": finished}
        for i, (clip, label) in enumerate(zip(result.clips, labels, strict=True)):
            # Every clip has seeds of its own, so that clips with equal beginnings differ.
            seed = (request.seed + 1 + i * (num_frames + 2 * panorama)) % 2**63
            if panorama:
                frames = wider(pipeline, clip.frames, panorama, seed=seed, **options)
            else:
                frames = longer(pipeline, clip.frames, num_frames, class_label=label, seed=seed, **options)
            clips.append(VideoClip(frames, clip.fps))
    seconds = sum(segment.seconds for segment in segments)
    sampling = sum(segment.seconds_sampling for segment in segments)
    return replace(result, clips=tuple(clips), seconds=seconds, seconds_sampling=sampling)


def run_with_progress(pipeline: "VideoPipeline", request: "Request") -> "Generation":
    """Carry out a request with one tick per decoding step."""
    from mutoscope.pipeline import reset_peak_memory

    total = request.num_batches * request.num_steps
    reset_peak_memory(pipeline.device)
    with common.progress_steps("generate", total) as advance:
        return pipeline.run(request, lambda event: advance())


def timing(result: "Generation") -> common.Report:
    """The time keys that `generate` and `bench speed` share."""
    return {
        "num_decoding_steps": result.request.num_steps,
        "seconds": result.seconds,
        "seconds_first_frame": result.seconds_first_frame,
        "frames_per_second": result.frames_per_second,
        "frames_per_second_with_decoding": result.frames_per_second_with_decoding,
    }


def _write(
    clips: "tuple[VideoClip, ...]", path: Path, fps: float, upscale: int
) -> tuple[list[str], tuple[int, int], list[str]]:
    """Write the clips; returns the files, the height and width in them, and what a format could not hold."""
    from mutoscope.data.video.read import write_video

    new_folder(path.parent)
    if path.suffix.lower() == ".png":
        return [str(path)], common.write_sheet(path, [clip.frames for clip in clips], upscale), []
    names = [path] if len(clips) == 1 else [path.with_stem(f"{path.stem}-{i}") for i in range(len(clips))]
    warnings: list[str] = []
    for name, clip in zip(names, clips, strict=True):
        warnings = write_video(name, clip.frames, fps, scale=upscale)  # the same for every clip
    height, width = clips[0].frames.shape[1:3]
    return [str(name) for name in names], common.size_in_file(path, height * upscale, width * upscale), warnings


def summary(report: common.Report) -> str:
    clip = f"{report['frames']} frames of {report['height']}×{report['width']}"
    return (
        f"{', '.join(report['outputs'])}\n"
        f"{report['mode']}, {report['num_samples']} × {clip}, seed {report['seed']}, "
        f"{report['num_decoding_steps']} steps: {report['seconds']:.2f} s, "
        f"{report['frames_per_second_with_decoding']:.1f} frames/s with decoding"
    )
