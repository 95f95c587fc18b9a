"""A world as static files: complete, small, and the same frames in JavaScript as in Python."""

import base64
import json
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch

pytest.importorskip("onnx", reason="the export for browsers needs the extra [web]")
pytest.importorskip("onnxscript", reason="the export for browsers needs the extra [web]")

from mutoscope.errors import UserError
from mutoscope.families.base import WebWorld
from mutoscope.hub import save_pretrained
from mutoscope.layers.gaussian_diffusion import LearnedVariance
from mutoscope.models.magi import MAGI
from mutoscope.pipeline import VideoPipeline
from mutoscope.playground.web_export import RUNTIME, RUNTIME_FILES, RUNTIME_VERSION, export_web
from mutoscope.sampling.frame_stream import FrameStreamSamplerConfig, set_sizes
from npm import installed
from tiny_magi import tiny_index, tiny_magi, tiny_vae
from tiny_models import save_tiny_model

SCRIPT = Path(__file__).parent / "run_world.mjs"
PICTURE = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """onnxruntime-web from npm; without it the test is skipped."""
    folder = installed(tmp_path_factory.mktemp("npm"), f"{RUNTIME}@{RUNTIME_VERSION}")
    return folder / "node_modules" / RUNTIME


CHANGE = {"predicts_change": True, "diffusion": LearnedVariance(prediction="sample")}


def world(folder: Path, mode: str, changes: Mapping[str, object] = {}) -> VideoPipeline:
    """A tiny world whose window is full after five frames."""
    model = tiny_magi(clean_first_frame=True, **changes)
    sampling = {"num_decoding_steps": 3, "num_diffusion_steps": 4, "sample_range": 3.0, "temperature": 0.5}
    index = tiny_index(model, sampling={**sampling, "window_mode": mode}, first_frames={"first_frames/square-0.png": 1})
    save_pretrained(folder, index, tiny_vae(), model, first_frames={"first_frames/square-0.png": PICTURE})
    return VideoPipeline.from_pretrained(folder)


def draws_of(seed: int, frames: int, pipeline: VideoPipeline) -> list[list[float]]:
    """The numbers that Python's sampler draws, in their order."""
    assert isinstance(pipeline.model, MAGI)
    sampler = FrameStreamSamplerConfig(**pipeline.index.sampling)  # type: ignore[arg-type]
    n, k = pipeline.model.config.num_tokens, pipeline.model.config.token_size
    generator, listed = torch.Generator().manual_seed(seed), []
    for _ in range(frames):
        listed.append(torch.rand(1, n, generator=generator))
        for size in set_sizes(sampler.num_decoding_steps, n):
            listed += [torch.randn(1, size, k, generator=generator) for _ in range(sampler.num_diffusion_steps)]
    return [one.flatten().tolist() for one in listed]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "changes"),
    [
        ("sliding", {}),
        ("anchored", CHANGE),
        ("chunked", {"noise_mode": "channel"}),
        ("rolling", {"time_positions": "relative", "window": 3}),
        ("rolling", {"time_positions": "relative", "window": 3, "keeps_first": True, **CHANGE}),
    ],
)
def test_javascript_gives_the_same_frames_for_the_same_noise(runtime: Path, tmp_path: Path, mode: str, changes):
    pipeline = world(tmp_path / "world", mode, changes)
    export_web(pipeline, "world", tmp_path / "page", runtime)
    actions = np.random.default_rng(1).normal(size=(9, 2)).astype(np.float32)
    clip = pipeline(class_label=1, first_frame="square-0", actions=actions, seed=4, num_frames=10)
    manifest = json.loads((tmp_path / "page/world.json").read_text())
    [first] = manifest["firstFrames"]
    tokens = np.frombuffer(base64.b64decode(first["tokens"]), "<f2").astype(np.float32)
    asked = {"draws": draws_of(4, 9, pipeline), "actions": actions.tolist(), "label": 1, "tokens": tokens.tolist()}
    (tmp_path / "in.json").write_text(json.dumps(asked))
    command = ["node", str(SCRIPT), str(tmp_path / "page"), str(tmp_path / "in.json"), str(tmp_path / "out.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    answer = json.loads((tmp_path / "out.json").read_text())
    frames = np.array(answer["frames"], dtype=int).reshape(9, 8, 12, 3)
    assert answer["used"] == len(asked["draws"])
    again = np.array(answer["again"], dtype=int).reshape(3, 8, 12, 3)  # after rewinding
    assert np.abs(again - frames[-3:]).max() <= 1
    assert np.abs(frames - clip.frames[1:].astype(int)).max() <= 0.02 * 127.5 + 1  # and rounding


@pytest.mark.slow
def test_the_folder_is_complete_and_asks_nobody_else(runtime: Path, tmp_path: Path):
    report = export_web(world(tmp_path / "world", "anchored"), "world", tmp_path / "page", runtime)
    page = tmp_path / "page"
    names = {file.relative_to(page).as_posix() for file in page.rglob("*") if file.is_file()}
    assert {"index.html", "world.json", "pass.onnx", "head.onnx", "decoder.onnx", "static/worker.js"} <= names
    for script in page.glob("static/*.js"):
        for wanted, source in re.findall(r'import {([^}]+)} from "./([a-z]+.js)"', script.read_text()):
            text = (script.parent / source).read_text()
            exported = set(re.findall(r"export (?:async )?(?:function|const|class) (\w+)", text))
            assert {name.strip() for name in wanted.split(",")} <= exported, (script.name, source)
    assert "runtime/ort-wasm-simd-threaded.wasm" in names and "runtime/LICENSE" in names
    assert '"/static/' not in (page / "index.html").read_text()
    assert report["model_bytes"] == sum((page / f"{name}.onnx").stat().st_size for name in ("pass", "head", "decoder"))


def test_what_is_no_world_for_browsers_is_refused(tmp_path: Path):
    magvit = VideoPipeline.from_pretrained(save_tiny_model(tmp_path / "clips"))
    with pytest.raises(UserError, match="no worlds for browsers"):
        magvit.family.web_world("clips")
    model = tiny_magi()
    save_pretrained(tmp_path / "bare", tiny_index(model), tiny_vae(), model)
    with pytest.raises(UserError, match="no first frames"):
        VideoPipeline.from_pretrained(tmp_path / "bare").family.web_world("bare")


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path):
    (tmp_path / "page").mkdir()
    (tmp_path / "page/mine.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        export_web(world(tmp_path / "world", "sliding"), "world", tmp_path / "page", tmp_path)
    assert (tmp_path / "page/mine.txt").read_text() == "mine"


def tiny_page(tmp_path: Path, out: Path) -> None:
    """A page whose graphs are empty."""
    for name in RUNTIME_FILES:
        (tmp_path / Path(name).name).write_text("nothing")
    empty = WebWorld({"pass": b"graph"}, {"name": "world"})
    pipeline = SimpleNamespace(family=SimpleNamespace(web_world=lambda name: empty))
    export_web(cast(VideoPipeline, pipeline), "world", out, tmp_path)


@pytest.mark.parametrize("exists", [False, True])
def test_a_page_is_written_into_an_empty_folder_that_stays_the_same_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exists: bool
):
    """A mount point cannot be replaced, and a shell may be in it."""
    (tmp_path / "page").mkdir()
    monkeypatch.chdir(tmp_path / "page")
    before = Path().stat().st_ino
    tiny_page(tmp_path, Path() if exists else Path("new"))
    assert Path().stat().st_ino == before and not list(tmp_path.rglob(".*"))
    assert (Path() / ("." if exists else "new") / "index.html").is_file()


def test_a_page_that_was_killed_while_its_files_moved_is_written_again(tmp_path: Path):
    page = tmp_path / "page"
    (page / "static").mkdir(parents=True)
    (page / "static" / "old.js").write_text("from before")
    (page / "pass.onnx").write_text("from before")
    tiny_page(tmp_path, page)
    assert (page / "pass.onnx").read_text() == "graph" and not (page / "static" / "old.js").exists()
    with pytest.raises(UserError, match="not empty"):
        tiny_page(tmp_path, page)
