"""mutoscope generate: video clips from a model."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import mutoscope.commands.common as common
from mutoscope.errors import UserError

FRAME_FAMILIES = ("nova", "magi")  # they make clips of any length, frame by frame
OWN_OPTIONS = {
    "negative_prompt": ("nova",),
    "motion": ("nova",),
    "interval": ("magi",),
    "num_diffusion_steps": FRAME_FAMILIES,
    "context_refresh": ("nova",),
    "blend_given": ("magvit",),
    "draw_class": ("magvit",),
}

if TYPE_CHECKING:
    from mutoscope.data.video.read import VideoClip
    from mutoscope.pipeline import Generation


def generate(
    model: str,
    /,
    *,
    out: str,
    class_label: str | None = None,
    prompt: str | None = None,
    negative_prompt: str | None = None,
    motion: float | None = None,
    context: str | None = None,
    context_frames: int | None = None,
    task: str | None = None,
    video: str | None = None,
    actions: str | None = None,
    interval: int | None = None,
    num_frames: int | None = None,
    panorama: int = 0,
    paste_given: bool = False,
    blend_given: Literal["yes", "no"] | None = None,
    draw_class: Literal["yes", "no"] | None = None,
    num_samples: int = 1,
    num_decoding_steps: int | None = None,
    num_diffusion_steps: int | None = None,
    context_refresh: int | None = None,
    guidance_scale: float | None = None,
    temperature: float | None = None,
    seed: int = 0,
    fps: float | None = None,
    upscale: int = 1,
    device: str = "cpu",
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    weights: Literal["float", "int8"] = "float",
    text_encoder_offload: bool = False,
    text_encoder_dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    tokenizer_dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    tokenizer_window: int | None = None,
    capture: bool = False,
) -> common.Report:
    """Make video clips with a model and write them to files.

    Without a class label, a class-conditional model draws a class for every sample. With --context the clip starts
    with those frames; with --task and --video a given clip is completed.

    Args:
        model: bundled name or model folder
        out: file to write: .mp4 .webm .gif, or .png for one contact sheet with a row per sample; several samples
            become NAME-0.mp4, NAME-1.mp4 ...
        class_label: index or name of a class
        prompt: text to show, for models trained with text
        negative_prompt: text that guidance leads away from, for models with a diffusion head
        motion: how much should move, in pixels of optical flow, for models trained with it
        context: video or image whose first frames the clip starts with
        context_frames: how many of them are given (default: as many as in training)
        task: one of the ten tasks, such as frame-interpolation
        video: clip that the task completes
        actions: file of actions (.json, .csv or .npy), one row of numbers per frame, for models trained with actions
        interval: source frames from one frame to the next (1 to 25), for MAGI models: larger is faster motion
        num_frames: length of the clip (default: what the model was trained for); a longer one is continued by
            repeated frame prediction
        panorama: rounds of vertical outpainting, each of which widens the clip by half the model's width
        paste_given: put the given pixels back over the result
        blend_given: put what is given into the result without a seam: the generated part takes its tone, and the clip
            goes through the tokenizer once more (MAGVIT; default: what the model's folder says)
        draw_class: predict frames of a class that is drawn from what is given, so that all tokens follow one motion
            (MAGVIT models that learned to name classes; default: what the model's folder says)
        num_samples: how many clips
        num_decoding_steps: passes of the network per clip
        num_diffusion_steps: denoising steps per token, for models with a diffusion head
        context_refresh: NOVA: compute all of a frame only at every so many sets of tokens, which is faster and changes
            the result a little (default: 1, always)
        guidance_scale: u + s (c - u); 1 is off
        temperature: of the token distribution; 0 takes the most probable
        seed: the same seed gives the same clips
        fps: frames per second of the file (default: what the model was trained for)
        upscale: repeat every pixel this many times in both directions
        device: cpu, cuda, cuda:1, mps ...
        dtype: number format of the network
        weights: int8 rounds the matrices of PAR and LlamaGen models to 8 bits, which is faster on the CPU
        text_encoder_offload: drop the encoder of prompts from memory once they are read
        text_encoder_dtype: number format of the encoder of prompts (default: that of --dtype)
        tokenizer_dtype: number format of a published autoencoder, for less memory
        tokenizer_window: encode and decode frames in blended windows of this many pixels (at least 128), for a
            published autoencoder and less memory
        capture: on a CUDA GPU, record the steps of a MAGVIT, PAR or LlamaGen model and replay them: faster for
            several samples, or many steps, at small batches
    """
    path = common.check_output_file(out)
    _check_options(num_samples, num_decoding_steps, guidance_scale, temperature, seed, fps, upscale)
    common.check_range("--num-frames", num_frames, low=1, high=100_000)
    common.check_range("--panorama", panorama, low=0, high=1000)
    common.check_range("--tokenizer-window", tokenizer_window, low=128)
    from mutoscope import hub

    index = hub.load_index(model)  # an unknown name should be told before anything slow
    own = {
        "negative_prompt": negative_prompt,
        "motion": motion,
        "interval": interval,
        "num_diffusion_steps": num_diffusion_steps,
        "context_refresh": context_refresh,
        "blend_given": None if blend_given is None else blend_given == "yes",
        "draw_class": None if draw_class is None else draw_class == "yes",
    }
    given = {name: value for name, value in own.items() if value is not None}
    for name in given:
        if index.family not in OWN_OPTIONS[name]:
            families = " and ".join(family.upper() for family in OWN_OPTIONS[name])
            raise UserError(f"--{name.replace('_', '-')} is for models of {families}, this is {index.family}.")
    if actions is not None and index.family != "magi":
        raise UserError("This model takes no actions. Leave them out.")
    frames = {"task_video": _read_frames(video, None), "context": _read_frames(context, context_frames)}
    pipeline = common.load_pipeline(
        model,
        device,
        dtype,
        weights,
        text_encoder_offload,
        text_encoder_dtype,
        tokenizer_dtype,
        tokenizer_window,
        capture,
    )
    if frames["context"] is not None and pipeline.model is not None:
        trained = getattr(pipeline.model.config, "context_frames", 1)
        frames["context"] = frames["context"][: context_frames or trained]
    any_length = index.family in FRAME_FAMILIES
    request = pipeline.prepare(
        class_label=class_label, prompt=prompt, context_frames=context_frames, task=task,
        actions=_read_actions(actions),
        num_frames=num_frames if any_length or (num_frames or 0) <= index.num_frames else None,
        paste_given=paste_given, num_samples=num_samples, seed=seed, num_decoding_steps=num_decoding_steps,
        guidance_scale=guidance_scale, temperature=temperature, **frames, **given,
    )  # fmt: skip
    if not any_length or panorama:
        _check_extension(pipeline, num_frames, panorama)
    result = run_with_progress(pipeline, request)
    if not any_length:
        result = _extend(pipeline, result, num_frames or 0, panorama)
    fps = fps or pipeline.index.fps
    outputs, size, warnings = _write(result.clips, path, fps, upscale)
    return {
        "model": model,
        "mode": request.task,
        "outputs": outputs,
        "frames": len(result.clips[0].frames),
        "height": size[0],
        "width": size[1],
        "fps": fps,
        "seed": seed,
        "num_samples": num_samples,
        "class_labels": None if request.labels is None else request.labels.tolist(),
        "guidance_scale": request.sampler.guidance_scale,
        "temperature": getattr(request.sampler, "temperature", None),
        **timing(result),
        "peak_memory_bytes": common.peak_memory(pipeline.device),
        **common.machine(pipeline.device, dtype),
        "weights": weights,
        "warnings": [*request.warnings, *warnings],
    }


def _check_options(
    num_samples: int,
    num_decoding_steps: int | None,
    guidance_scale: float | None,
    temperature: float | None,
    seed: int,
    fps: float | None,
    upscale: int,
) -> None:
    common.check_range("--num-samples", num_samples, low=1, high=10_000)
    common.check_range("--num-decoding-steps", num_decoding_steps, low=1)
    common.check_range("--guidance-scale", guidance_scale, low=0)
    common.check_range("--temperature", temperature, low=0)
    common.check_range("--fps", fps, above=0, high=1000)
    common.check_range("--upscale", upscale, low=1, high=64)
    common.check_seed(seed)


def _read_frames(path: str | None, count: int | None) -> Any:
    """The first frames of a video or image; None where none is named."""
    if path is None:
        return None
    from mutoscope.data.video.read import read_video

    common.check_input_file(path)
    common.check_range("--context-frames", count, low=1)
    return read_video(path, max_frames=count or 256).frames


def _read_actions(path: str | None) -> Any:
    """Rows of numbers from a JSON, CSV or NumPy file; None where none is named."""
    if path is None:
        return None
    import numpy as np

    file = common.check_input_file(path, "file of actions")
    try:
        if file.suffix == ".npy":
            rows = np.load(file, allow_pickle=False)
        elif file.suffix == ".json":
            rows = np.asarray(json.loads(file.read_text()), dtype=np.float32)
        else:
            rows = np.loadtxt(file, delimiter=",", dtype=np.float32, ndmin=2)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} holds no actions ({error}): write rows of numbers as .json, .csv or .npy.") from None
    if rows.ndim != 2 or not np.issubdtype(rows.dtype, np.number) or not np.isfinite(rows).all():
        raise UserError(f"{path} must hold rows of finite numbers, one row per frame; found the shape {rows.shape}.")
    return rows


def _check_extension(pipeline: Any, num_frames: int | None, panorama: int) -> None:
    """Refuses before anything is generated what the model was not trained to continue."""
    from mutoscope.sampling.tasks import check_task

    if num_frames is not None and num_frames > pipeline.index.num_frames:
        check_task("frame-prediction", pipeline.index.tasks)
    if panorama:
        check_task("outpaint-vertical", pipeline.index.tasks)
        if num_frames is not None and num_frames != pipeline.index.num_frames:
            raise UserError("Make a clip longer or wider, not both: leave --num-frames or --panorama out.")


def _extend(pipeline: Any, result: "Generation", num_frames: int, panorama: int) -> "Generation":
    """The clips continued to `num_frames`, or widened by `panorama` rounds, and what all rounds took together."""
    if num_frames <= pipeline.index.num_frames and not panorama:
        return result
    from mutoscope.data.video.read import VideoClip
    from mutoscope.extension import longer, wider
    from mutoscope.families.magvit import MaskedRequest

    request, rounds, clips = result.request, [result], []
    assert isinstance(request, MaskedRequest)  # `_check_extension` refuses all others
    options = {"num_decoding_steps": request.num_steps,
               "guidance_scale": request.sampler.guidance_scale,
               "temperature": request.sampler.temperature,
               "draw_class": request.sampler.draw_class,
               "blend_given": request.blend_given, "on_round": rounds.append}  # fmt: skip
    keeps_class = "class-conditional-frame-prediction" in pipeline.index.tasks
    labels = request.labels.tolist() if request.labels is not None and keeps_class else [None] * len(result.clips)
    for i, (clip, label) in enumerate(zip(result.clips, labels, strict=True)):
        # Every clip has seeds of its own, so that equal beginnings would still part.
        seed = (request.seed + 1 + i * (num_frames + 2 * panorama)) % 2**63
        if panorama:
            frames = wider(pipeline, clip.frames, panorama, seed=seed, **options)
        else:
            frames = longer(pipeline, clip.frames, num_frames, class_label=label, seed=seed, **options)
        clips.append(VideoClip(frames, clip.fps))
    seconds, sampling = (sum(getattr(r, name) for r in rounds) for name in ("seconds", "seconds_sampling"))
    return replace(result, clips=tuple(clips), seconds=seconds, seconds_sampling=sampling)


def run_with_progress(pipeline: Any, request: Any) -> "Generation":
    """Carry out a request with one tick per decoding step."""
    from mutoscope.pipeline import reset_peak_memory

    total = request.num_rounds * request.num_steps
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

    path.parent.mkdir(parents=True, exist_ok=True)
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
