"""A playable world as a folder of static files that runs in a browser without a server.

The folder holds the page, three graphs and a manifest with everything that the loop in JavaScript needs (both from the
model's family, see `WebWorld`), and onnxruntime-web, which comes from npm.
"""

import json
import shutil
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from mutoscope.errors import UserError
from mutoscope.families.base import WebWorld
from mutoscope.ownership import is_temporary, owned, real_folder, temporary_folder, tidy
from mutoscope.pipeline import VideoPipeline
from mutoscope.writing import move_entries, workspace, writing

STATIC, WEB = (Path(__file__).parent / name for name in ("static", "static_web"))
INDEX = "index.html"
PAGE_FILES = (INDEX, "style.css", "icon.svg", "app.js", "play.js", "region.js", "watch.js")
RUNTIME = "onnxruntime-web"
RUNTIME_VERSION = "1.30.0"
RUNTIME_FILES = (
    "dist/ort.wasm.min.mjs",
    "dist/ort-wasm-simd-threaded.mjs",
    "dist/ort-wasm-simd-threaded.wasm",
    # For WebGPU, which only browsers with a graphics processor load:
    "dist/ort.webgpu.min.mjs",
    "dist/ort-wasm-simd-threaded.asyncify.mjs",
    "dist/ort-wasm-simd-threaded.asyncify.wasm",
)
LICENCE = """onnxruntime-web {version}

MIT License

Copyright (c) Microsoft Corporation

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""
NPM_SECONDS = 600


def export_web(pipeline: VideoPipeline, name: str, out: Path, runtime: Path | None = None) -> dict[str, object]:
    """Write the folder; returns a report. runtime: a folder of onnxruntime-web (default: from npm).

    Raises UserError for a model that cannot be played so, a folder that is not empty, and a missing exporter.
    """
    if out.exists() and not _is_unfinished(out):
        tidy(out)  # an export may have been killed right after its last step
        raise UserError(f"{out} is not empty: name a new folder.")
    with owned(out, "export"):
        world = _write_page(pipeline, name, real_folder(out), runtime)
    sizes = {file.relative_to(out).as_posix(): file.stat().st_size for file in sorted(out.rglob("*")) if file.is_file()}
    return {"output": str(out), "model_bytes": sum(map(len, world.graphs.values())), "files": sizes}


def _is_unfinished(out: Path) -> bool:
    """Whether a folder is empty, or was left by an export that was killed before it moved its last file there."""
    names = {entry.name for entry in out.iterdir() if not is_temporary(entry)} if out.is_dir() else {INDEX}
    return all(name in ("static", "runtime", "world.json") or name.endswith(".onnx") for name in names)


def _write_page(pipeline: VideoPipeline, name: str, out: Path, runtime: Path | None) -> WebWorld:
    """The folder under a temporary name, which becomes `out`, or whose entries move there, when it is complete."""
    folder = temporary_folder(out)
    page = sum(file.stat().st_size for file in (*STATIC.iterdir(), *WEB.iterdir()) if file.is_file())
    with writing(out, page, folder):
        (folder / "runtime").mkdir(parents=True)
        _copy_page(folder)
        _copy_runtime(folder / "runtime", runtime)  # before the graphs, which take longest
        world = pipeline.family.web_world(name)
        with writing(out, page + sum(map(len, world.graphs.values()))):
            for graph, content in world.graphs.items():
                (folder / f"{graph}.onnx").write_bytes(content)
            (folder / "world.json").write_text(json.dumps(world.manifest), encoding="utf-8")
            if out.exists():  # a mount point, or where a shell is: it stays the same folder
                move_entries(folder, out, last=INDEX)
                shutil.rmtree(folder, ignore_errors=True)
            else:
                folder.rename(out)
    return world


def _copy_page(folder: Path) -> None:
    """The page of `mutoscope play`, whose wire leads to a worker in place of a server."""
    (folder / "static").mkdir()
    for name in PAGE_FILES:
        target = folder if name == INDEX else folder / "static"
        text = (STATIC / name).read_text(encoding="utf-8")
        (target / name).write_text(text.replace('"/static/', '"static/'), encoding="utf-8")
    for file in WEB.iterdir():
        if file.is_file():
            shutil.copyfile(file, folder / "static" / file.name)


def _copy_runtime(folder: Path, source: Path | None) -> None:
    if source is not None:
        _take(source, folder)
        return
    with workspace("mutoscope-npm-") as temporary:
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
