"""The page's server under one session, eight sessions, and people who come and go.

    python benchmarks/playground.py OUT.json [--model magi-doom] [--minutes 10] [--node-modules FOLDER]

The server is a process of its own (`mutoscope play`), the clients are on the same machine: one thread each, which
acknowledge a frame as soon as its image is decoded. Seconds per key are from sending an action to the decoded image of
the first frame that read it, at the model's own rate (frame skip included) and as fast as the server can. With
`--node-modules` (a folder with playwright-core, and Chromium installed) the page measures it once more, from the key's
event to the next painted picture. Memory is the resident size of the server while sessions are opened and cut off.
"""

import argparse
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image
from websockets.sync.client import ClientConnection, connect

from timing import Report, write_report

SECONDS = 20.0  # of each measurement
KEY_EVERY = 0.5  # seconds
PLAYERS = 8
SCRIPT = Path(__file__).with_name("playground_page.mjs")


@contextmanager
def server(model: str) -> Iterator[tuple[str, int]]:
    """Address and process number of a server that ends with the block."""
    command = [sys.executable, "-m", "mutoscope", "play", model, "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        found = re.search(r"http://([^/\s]+)", process.stdout.readline())
        assert found is not None
        yield found[1], process.pid
    finally:
        process.terminate()
        process.wait()


class Player:
    """One session that plays for a while."""

    def __init__(self, address: str, model: str, fps: float | None) -> None:
        begin = time.perf_counter()
        self.stack = ExitStack()
        self.socket: ClientConnection = self.stack.enter_context(connect(f"ws://{address}/play", max_size=2**24))
        self.say({"type": "start", "model": model, "seed": 0})
        self.started = self.until("started")
        self.until("frame")
        self.seconds_first_frame = time.perf_counter() - begin
        self.names = [str(action["name"]) for action in cast(list[dict[str, object]], self.started["actions"])]
        self.say({"type": "rate", "fps": fps or 120})

    def say(self, message: dict[str, object]) -> None:
        self.socket.send(json.dumps(message))

    def until(self, kind: str) -> dict[str, object]:
        """The header of the next message of a kind, its image decoded and acknowledged."""
        while True:
            data = self.socket.recv(timeout=120)
            header: dict[str, object] = json.loads(data) if isinstance(data, str) else _header(data)
            if header["type"] == "frame":
                self.say({"type": "shown", "frame": header["index"]})
            if header["type"] == kind:
                return header

    def play(self, seconds: float) -> tuple[list[float], list[float]]:
        """Seconds between frames, and from keys to the frames that read them."""
        self.say({"type": "go"})
        self.until("frame")
        begin = last = pressed = time.perf_counter()
        gaps: list[float] = []
        keys: list[float] = []
        number, waiting = 0, False
        while last - begin < seconds:
            if not waiting and time.perf_counter() - pressed > KEY_EVERY:
                number, waiting, pressed = number + 1, True, time.perf_counter()
                name = self.names[number % len(self.names)]
                self.say({"type": "action", "id": number, "action": {name: 1.0}})
            header = self.until("frame")
            now = time.perf_counter()
            gaps.append(now - last)
            last = now
            if waiting and int(cast(int, header["action_id"])) >= number:
                keys.append(now - pressed)
                waiting = False
        return gaps, keys


def _header(data: bytes) -> dict[str, object]:
    length = int.from_bytes(data[:4], "big")
    with Image.open(io.BytesIO(data[4 + length :])) as image:
        image.load()
    return json.loads(data[4 : 4 + length])


def played(address: str, model: str, fps: float | None, seconds: float = SECONDS) -> Report:
    """The figures of one session."""
    player = Player(address, model, fps)
    gaps, keys = player.play(seconds)
    player.stack.close()
    return {
        "seconds_first_frame": round(player.seconds_first_frame, 3),
        "frames_per_second": round(len(gaps) / sum(gaps), 2),
        "seconds_key_median": round(float(np.median(keys)), 3),
        "seconds_key_95": round(float(np.quantile(keys, 0.95)), 3),
        "longest_gap": round(max(gaps), 3),
    }


def crowded(address: str, model: str) -> Report:
    """Eight sessions at once, each as fast as it gets frames."""
    with ThreadPoolExecutor(PLAYERS) as pool:
        reports = list(pool.map(lambda _: played(address, model, None), range(PLAYERS)))
    rates = [float(cast(float, report["frames_per_second"])) for report in reports]
    gaps = [float(cast(float, report["longest_gap"])) for report in reports]
    return {"frames_per_second": sorted(rates), "sum": round(sum(rates), 2), "longest_gap": max(gaps)}


def coming_and_going(address: str, model: str, pid: int, minutes: float) -> Report:
    """Resident memory in MB once a minute, while sessions begin and are cut off after a few frames."""
    end, sessions = time.monotonic() + 60 * minutes, 0
    memory = [resident(pid)]
    mark = time.monotonic() + 60
    while time.monotonic() < end:
        player = Player(address, model, None)
        player.say({"type": "go"})
        for _ in range(sessions % 5):
            player.until("frame")
        player.socket.socket.close()  # without a goodbye
        sessions += 1
        if time.monotonic() > mark:
            memory.append(resident(pid))
            mark += 60
    return {"sessions": sessions, "minutes": minutes, "megabytes_each_minute": memory}


def resident(pid: int) -> int:
    """Megabytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+)", status)
    assert found is not None
    return int(found[1]) // 1024


def in_the_page(address: str, node_modules: Path) -> Report:
    """What the page measures in Chromium."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    command = ["node", str(SCRIPT), f"http://{address}/", str(node_modules), str(chromium), str(SECONDS)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="magi-doom")
    parser.add_argument("--minutes", type=float, default=10.0, help="of coming and going")
    parser.add_argument("--node-modules", type=Path, help="folder that holds node_modules with playwright-core")
    arguments = parser.parse_args()
    report: Report = {
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "model": arguments.model,
    }
    with server(arguments.model) as (address, pid):
        played(address, arguments.model, None, 3.0)  # loads the model
        player = Player(address, arguments.model, None)
        fps = float(cast(float, player.started["fps"]))
        player.stack.close()
        parts: dict[str, Callable[[], Report]] = {
            "at_the_models_rate": lambda: {"fps": fps} | played(address, arguments.model, fps),
            "at_fifteen": lambda: played(address, arguments.model, 15.0),
            "as_fast_as_it_goes": lambda: played(address, arguments.model, None),
            "eight_players": lambda: crowded(address, arguments.model),
            "coming_and_going": lambda: coming_and_going(address, arguments.model, pid, arguments.minutes),
        }
        if arguments.node_modules is not None:
            parts["in_chromium"] = lambda: in_the_page(address, arguments.node_modules)
        for name, measure in parts.items():
            report[name] = measure()
            print(name, json.dumps(report[name]), flush=True)
            write_report(arguments.out, report)


if __name__ == "__main__":
    main()
