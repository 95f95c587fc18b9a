"""Clients that others wrote, pointed at the server."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mutoscope.data.video.read import read_video
from playground_server import Running

openai = pytest.importorskip("openai", reason="the package openai is not installed")


@pytest.fixture(scope="module")
def client(served: Running):
    return openai.OpenAI(base_url=f"{served.http}/v1", api_key="none", max_retries=0)


def test_the_openai_package_creates_polls_and_downloads(client, tmp_path: Path) -> None:
    made = client.videos.create_and_poll(prompt="", model="clips", extra_body={"seed": 3}, poll_interval_ms=50)
    assert made.status == "completed" and made.progress == 100 and made.error is None
    for variant, name in (("video", "clip.mp4"), ("thumbnail", "thumbnail.webp"), ("spritesheet", "sheet.jpg")):
        client.videos.download_content(made.id, variant=variant).write_to_file(tmp_path / name)
    assert len(read_video(tmp_path / "clip.mp4").frames) == 8
    with Image.open(tmp_path / "sheet.jpg") as sheet, Image.open(tmp_path / "thumbnail.webp") as thumbnail:
        assert sheet.width > thumbnail.width


def test_the_openai_package_lists_and_deletes(client) -> None:
    made = client.videos.create(prompt="", model="clips")
    assert made.id in [video.id for video in client.videos.list()]
    assert client.videos.retrieve(made.id).model == "clips"
    assert client.videos.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve(made.id)


def test_the_openai_package_sends_a_picture_to_start_from(client, tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 12, 3), 200, np.uint8)).save(tmp_path / "first.png")
    made = client.videos.create_and_poll(
        prompt="", model="world", input_reference=tmp_path / "first.png", poll_interval_ms=50
    )
    assert made.status == "completed"


def test_the_openai_package_lists_the_models_and_learns_what_is_wrong(client) -> None:
    assert [model.id for model in client.models.list()] == ["world", "clips"]
    with pytest.raises(openai.NotFoundError, match="no model"):
        client.videos.create(prompt="", model="nowhere")
