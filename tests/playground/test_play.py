"""One world over one socket, as the page speaks to it."""

import io
import time

import httpx
import numpy as np
import pytest
from PIL import Image
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from mutoscope.pipeline import VideoPipeline
from mutoscope.playground.limits import Limits
from playground_server import Running, received, running, said, settled, until

START = {"type": "start", "model": "world", "class_label": "square", "image": "png", "seed": 5}


def pixels(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB"))


def test_frames_follow_the_keys_and_agree_with_the_pipeline(served: Running, folders):
    with connect(served.ws + "/play") as socket:
        said(socket, **START, paused=True)
        started, _ = until(socket, "started")
        assert [action["name"] for action in started["actions"]] == ["action_0", "action_1"]
        frames = [pixels(until(socket, "frame")[1])]
        for number, value in enumerate((1.0, -1.0, 0.5), 1):
            said(socket, type="action", id=number, action={"action_0": value})
            said(socket, type="step")
            header, content = until(socket, "frame")
            assert (header["index"], header["action_id"]) == (number, number)
            assert header["sampling_ms"] > 0 and header["decoding_ms"] > 0
            frames.append(pixels(content))
    pipeline = VideoPipeline.from_pretrained(folders["world"])
    actions = np.array([[1, 0], [-1, 0], [0.5, 0]], np.float32)
    clip = pipeline(class_label="square", seed=5, actions=actions, num_frames=4)
    assert all(np.abs(a.astype(int) - b).max() <= 1 for a, b in zip(frames, clip.frames, strict=True))


def test_a_client_that_does_not_draw_gets_two_frames_and_no_more(served: Running):
    with connect(served.ws + "/play") as socket:
        said(socket, **START)
        until(socket, "started")
        received(socket)
        said(socket, type="rate", fps=100)
        assert [received(socket)[0]["index"] for _ in range(2)] == [1, 2]
        with pytest.raises(TimeoutError):
            received(socket, timeout=0.7)
        said(socket, type="shown", frame=1)
        assert received(socket)[0]["index"] == 3


def test_pausing_stepping_rewinding_and_resetting(served: Running):
    with connect(served.ws + "/play") as socket:
        said(socket, **START, paused=True)
        first = until(socket, "frame")[1]
        seen = []
        for _ in range(3):
            said(socket, type="step")
            seen.append(until(socket, "frame")[1])
        said(socket, type="rewind", frame=2)
        header, content = until(socket, "frame")
        assert header["index"] == 2 and content == seen[1]
        said(socket, type="step")
        header, content = until(socket, "frame")
        assert header["index"] == 3 and np.abs(pixels(content).astype(int) - pixels(seen[2])).max() <= 1
        said(socket, type="reset")
        header, content = until(socket, "frame")
        assert header["index"] == 0 and content == first
        said(socket, type="rewind", frame=77)
        header, _ = received(socket)
        assert header["type"] == "error" and "not remembered" in header["message"]


@pytest.mark.parametrize(("form", "begins"), [("mp4", b"ftyp"), ("gif", b"GIF8"), ("png", b"PNG"), ("lerobot", b"PK")])
def test_what_was_played_can_be_saved(served: Running, form: str, begins: bytes):
    if form == "lerobot":
        pytest.importorskip("pyarrow")
    with connect(served.ws + "/play") as socket:
        said(socket, **START, paused=True)
        until(socket, "frame")
        for _ in range(2):
            said(socket, type="step")
            until(socket, "frame")
        said(socket, type="save", format=form)
        file, _ = until(socket, "saved")
    answer = httpx.get(f"{served.http}/api/files/{file['file']}")
    assert answer.status_code == 200 and begins in answer.content[:12] and file["frames"] == 3


def test_a_client_that_leaves_stops_the_work_within_a_frame(served: Running):
    with connect(served.ws + "/play") as socket:
        said(socket, **START)
        until(socket, "frame")
    assert settled(served.server)
    frames = served.server.metrics.frames
    time.sleep(0.3)
    assert served.server.metrics.frames == frames


def test_a_new_start_replaces_the_world(served: Running):
    with connect(served.ws + "/play") as socket:
        said(socket, **START, paused=True)
        first = until(socket, "frame")[1]
        said(socket, **{**START, "seed": 6}, paused=True)
        assert until(socket, "started")[0]["seed"] == 6
        assert until(socket, "frame")[1] != first


@pytest.mark.parametrize(
    ("message", "said_back"),
    [
        ({"type": "start", "model": "wrld"}, "did you mean 'world'"),
        ({"type": "start", "model": "../../etc"}, "no model"),
        ({"type": "start", "model": "clips"}, "do not generate streams"),
        ({**START, "class_label": "sqare"}, "did you mean 'square'"),
        ({**START, "image": "tiff"}, "Images are"),
        ({**START, "upload": "/etc/passwd"}, "no longer here"),
        ({**START, "sampling": {"context": "/etc/passwd"}}, "must be uploaded"),
        ({**START, "sampling": {"actions": "/etc/passwd"}}, "action"),
        ({**START, "sampling": {"num_decoding_steps": 0}}, "num_decoding_steps"),
        ({**START, "seed": -1}, "seed"),
        ({**START, "real": True}, "no environment here"),
        ({"type": "go"}, "first message"),
    ],
)
def test_a_start_that_does_not_fit_is_a_sentence(served: Running, message: dict, said_back: str):
    with connect(served.ws + "/play") as socket:
        said(socket, **message)
        header, _ = received(socket)
        assert header["type"] == "error" and said_back in header["message"]
        with pytest.raises(ConnectionClosed):
            while True:
                received(socket)
    assert settled(served.server)


@pytest.mark.parametrize(
    ("message", "said_back"),
    [
        ({"type": "action", "id": 1, "action": {"lft": 1}}, "no action 'lft'"),
        ({"type": "action", "id": 1, "action": {"action_0": 1e9}}, "below a million"),
        ({"type": "rate", "fps": 0}, "fps must be"),
        ({"type": "save", "format": "exe"}, "can be saved as"),
        ({"type": "unknown"}, "no message of type"),
    ],
)
def test_a_message_that_does_not_fit_is_told_and_the_world_goes_on(served: Running, message: dict, said_back: str):
    with connect(served.ws + "/play") as socket:
        said(socket, **START, paused=True)
        until(socket, "frame")
        said(socket, **message)
        header, _ = received(socket)
        assert header["type"] == "error" and said_back in header["message"]
        said(socket, type="step")
        assert until(socket, "frame")[0]["index"] == 1


def test_who_waits_is_told_the_place_and_plays_when_it_is_free(folders):
    with running(folders, Limits(active_sessions=1)) as server:
        first = connect(server.ws + "/play", legacy=True)
        said(first, **START, paused=True)
        until(first, "frame")
        with connect(server.ws + "/play") as second:
            said(second, **START, paused=True)
            assert received(second)[0] == {"type": "queued", "ahead": 0}
            first.close()
            assert until(second, "started")[0]["model"] == "world"


def test_a_session_that_asks_for_nothing_loses_its_place(folders):
    with running(folders, Limits(idle_seconds=0.5)) as server:
        with connect(server.ws + "/play") as socket:
            said(socket, **START, paused=True)
            until(socket, "frame")
            header, _ = received(socket)
            assert header["type"] == "error" and "in a while" in header["message"]
        assert settled(server.server)
