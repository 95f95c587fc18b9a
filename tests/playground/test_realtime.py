"""/v1/realtime/video: fragments of one film, and conditions that change on the way."""

import io
import json
from pathlib import Path

import av
import numpy as np
import pytest
from websockets.sync.client import ClientConnection, connect

from mutoscope.data.video.read import read_video
from mutoscope.playground.realtime import CHUNK_FRAMES, FragmentWriter
from playground_server import Running, said, settled

START = {"type": "session.start", "model": "world", "extra_params": {"class_label": "cross", "seed": 1}}


def told(socket: ClientConnection) -> dict:
    """The next message that is no fragment."""
    while True:
        data = socket.recv(timeout=60)
        if isinstance(data, str):
            return json.loads(data)


def test_the_fragments_together_are_the_film(served: Running, tmp_path: Path):
    with connect(served.ws + "/v1/realtime/video") as socket:
        said(socket, **START, num_frames=10)
        header, content, counts = told(socket), b"", []
        assert header["type"] == "video.start" and (header["width"], header["height"]) == (12, 8)
        while header["type"] != "session.done":
            data = socket.recv(timeout=60)
            if isinstance(data, bytes):
                assert len(data) == header["byte_length"]
                content += data
                continue
            header = json.loads(data)
            if header["type"] == "video.chunk_metadata":
                assert header["transport_chunk_index"] == len(counts)
                counts.append(header["num_frames"])
    assert header["num_frames"] == 10 and counts == [CHUNK_FRAMES, CHUNK_FRAMES, 2]
    (tmp_path / "film.mp4").write_bytes(content)
    assert len(read_video(tmp_path / "film.mp4").frames) == 10


@pytest.mark.parametrize("fps", [8.75, 10.0, 29.97])
def test_every_fragment_shows_its_own_frames_as_soon_as_it_is_sent(fps: float):
    levels = np.linspace(20, 230, 10)
    writer, content, times = FragmentWriter(9, 14, fps), b"", []
    for first in (0, 4, 8):
        content += writer.chunk(np.stack([np.full((9, 14, 3), level, np.uint8) for level in levels[first : first + 4]]))
        with av.open(io.BytesIO(content), "r") as container:
            frames = [(frame.time, frame.to_ndarray(format="rgb24").mean()) for frame in container.decode(video=0)]
        times = [time for time, _ in frames]
        assert [round(level) for _, level in frames] == pytest.approx(levels[: first + 4].tolist(), abs=4)
    assert times == pytest.approx([number / fps for number in range(10)], rel=1e-3)


def test_interactions_are_queued_begin_with_a_chunk_and_complete(served: Running):
    with connect(served.ws + "/v1/realtime/video") as socket:
        said(socket, **START)
        assert told(socket)["type"] == "video.start"
        event = {"event_id": "turn", "event": {"action": {"action_0": 1}}, "transition_chunks": 2}
        said(socket, type="session.interaction", interaction=event)
        seen: dict[str, list[int]] = {"started": [], "active": [], "completed": []}
        queued = False
        while not seen["completed"]:
            header = told(socket)
            queued = queued or header == {"type": "session.interaction.queued", "event_id": "turn"}
            for name, chunks in seen.items():
                if "turn" in header.get(f"{name}_event_ids", []):
                    chunks.append(header["transport_chunk_index"])
        assert queued and len(seen["started"]) == 1 and len(seen["active"]) == 2
        assert seen["completed"] == [seen["started"][0] + 1]
        said(socket, type="session.stop")
        while told(socket)["type"] != "session.done":
            pass
    assert settled(served.server)


@pytest.mark.parametrize("interaction", [{}, {"event_id": 3}, {"event_id": "x", "event": {"colour": 1}}, 7])
def test_an_interaction_that_does_not_fit_is_told_and_the_stream_goes_on(served: Running, interaction: object):
    with connect(served.ws + "/v1/realtime/video") as socket:
        said(socket, **START)
        told(socket)
        said(socket, type="session.interaction", interaction=interaction)
        kinds = [told(socket)["type"] for _ in range(4)]
        assert "error" in kinds and "video.chunk_metadata" in kinds
        said(socket, type="session.ping")
        while told(socket)["type"] != "session.pong":
            pass


@pytest.mark.parametrize(
    ("message", "said_back"),
    [
        ({"type": "session.begin"}, "session.start"),
        ({**START, "model": "wrld"}, "did you mean 'world'"),
        ({**START, "format": "avi"}, "m4s"),
        ({**START, "width": 640}, "generates 12x8"),
        ({**START, "fps": 0}, "fps must be"),
        ({**START, "prompt": "a cat"}, "prompt"),
        ({**START, "colour": 1}, "colour"),
    ],
)
def test_a_start_that_does_not_fit_is_a_sentence(served: Running, message: dict, said_back: str):
    with connect(served.ws + "/v1/realtime/video") as socket:
        said(socket, **message)
        header = told(socket)
        assert header["type"] == "error" and said_back in header["message"]
    assert settled(served.server)
