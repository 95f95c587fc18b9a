"""An exported world in Chromium, from a server of static files. Skipped where Chromium or Node.js is missing."""

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx", reason="the export for browsers needs the extra [web]")
pytest.importorskip("onnxscript", reason="the export for browsers needs the extra [web]")

from mutoscope.hub import save_pretrained
from mutoscope.pipeline import VideoPipeline
from mutoscope.playground.web_export import RUNTIME, RUNTIME_VERSION, export_web
from npm import installed
from tiny_magi import tiny_index, tiny_magi, tiny_vae

SCRIPT = Path(__file__).parent / "static_page.mjs"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PICTURE = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
ISOLATED = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]


class Handler(SimpleHTTPRequestHandler):
    """Static files with some headers, without a log."""

    def __init__(self, headers: dict[str, str], *arguments: object, **options: object) -> None:
        self.more = headers
        self.extensions_map = {**self.extensions_map, ".mjs": "text/javascript", ".wasm": "application/wasm"}
        super().__init__(*arguments, **options)  # type: ignore[arg-type]

    def end_headers(self) -> None:
        for name, value in self.more.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@contextmanager
def hosted(folder: Path, headers: dict[str, str]) -> Iterator[str]:
    """The address of a host of these files."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, headers, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def node_modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed(tmp_path_factory.mktemp("npm"), "playwright-core@1.65.1", f"{RUNTIME}@{RUNTIME_VERSION}")


@pytest.fixture(scope="module")
def page(node_modules: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny exported world whose window slides."""
    top, model = tmp_path_factory.mktemp("static"), tiny_magi(clean_first_frame=True)
    sampling = {"num_decoding_steps": 2, "num_diffusion_steps": 3, "sample_range": 3.0, "window_mode": "anchored"}
    index = tiny_index(model, sampling=sampling, first_frames={"first_frames/square-0.png": 1})
    save_pretrained(top / "world", index, tiny_vae(), model, first_frames={"first_frames/square-0.png": PICTURE})
    pipeline = VideoPipeline.from_pretrained(top / "world")
    export_web(pipeline, "world", top / "page", node_modules / "node_modules" / RUNTIME)
    return top / "page"


def outcome(scenario: str, address: str, node_modules: Path) -> dict:
    given = json.dumps({"chromium": CHROMIUM})
    command = ["node", str(SCRIPT), scenario, address, str(node_modules), given]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("headers", [{}, ISOLATED], ids=["one thread", "threads"])
def test_the_page_plays_and_rewinds_from_any_static_host(page: Path, node_modules: Path, headers: dict[str, str]):
    with hosted(page, headers) as address:
        found = outcome("play", address, node_modules)
    assert found["trouble"] == []
    assert found["frames"] == 4 and found["same"]
    assert found["isolated"] == bool(headers)


def test_webgpu_gives_the_frames_of_webassembly(page: Path, node_modules: Path):
    with hosted(page, ISOLATED) as address:
        found = outcome("runtimes", address, node_modules)
    if found["found"] is None:
        pytest.skip("this Chromium has no WebGPU")
    assert found["trouble"] == []
    assert found["found"]["difference"] <= 0.02 * 127.5 + 1  # and rounding
    assert found["found"]["faster"] is False  # software in place of a graphics processor
