"""Hostile and careless clients: generated requests, floods, sockets that say nonsense or nothing."""

import json
import random
import socket as sockets
import string
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from mutoscope.playground.limits import Limits
from playground_server import Running, received, running, said, settled, until

schemathesis = pytest.importorskip("schemathesis", reason="the package schemathesis is not installed")

SOCKETS = ("/play", "/watch", "/v1/realtime/video")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_every_answer_is_one_that_the_description_promises(served: Running, mode: str) -> None:
    """Requests that fit the OpenAPI description, and requests that do not."""
    schema = schemathesis.openapi.from_url(f"{served.http}/openapi.json")
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation is None:
            continue

        @given(case=operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode)))
        @settings(
            max_examples=20,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
            database=None,
        )
        def check(case) -> None:
            unfit = schemathesis.specs.openapi.checks.positive_data_acceptance
            # Names of files and the bytes of a picture fit the description and are unknown or damaged all the same.
            case.call_and_validate(timeout=60, excluded_checks=[unfit])

        with suppress(Unsatisfiable):  # an operation without parameters has no wrong requests
            check()


def nonsense(random_numbers: random.Random) -> Iterator[str | bytes]:
    """Messages that are none, and messages with one thing wrong."""
    known = ["start", "action", "go", "pause", "step", "rate", "shown", "rewind", "reset", "save", "session.config"]
    values = [None, -1, 1e308, "x" * 50, [], {}, True, "../../etc/passwd", 10**30, "\u0000", "nan"]
    names = ["model", "id", "action", "fps", "frame", "format", "seed", "options", "class_label", "upload", "colour"]
    while True:
        yield "".join(random_numbers.choices(string.printable, k=random_numbers.randrange(1, 40)))
        yield random_numbers.randbytes(random_numbers.randrange(1, 40))
        fields = {random_numbers.choice(names): random_numbers.choice(values) for _ in range(3)}
        yield json.dumps({"type": random_numbers.choice(known), **fields})
        yield json.dumps({"type": random_numbers.choice(values)})
        yield json.dumps(
            {"type": "start", "model": "world", random_numbers.choice(names): random_numbers.choice(values)}
        )
        yield "[" * random_numbers.randrange(1, 5_000)


@pytest.mark.slow
@pytest.mark.parametrize("path", SOCKETS)
def test_nonsense_over_a_socket_is_answered_by_sentences(served: Running, path: str) -> None:
    random_numbers = random.Random(path)
    messages = nonsense(random_numbers)
    for _ in range(40):
        with connect(served.ws + path) as socket, suppress(ConnectionClosed, TimeoutError):
            for _ in range(random_numbers.randrange(1, 4)):
                socket.send(next(messages))
            while True:
                header, _ = received(socket, timeout=0.3)
                if header["type"] == "error":
                    said_so = header.get("message") or header["error"]["message"]
                    assert "log" not in said_so and "Traceback" not in said_so, said_so
        # a timeout of a session that goes on is as good as its end
    assert settled(served.server)
    assert httpx.get(f"{served.http}/healthz").status_code == 200


@pytest.mark.slow
def test_a_thousand_rapid_requests_are_all_answered(served: Running) -> None:
    paths = ("/healthz", "/v1/models", "/api/models", "/metrics", "/v1/videos/none", "/static/../app.py", "/%2e%2e/x")
    with httpx.Client() as client, ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda i: client.get(served.http + paths[i % len(paths)]).status_code, range(1_000)))
    assert set(found) <= {200, 404}


@pytest.mark.slow
def test_five_hundred_idle_sockets_leave_room_for_those_who_play(folders: dict[str, Path]) -> None:
    with running(folders, Limits(connections=520)) as served:
        idle = [sockets.create_connection(("127.0.0.1", served.port)) for _ in range(250)]  # not even a request
        with ExitStack() as opened:
            for _ in range(250):
                opened.enter_context(connect(f"{served.ws}/play"))
            with connect(f"{served.ws}/play") as player:
                said(player, type="start", model="world", seed=0)
                assert until(player, "frame")[0]["index"] == 0
        for one in idle:
            one.close()
        assert settled(served.server)


@pytest.mark.slow
def test_a_reader_that_never_reads_slows_nobody(folders: dict[str, Path]) -> None:
    with running(folders) as served, connect(f"{served.ws}/play") as asleep:
        said(asleep, type="start", model="world", seed=0)
        said(asleep, type="go")
        time.sleep(1)
        sent = served.server.metrics.frames
        time.sleep(0.5)
        assert served.server.metrics.frames == sent  # frames that nobody acknowledges are not made
        with connect(f"{served.ws}/play") as player:
            said(player, type="start", model="world", seed=0)
            said(player, type="go")
            for _ in range(20):
                header, _ = until(player, "frame")
            assert header["index"] >= 19
