"""A playable world as a folder of static files that runs in a browser without a server.

The folder holds the page, three graphs (`web_graphs.py`), a manifest with everything that the loop in JavaScript needs,
and onnxruntime-web, which comes from npm.
"""

import base64
import json
import shutil
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from mutoscope.errors import UserError
from mutoscope.families.first_frames import FirstFrames
from mutoscope.layers.gaussian_diffusion import LearnedVariancePlan
from mutoscope.models.magi import MAGI
from mutoscope.pipeline import VideoPipeline
from mutoscope.playground.web_graphs import exported
from mutoscope.sampling.frame_stream import FrameStreamSamplerConfig, set_sizes

STATIC, WEB = (Path(__file__).parent / name for name in ("static", "static_web"))
PAGE_FILES = ("index.html", "style.css", "icon.svg", "app.js", "play.js", "watch.js")
RUNTIME = "onnxruntime-web"
RUNTIME_VERSION = "1.30.0"
RUNTIME_FILES = ("dist/ort.wasm.min.mjs", "dist/ort-wasm-simd-threaded.mjs", "dist/ort-wasm-simd-threaded.wasm")
LICENCE = """onnxruntime-web {version}, copyright Microsoft Corporation, under the MIT License:
https://github.com/microsoft/onnxruntime/blob/main/LICENSE
"""
NPM_SECONDS = 600
FIRST_FRAMES_PER_CLASS = 4


def export_web(pipeline: VideoPipeline, name: str, out: Path, runtime: Path | None = None) -> dict[str, object]:
    """Write the folder; returns a report. runtime: a folder of onnxruntime-web (default: from npm).

    Raises UserError for a model that cannot be played so, a folder that is not empty, and a missing exporter.
    """
    model = playable(pipeline)
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty: name a new folder.")
    index = pipeline.index
    graphs = exported(model, pipeline.tokenizer, index.height, index.width)
    manifest = world_manifest(pipeline, model, name)
    with TemporaryDirectory(prefix=".mutoscope-web-", dir=out.parent) as temporary:
        folder = Path(temporary) / "page"
        (folder / "runtime").mkdir(parents=True)
        _copy_page(folder)
        for graph, content in graphs.items():
            (folder / f"{graph}.onnx").write_bytes(content)
        (folder / "world.json").write_text(json.dumps(manifest), encoding="utf-8")
        _copy_runtime(folder / "runtime", runtime)
        shutil.rmtree(out, ignore_errors=True)
        folder.rename(out)
    sizes = {file.relative_to(out).as_posix(): file.stat().st_size for file in sorted(out.rglob("*")) if file.is_file()}
    return {"output": str(out), "model_bytes": sum(map(len, graphs.values())), "files": sizes}


def playable(pipeline: VideoPipeline) -> MAGI:
    """The network of a world for browsers. Raises UserError for other models."""
    model, index = pipeline.model, pipeline.index
    if not isinstance(model, MAGI):
        raise UserError(f"Worlds for browsers are models of MAGI, this one is of {pipeline.family.title}.")
    sampler = sampler_of(pipeline)
    wrong = {
        "discrete tokens": model.config.is_discrete,
        "captions": model.config.text_size is not None,
        "no actions": model.config.action_size is None,
        "a tokenizer that does not decode single frames": not pipeline.tokenizer.spec.per_frame,
        "guidance": sampler.guidance_scale != 1,
        "eta": sampler.eta is not None,
        "a growing window": sampler.window_mode == "growing",
        "no first frames": not index.first_frames,
    }
    found = [what for what, is_so in wrong.items() if is_so]
    if found:
        raise UserError(f"This model cannot be exported for browsers: it has {', '.join(found)}.")
    return model


def sampler_of(pipeline: VideoPipeline) -> FrameStreamSamplerConfig:
    """The sampler's settings of the model's folder."""
    known = FrameStreamSamplerConfig.__dataclass_fields__
    values = {name: value for name, value in pipeline.index.sampling_for(None).items() if name in known}
    return FrameStreamSamplerConfig(**values)  # type: ignore[arg-type]


def world_manifest(pipeline: VideoPipeline, model: MAGI, name: str) -> dict[str, object]:
    """Sizes, settings, tables and first frames, as the loop in JavaScript reads them."""
    config, index, sampler = model.config, pipeline.index, sampler_of(pipeline)
    plan = config.diffusion.plan(sampler.num_diffusion_steps, sampler.sample_range)
    return {
        "name": name,
        "width": index.width,
        "height": index.height,
        "fps": index.fps,
        "classes": list(index.class_names or ()),
        "actions": actions_of(pipeline, model),
        "n": config.num_tokens,
        "k": config.token_size,
        "d": config.hidden_size,
        "rows": config.grid[0],
        "columns": config.grid[1],
        "patch": config.patch_size,
        "channels": config.latent_channels,
        "layers": config.num_layers,
        "heads": config.num_heads,
        "size": config.hidden_size // config.num_heads,
        "positions": config.num_tokens + (config.noise_mode == "token") + (config.num_classes is not None),
        "actionSize": config.action_size,
        "cleanFirstFrame": config.clean_first_frame,
        "window": sampler.window or config.latent_shape[0],
        "windowMode": sampler.window_mode,
        "contextNoiseLevel": sampler.context_noise_level,
        "temperature": sampler.temperature,
        "sampleRange": sampler.sample_range,
        "predictsChange": config.predicts_change,
        "predictsSample": config.diffusion.prediction == "sample",
        "sets": [size for size in set_sizes(sampler.num_decoding_steps, config.num_tokens) if size],
        "steps": diffusion_steps(plan),
        "firstFrames": first_frames(pipeline, model),
    }


def actions_of(pipeline: VideoPipeline, model: MAGI) -> list[dict[str, object]]:
    """Names of the actions, and how they are scaled for the network."""
    from mutoscope.families.actions import spec_of

    spec = spec_of(pipeline.index.actions, model.config.action_size)
    assert spec is not None
    listed = zip(spec.names, spec.is_button, spec.offset, spec.scale, strict=True)
    return [{"name": n, "button": b, "offset": o, "scale": s} for n, b, o, s in listed]


def diffusion_steps(plan: LearnedVariancePlan) -> list[dict[str, object]]:
    """The numbers of every step from noise to a token, see `LearnedVariancePlan.step`."""
    tables = plan.tables
    of_sample, of_noisy = tables.posterior_mean_coefficients
    listed: list[dict[str, object]] = []
    for k, time in enumerate(plan.times.tolist()):
        at = len(plan) - 1 - k
        inverse = 1 / float(tables.alphas_cumprod[at])
        listed.append(
            {
                "time": time,
                "noisy": plan.needs_noise(k),
                "ofSample": float(of_sample[at]),
                "ofNoisy": float(of_noisy[at]),
                "inverse": inverse**0.5,
                "inverseNoise": (inverse - 1) ** 0.5,
                "largest": float(np.log(tables.betas[at])),
                "smallest": float(tables.posterior_log_variance[at]),
            }
        )
    return listed


@torch.inference_mode()
def first_frames(pipeline: VideoPipeline, model: MAGI) -> list[dict[str, object]]:
    """The first frames of each class as tokens in half precision, since the page has no encoder."""
    frames = FirstFrames(pipeline.folder, pipeline.index.first_frames)
    counts: dict[int, int] = {}
    listed: list[dict[str, object]] = []
    for name in frames.names:
        label = frames.labels[name]
        counts[label] = counts.get(label, 0) + 1
        if counts[label] > FIRST_FRAMES_PER_CLASS:
            continue
        pixels = pipeline.tokenizer.from_uint8(frames.read(name)[None])
        tokens = model.to_tokens(pipeline.tokenizer.encode(pixels))[0, 0]  # (n, k)
        half = tokens.to(torch.float16).numpy().astype("<f2").tobytes()
        listed.append({"name": name, "label": label, "tokens": base64.b64encode(half).decode()})
    return listed


def _copy_page(folder: Path) -> None:
    """The page of `mutoscope play`, whose wire leads to a worker in place of a server."""
    (folder / "static").mkdir()
    for name in PAGE_FILES:
        target = folder if name == "index.html" else folder / "static"
        text = (STATIC / name).read_text(encoding="utf-8")
        (target / name).write_text(text.replace('"/static/', '"static/'), encoding="utf-8")
    for file in WEB.iterdir():
        if file.is_file():
            shutil.copyfile(file, folder / "static" / file.name)


def _copy_runtime(folder: Path, source: Path | None) -> None:
    if source is not None:
        _take(source, folder)
        return
    with TemporaryDirectory(prefix="mutoscope-npm-") as temporary:
        _take(_from_npm(Path(temporary)), folder)


def _take(source: Path, folder: Path) -> None:
    for name in RUNTIME_FILES:
        file = source / name if (source / name).exists() else source / Path(name).name
        if not file.exists():
            raise UserError(f"{source} is no folder of {RUNTIME}: {Path(name).name} is missing.")
        shutil.copyfile(file, folder / file.name)
    package = source / "package.json"
    version = json.loads(package.read_text(encoding="utf-8"))["version"] if package.exists() else RUNTIME_VERSION
    (folder / "LICENSE").write_text(LICENCE.format(version=version), encoding="utf-8")


def _from_npm(folder: Path) -> Path:
    """The unpacked package. Raises UserError where npm is missing or fails."""
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(f"{RUNTIME} comes from npm: install Node.js, or name its folder with --runtime.")
    command: Sequence[str] = (npm, "pack", "--silent", f"{RUNTIME}@{RUNTIME_VERSION}")
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=NPM_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise UserError(f"npm took more than {NPM_SECONDS} seconds for {RUNTIME}.") from None
    packed = sorted(folder.glob("*.tgz"))
    if done.returncode or not packed:
        lines = done.stderr.strip().splitlines() or ["no answer"]
        raise UserError(f"npm has no {RUNTIME} ({lines[-1][:200]}): name its folder with --runtime.")
    with tarfile.open(packed[0]) as archive:
        archive.extractall(folder, filter="data")
    return folder / "package"


def report_sizes(report: Mapping[str, object]) -> str:
    """The report in a few lines."""
    files = report["files"]
    assert isinstance(files, dict)
    total = sum(files.values())
    return (
        f"{report['output']}: {len(files)} files, {total / 1e6:.1f} MB, of which the model {_megabytes(report)} MB\n"
        f"serve it from any static host, or: python -m http.server --directory {report['output']}"
    )


def _megabytes(report: Mapping[str, object]) -> str:
    return f"{int(str(report['model_bytes'])) / 1e6:.1f}"
