"""Real videos travel to the server as a browser sends them, and are continued."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from websockets.sync.client import connect

from mutoscope import hub
from mutoscope.data.video.read import iter_frames
from mutoscope.errors import UserError
from playground_server import Running, running, said, until

MODEL = "magvit-shapes"


@pytest.fixture(scope="module")
def continuing() -> Iterator[Running]:
    with running({MODEL: hub.open_folder(MODEL).path}) as server:
        yield server


def is_readable(path: Path) -> bool:
    try:
        next(iter(iter_frames(path)))
    except UserError:
        return False
    return True


@pytest.mark.slow
def test_every_readable_clip_is_continued_and_the_others_are_sentences(clips_dir: Path, continuing: Running) -> None:
    outcomes: dict[str, int] = {}
    for path in sorted(file for file in clips_dir.iterdir() if file.suffix != ".md"):
        answer = httpx.post(f"{continuing.http}/api/uploads", content=path.read_bytes(), timeout=120)
        outcomes[path.name] = answer.status_code
        assert answer.status_code == (200 if is_readable(path) else 400), (path.name, answer.text)
        if answer.status_code == 400:
            assert len(answer.json()["detail"]) > 20 and "Traceback" not in answer.text
            continue
        options = {"context": answer.json()["upload"], "context_frames": 1, "num_decoding_steps": 2}
        with connect(f"{continuing.ws}/watch") as socket:
            said(socket, model=MODEL, options=options)
            assert until(socket, "done")[0]["frames"] == 16
    assert 200 in outcomes.values()
