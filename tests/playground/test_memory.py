"""What a session used is given back when it has ended."""

import asyncio
import gc
import weakref

import pytest
from websockets.sync.client import connect

from mutoscope.pipeline import VideoPipeline
from mutoscope.playground import play
from mutoscope.playground.memory import give_back_memory, short_collections
from mutoscope.playground.world import World, WorldStart
from playground_server import running, said, settled, until


def test_the_worlds_of_sessions_that_were_cut_off_are_gone_after_a_round_of_housekeeping(
    folders, monkeypatch: pytest.MonkeyPatch
):
    worlds: list[weakref.ref[World]] = []

    class Watched(World):
        def __init__(self, pipeline: VideoPipeline, start: WorldStart, remembered: int) -> None:
            super().__init__(pipeline, start, remembered)
            worlds.append(weakref.ref(self))

    monkeypatch.setattr(play, "World", Watched)
    gc.disable()
    try:
        with running(folders) as served:
            for _ in range(3):
                with connect(served.ws + "/play") as socket:
                    said(socket, type="start", model="world", class_label="square")
                    until(socket, "frame")
                    socket.socket.close()  # without a goodbye
            settled(served.server)
            assert served.server.turns.ended == 3
            asyncio.run(served.server.tidy())
            assert [world() for world in worlds] == [None] * 3
            assert served.server.turns.ended == 0
    finally:
        gc.enable()


def test_collections_of_a_server_leave_out_what_was_there_before():
    before = gc.get_freeze_count()
    with short_collections():
        assert gc.get_freeze_count() > before
        give_back_memory()
    assert gc.get_freeze_count() == 0
