"""A dot that two buttons move around a ring: recordings of it, and models that follow the buttons or do not."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float32, UInt8

from dot_recordings import write_video
from mutoscope.actions import ActionSpec
from mutoscope.evaluation.sources.action_streams import Starts, StreamModel

HEIGHT, WIDTH, DOT, STEP, FPS = 24, 32, 6, 2, 10
NAMES = ("turn_left", "turn_right")
HELD = 4  # frames for which a button is held
Behaviour = Literal["exact", "random", "frozen", "noise"]


def moved(x: np.ndarray, rows: Float32[np.ndarray, "n 2"]) -> np.ndarray:
    """Columns one frame later; the last one is beside the first."""
    rows = np.nan_to_num(rows)
    return (x + STEP * (rows[:, 1] - rows[:, 0])) % WIDTH


def drawn(x: np.ndarray) -> UInt8[np.ndarray, "n h w 3"]:
    """Frames of a dot at these columns on a ramp of grey levels."""
    ramp = np.broadcast_to(np.linspace(20, 90, HEIGHT)[:, None, None], (HEIGHT, WIDTH, 3))
    frames = np.repeat(ramp[None], len(x), axis=0).round().astype(np.uint8)
    for frame, left in zip(frames, np.round(x).astype(int), strict=True):
        frame[9 : 9 + DOT, (left + np.arange(DOT)) % WIDTH] = 240
    return frames


def position(frames: UInt8[np.ndarray, "n h w 3"]) -> np.ndarray:
    """The dot's left column, from its bright pixels on the ring."""
    light = np.where(frames[..., 0] > 170, 1.0, 0.0).sum(axis=1)  # (n, w)
    angle = np.angle((light * np.exp(2j * np.pi * np.arange(WIDTH) / WIDTH)).sum(axis=1))
    return np.round(angle / (2 * np.pi) * WIDTH - (DOT - 1) / 2) % WIDTH


def random_actions(length: int, seed: int) -> Float32[np.ndarray, "t 2"]:
    """Neither button or one of them, held for some frames."""
    kinds = np.array([[0, 0], [1, 0], [0, 1]], np.float32)
    draws = np.random.default_rng(seed).integers(3, size=-(-length // HELD))
    return kinds[draws].repeat(HELD, axis=0)[:length]


def write_episodes(folder: Path, count: int, length: int = 60, seed: int = 0) -> Path:
    """Videos with NAME.actions.csv beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        actions = random_actions(length, seed + number)
        x = [np.array([float(2 * (number % 12))])]
        for row in actions[:-1]:
            x.append(moved(x[-1], row[None]))
        write_video(folder / f"{number:03d}.mp4", drawn(np.concatenate(x)), FPS, crf="0")
        lines = [",".join(NAMES), *(",".join(str(int(value)) for value in row) for row in actions)]
        (folder / f"{number:03d}.actions.csv").write_text("\n".join(lines) + "\n")
    return folder


@dataclass(frozen=True)
class DotModel(StreamModel):
    """exact: the dot obeys its buttons. random: it obeys others. frozen: it never moves. noise: no dot at all."""

    behaviour: Behaviour = "exact"
    names: tuple[str, ...] = NAMES
    size: tuple[int, int] = (HEIGHT, WIDTH)
    fps: float = FPS
    window: int = 6

    @property
    def spec(self) -> ActionSpec:
        return ActionSpec.plain(self.names, "buttons", FPS)

    def clips(self, starts: Starts, num_frames: int, seed: int) -> UInt8[np.ndarray, "n t h w 3"]:
        frames = list(np.moveaxis(starts.context, 1, 0))
        stream = self.stream(starts, seed)
        frames += [next(stream) for _ in range(num_frames - len(frames))]
        return np.stack(frames, axis=1)

    def stream(self, starts: Starts, seed: int) -> Iterator[UInt8[np.ndarray, "n h w 3"]]:
        rng, x, first = np.random.default_rng(seed), position(starts.context[:, -1]), starts.context.shape[1] - 1
        wrong = np.stack([random_actions(starts.actions.shape[1] + 1, seed + 7 * i) for i in range(len(starts))])
        rows = wrong if self.behaviour == "random" else starts.actions
        for number in range(first, rows.shape[1]):
            x = x if self.behaviour == "frozen" else moved(x, rows[:, number])
            yield rng.integers(0, 256, (len(x), HEIGHT, WIDTH, 3), np.uint8) if self.behaviour == "noise" else drawn(x)

    def reconstructed(self, frames: UInt8[np.ndarray, "n t h w 3"]) -> UInt8[np.ndarray, "n t h w 3"]:
        return frames

    def described(self) -> dict[str, object]:
        return {"task": "action-conditional", "model_sha256": "d" * 64, "behaviour": self.behaviour}
