"""Steer a world and generate a clip through a running server (`mutoscope play`), as any other program can.

python examples/play_by_program.py --address http://127.0.0.1:8321 --out outputs
"""

import argparse
import json
import time
import urllib.request
from pathlib import Path

from tqdm import tqdm
from websockets.sync.client import connect


def call(address: str, body: dict | None = None) -> bytes:
    """The answer to a GET request, or to a POST request with a JSON body."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return answer.read()


def steer(address: str, model: str, frames: int, out: Path) -> None:
    """Play `frames` frames of a world, pressing each of its keys in turn, and keep the last one."""
    with connect(address.replace("http", "ws", 1) + "/play") as socket:
        socket.send(json.dumps({"type": "start", "model": model, "image": "png"}))
        names: list[str] = []
        while True:
            data = socket.recv()
            if isinstance(data, str):
                answer = json.loads(data)
                if answer["type"] == "error":
                    raise SystemExit(answer["message"])
                names = [action["name"] for action in answer.get("actions", [])]
                continue
            length = int.from_bytes(data[:4], "big")
            header, image = json.loads(data[4 : 4 + length]), data[4 + length :]
            index = header["index"]
            print(f"frame {index}: {header['sampling_ms']:.0f} ms sampling, {header['decoding_ms']:.0f} ms decoding")
            if index >= frames:
                (out / "world.png").write_bytes(image)
                return
            action = {names[index // 8 % len(names)]: 1.0} if names else {}
            socket.send(json.dumps({"type": "action", "id": index, "action": action}))
            socket.send(json.dumps({"type": "shown", "frame": index}))


def clip(address: str, model: str, prompt: str, out: Path) -> None:
    """Create a clip, follow its progress, and fetch it."""
    job = json.loads(call(f"{address}/v1/videos", {"model": model, "prompt": prompt}))
    with tqdm(total=100, desc=job["id"], unit="%") as bar:
        while job["status"] in ("queued", "in_progress"):
            time.sleep(0.2)
            job = json.loads(call(f"{address}/v1/videos/{job['id']}"))
            bar.update(job["progress"] - bar.n)
    if job["status"] == "failed":
        raise SystemExit(job["error"]["message"])
    (out / "clip.mp4").write_bytes(call(f"{address}/v1/videos/{job['id']}/content"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", default="http://127.0.0.1:8321")
    parser.add_argument("--out", type=Path, default=Path("outputs"))
    parser.add_argument("--world", default="magi-shapes")
    parser.add_argument("--model", default="magvit-shapes")
    parser.add_argument("--prompt", default="circle-bounce")
    parser.add_argument("--frames", type=int, default=24)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    steer(arguments.address, arguments.world, arguments.frames, arguments.out)
    clip(arguments.address, arguments.model, arguments.prompt, arguments.out)
    print(f"written: {arguments.out / 'world.png'}, {arguments.out / 'clip.mp4'}")


if __name__ == "__main__":
    main()
