"""The page in Chromium, as people use it. Skipped where Chromium or Node.js is missing."""

import io
import json
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mutoscope import hub
from mutoscope.data.video.read import read_video
from mutoscope.data.video.write import VideoClip
from mutoscope.pipeline import VideoPipeline
from mutoscope.playground.images import encoded
from npm import installed
from playground_server import Running, running, settled

SCRIPT = Path(__file__).parent / "browser.mjs"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ONE_OF_EACH_FAMILY = ("magvit-shapes", "par-shapes-16x", "nova-shapes", "magi-shapes")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]


@dataclass(frozen=True)
class Browser:
    """Runs scenarios of `browser.mjs` against a server."""

    node_modules: Path
    served: Running

    def does(self, scenario: str, **options: object) -> dict:
        """What happened. The page must not complain about anything on the way, nor ask any other host."""
        given = json.dumps({"chromium": CHROMIUM, **options})
        command = ["node", str(SCRIPT), scenario, self.served.http + "/", str(self.node_modules), given]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        outcome = json.loads(done.stdout.splitlines()[-1])
        assert outcome["trouble"] == []
        return outcome


@pytest.fixture(scope="module")
def node_modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed(tmp_path_factory.mktemp("npm"), "playwright-core@1.65.1", "axe-core@4.14.1")


@pytest.fixture(scope="module")
def browser(node_modules: Path, served: Running) -> Browser:
    return Browser(node_modules, served)


@pytest.fixture(scope="module")
def bundled(node_modules: Path) -> Iterator[Browser]:
    """A server with one bundled model of each family."""
    with running({name: hub.open_folder(name).path for name in ONE_OF_EACH_FAMILY}) as server:
        yield Browser(node_modules, server)


def as_sent(frame: np.ndarray) -> np.ndarray:
    """A frame as the page receives it: compressed."""
    with Image.open(io.BytesIO(encoded(frame, "webp"))) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_a_held_key_changes_what_is_imagined_from_the_next_frame_on_as_in_python(
    browser: Browser, folders: dict[str, Path]
) -> None:
    free, steered = (np.array(run) for run in browser.does("keys", key="ArrowLeft", before=3, after=4)["runs"])
    np.testing.assert_array_equal(free[:3], steered[:3])
    assert all((a != b).any() for a, b in zip(free[3:], steered[3:], strict=True))
    pipeline = VideoPipeline.from_pretrained(folders["world"])
    for run, value in ((free, 0.0), (steered, -1.0)):
        stream = pipeline.stream(class_label=0, seed=0, endless=True)
        next(stream)
        for at, shown in enumerate(run):
            stream.change(action=np.array([value if at >= 3 else 0.0, 0.0], np.float32))
            expected = as_sent(next(stream)).ravel()
            assert np.abs(expected - shown).mean() < 2  # decoders of WebP round differently


def test_rewinding_leads_to_the_same_frames_and_what_was_played_can_be_saved(browser: Browser, tmp_path: Path) -> None:
    outcome = browser.does("rewind", out=str(tmp_path))
    assert outcome["again"] == outcome["first"][2:]
    by_suffix = {Path(file).suffix: Path(file) for file in outcome["files"]}
    film = read_video(by_suffix[".mp4"])
    assert len(film.frames) == 7  # frame 0 and six more
    assert len(read_video(by_suffix[".gif"]).frames) == 7
    with zipfile.ZipFile(by_suffix[".zip"]) as episode:
        assert any(name.endswith("info.json") for name in episode.namelist())


def test_it_runs_by_itself_shows_its_latency_and_pauses(browser: Browser) -> None:
    outcome = browser.does("running")
    assert "ms" in outcome["numbers"]
    assert outcome["moved"] <= 1  # a frame that was on its way


def test_every_family_generates(bundled: Browser) -> None:
    calls = [{"model": "magvit-shapes", "task": "class-conditional", "num_decoding_steps": 2}]
    calls += [{"model": "par-shapes-16x"}]
    calls += [{"model": "nova-shapes", "prompt": "a red square moves right", "num_frames": 5}]
    calls += [{"model": "magi-shapes", "num_frames": 6}]
    states = bundled.does("watch", calls=calls)["states"]
    assert [state.split(", ")[-1] for state in states] == ["16 frames", "16 frames", "5 frames", "6 frames"]


def test_two_panels_share_a_seed_and_the_link_leads_back(browser: Browser) -> None:
    outcome = browser.does("compare", call={"model": "clips", "num_decoding_steps": 2})
    assert outcome["same"]
    assert "seed=7" in outcome["link"] and "num_decoding_steps=2" in outcome["link"]


def test_a_region_is_drawn_with_the_mouse(bundled: Browser, tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), dtype=np.uint8)
    VideoClip(frames, 8.0).save(tmp_path / "clip.mp4")
    outcome = bundled.does("region", model="magvit-shapes", video=str(tmp_path / "clip.mp4"))
    assert outcome["region"] == pytest.approx([0.0, 0.0, 0.5, 0.5], abs=0.03)
    assert "region=" in outcome["link"] and outcome["hidden"]


def test_stop_ends_the_work(bundled: Browser) -> None:
    outcome = bundled.does("stop", call={"model": "magi-shapes", "num_frames": 250})
    assert outcome["later"] == outcome["state"]
    assert settled(bundled.served.server)


def test_everyone_can_use_the_page(browser: Browser) -> None:
    outcome = browser.does("everyone")
    assert outcome["found"] == []
    assert {"tab-play", "tab-watch", "screen", "go", "step", "timeline", "play-model"} <= set(outcome["visited"])
