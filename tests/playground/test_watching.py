"""Generation to watch: every step is told once, the frames are those of the pipeline, and it can be stopped."""

import io

import httpx
import numpy as np
import pytest
from PIL import Image
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from mutoscope.pipeline import VideoPipeline
from playground_server import Running, received, said, settled

CALLS = {
    "clips": {"class_label": "circle-orbit", "seed": 2},
    "world": {"class_label": "cross", "num_frames": 4, "seed": 2, "actions": "action_0*3"},
}


def watched(socket: ClientConnection, model: str, options: dict) -> tuple[dict, list[tuple[dict, bytes]], dict]:
    """What is told at the start, in each step, and at the end."""
    said(socket, model=model, options=options)
    start, steps = received(socket)[0], []
    while True:
        header, content = received(socket)
        if header["type"] != "step":
            return start, steps, header
        steps.append((header, content))


def cut(header: dict, content: bytes) -> list[np.ndarray]:
    with Image.open(io.BytesIO(content)) as image:
        return np.split(np.asarray(image.convert("RGB")), header["count"], axis=1)


@pytest.mark.parametrize("model", sorted(CALLS))
def test_every_position_is_decided_once_and_the_frames_are_the_pipelines(served: Running, folders, model: str):
    with connect(served.ws + "/watch") as socket:
        start, steps, end = watched(socket, model, CALLS[model])
    assert start["type"] == "started" and end["type"] == "done"
    decided = [position for header, _ in steps for position in header["decided"]]
    t, h, w = steps[-1][0]["grid"]
    assert sorted(decided) == list(range(t * h * w))
    frames: dict[int, np.ndarray] = {}
    for header, content in steps:
        if header["count"] and not header["preview"]:
            frames |= {header["first"] + i: frame for i, frame in enumerate(cut(header, content))}
    [clip] = VideoPipeline.from_pretrained(folders[model]).generate(**CALLS[model]).clips
    assert sorted(frames) == list(range(len(clip.frames)))
    assert all((frames[i] == frame).all() for i, frame in enumerate(clip.frames))
    confidences = [header["confidence"] for header, _ in steps]
    assert all((found is not None) == (model == "clips") for found in confidences)


def test_the_files_are_those_of_the_clip(served: Running):
    with connect(served.ws + "/watch") as socket:
        _, _, end = watched(socket, "clips", CALLS["clips"])
    for form, media_type in (("mp4", "video/mp4"), ("gif", "image/gif"), ("png", "image/png")):
        answer = httpx.get(f"{served.http}/api/files/{end['files'][form]}")
        assert answer.headers["content-type"] == media_type and len(answer.content) > 100


def test_a_client_that_leaves_or_speaks_stops_the_work(served: Running):
    for leave in (lambda socket: socket.close(), lambda socket: said(socket, type="stop")):
        clips = served.server.metrics.clips
        with connect(served.ws + "/watch") as socket:
            said(socket, model="world", options={"class_label": 0, "num_frames": 200})
            received(socket)
            received(socket)
            leave(socket)
            assert settled(served.server)
        assert served.server.metrics.clips == clips


def test_a_picture_is_continued(served: Running):
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (200, 30, 30)).save(buffer, "PNG")
    upload = httpx.post(served.http + "/api/uploads", content=buffer.getvalue(), timeout=60).json()
    assert (upload["frames"], upload["width"], upload["height"]) == (1, 40, 30)
    with connect(served.ws + "/watch") as socket:
        start, _, end = watched(socket, "world", {"context": upload["upload"], "num_frames": 3})
    assert start["task"] == "frame-prediction" and end["frames"] == 3


@pytest.mark.parametrize(
    ("asked", "said_back"),
    [
        ({"model": "nothing"}, "no model 'nothing'"),
        ({}, "'model' is missing"),
        ({"model": "clips", "options": {"class_label": "none"}}, "class label"),
        ({"model": "clips", "options": {"num_samples": 4}}, "one clip"),
        ({"model": "world", "options": {"num_frames": 100_000}}, "at most 256 frames"),
        ({"model": "clips", "options": {"colour": 1}}, "colour"),
        ({"model": "world", "options": {"context": "/etc/passwd"}}, "no longer here"),
        ({"model": "world", "options": {"context": [[1]]}}, "must be uploaded"),
        ({"model": "world", "options": {"actions": "/etc/passwd"}}, "action"),
        ({"model": "clips", "options": {"actions": "x"}}, "takes no actions"),
        ({"model": 3}, "model"),
        ([1], "JSON object"),
    ],
)
def test_a_call_that_does_not_fit_is_a_sentence(served: Running, asked, said_back: str):
    import json

    with connect(served.ws + "/watch") as socket:
        socket.send(json.dumps(asked))
        header, _ = received(socket)
        while header["type"] == "queued":
            header, _ = received(socket)
        assert header["type"] == "error" and said_back in header["message"]
        with pytest.raises(ConnectionClosed):
            received(socket)
    assert settled(served.server)
