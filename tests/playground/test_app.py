"""The server as a whole: its page, its status, its refusals, and many clients at once."""

import asyncio
import errno
import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

import mutoscope.playground
from mutoscope.playground import uploads
from mutoscope.playground.app import Server, create_app
from mutoscope.playground.guard import Guard
from mutoscope.playground.limits import Limits
from mutoscope.playground.shelf import Shelf
from playground_server import Running, running, said, settled, until

STATIC = Path(mutoscope.playground.__file__).parent / "static"


def test_the_page_and_its_files_are_served_with_safe_headers(served: Running):
    page = httpx.get(served.http + "/")
    assert page.status_code == 200 and "text/html" in page.headers["content-type"]
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert page.headers["cross-origin-embedder-policy"] == "require-corp"
    for name in re.findall(r"/static/([\w.-]+)", page.text):
        assert httpx.get(f"{served.http}/static/{name}").status_code == 200


def test_the_page_asks_nobody_else_for_anything():
    for file in STATIC.iterdir():
        addresses = set(re.findall(r"https?://[^\s\"'`)]+", file.read_text(encoding="utf-8")))
        assert addresses <= {"http://www.w3.org/2000/svg"}, file.name


@pytest.mark.parametrize("path", ["/static/../app.py", "/static/..%2fapp.py", "/static/%2e%2e/app.py", "/static/x.js"])
def test_no_other_file_is_served(served: Running, path: str):
    answer = httpx.get(served.http + path)
    assert answer.status_code == 404 and "import" not in answer.text


def test_status_models_and_metrics(served: Running):
    assert httpx.get(served.http + "/healthz").json()["status"] == "ok"
    models = httpx.get(served.http + "/v1/models").json()
    assert models["object"] == "list" and [one["id"] for one in models["data"]] == ["world", "clips"]
    assert "mutoscope_sessions_active 0" in httpx.get(served.http + "/metrics").text
    described = httpx.get(served.http + "/openapi.json").json()
    assert {"/v1/videos", "/v1/models", "/api/uploads", "/healthz"} <= set(described["paths"])


def test_the_model_with_which_the_page_opens_is_loaded_before_anyone_comes(folders):
    async def loaded(opening: str | None) -> tuple[str, ...]:
        limits = Limits()
        server = Server(Shelf(folders, 2, 60.0), Guard.of("127.0.0.1"), limits, opening)
        async with server.lifespan(create_app(server)):
            await asyncio.sleep(0.1)
            await server.turns.do(lambda: None)  # in its turn, after the loading
            return server.shelf.loaded

    assert asyncio.run(loaded("clips")) == ("clips",) and asyncio.run(loaded(None)) == ()


def test_the_page_learns_what_each_model_takes(served: Running):
    world, clips = httpx.get(served.http + "/api/models").json()
    assert world["playable"] and world["streams"] and not clips["streams"]
    assert world["classes"] == ["circle", "square", "cross"] and len(world["actions"]) == 2
    options = {option["name"]: option for option in clips["options"]}
    assert options["class_label"]["kind"] == "choice" and options["seed"]["kind"] == "int"
    assert options["context"]["kind"] == "upload" and options["keep_given"]["kind"] == "flag"
    assert all(option["help"] for option in clips["options"])
    assert "num_samples" not in options and "sampling" not in options


@pytest.mark.parametrize("function", ["workspace", "at_most"])
def test_an_upload_to_a_full_disk_is_a_sentence_and_the_server_goes_on(
    served: Running, monkeypatch: pytest.MonkeyPatch, function: str
):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = getattr(uploads, function)
    monkeypatch.setattr(uploads, function, full)
    answer = httpx.post(f"{served.http}/api/uploads", content=b"x", timeout=60)
    assert answer.status_code == 507
    assert answer.json()["detail"].startswith("Cannot write the upload: No space left on the disk")
    monkeypatch.setattr(uploads, function, before)
    assert httpx.post(f"{served.http}/api/uploads", content=b"x", timeout=60).status_code == 400


def test_a_token_is_needed_where_the_server_is_not_for_this_machine_alone(folders):
    with running(folders, guard=Guard("0.0.0.0", "secret")) as served:
        assert httpx.get(served.http + "/").status_code == 403
        assert httpx.post(served.http + "/api/uploads", content=b"x").status_code == 403
        assert httpx.get(served.http + "/healthz").status_code == 200
        answer = httpx.get(served.http + "/", params={"token": "secret"})
        assert answer.status_code == 200 and "HttpOnly" in answer.headers["set-cookie"]
        assert httpx.get(served.http + "/v1/models", headers={"Authorization": "Bearer secret"}).status_code == 200
        with pytest.raises(InvalidStatus):
            connect(served.ws + "/play").__enter__()
        with connect(served.ws + "/play?token=secret") as socket:
            said(socket, type="start", model="world", paused=True)
            until(socket, "frame")


def test_pages_of_other_sites_get_nothing(served: Running):
    evil = {"Origin": "https://evil.example"}
    assert httpx.get(served.http + "/v1/models", headers=evil).status_code == 403
    with pytest.raises(InvalidStatus):
        connect(served.ws + "/watch", additional_headers=evil).__enter__()
    assert httpx.get(served.http + "/v1/models", headers={"Host": "evil.example"}).status_code == 403


@pytest.mark.slow
def test_eight_players_all_get_frames(served: Running):
    def play(number: int) -> int:
        with connect(served.ws + "/play") as socket:
            said(socket, type="start", model="world", seed=number)
            said(socket, type="rate", fps=120)
            return [until(socket, "frame")[0]["index"] for _ in range(12)][-1]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(play, range(8))) == [11] * 8
    assert settled(served.server)


@pytest.mark.slow
def test_many_idle_and_broken_sockets_hold_nothing_up(folders):
    with running(folders, Limits(connections=70)) as served:
        idle = [connect(served.ws + "/play", legacy=True) for _ in range(60)]
        for number, socket in enumerate(idle[:30]):
            socket.send(b"\x00\xff" * number if number % 2 else "{" * number)
        with connect(served.ws + "/play") as socket:
            said(socket, type="start", model="world", paused=True)
            until(socket, "frame")
        refused = 0
        for _ in range(60):
            try:
                idle.append(connect(served.ws + "/play", legacy=True))
            except InvalidStatus:
                refused += 1
        assert refused > 0
        for socket in idle:
            threading.Thread(target=socket.close_socket, daemon=True).start()
        assert settled(served.server)
