"""Writes 240 short videos in two classes, as a camera on a table films them: balls that roll, and balls that bounce.

    python benchmarks/own_videos.py FOLDER

Nothing of the built-in dataset is in them: 120x160 pixels at 24 frames/s, 36 to 60 frames, a wooden table and a wall in
another light each time, one ball of random size and colour with shading and a shadow.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from mutoscope.data.video.write import write_video

HEIGHT, WIDTH, FPS, VIDEOS = 120, 160, 24, 240
HORIZON = 70  # row at which the wall ends and the table begins
GRAVITY = 260.0  # pixels per second squared
BOUNCE = 0.82  # part of the speed that a bounce keeps


def backdrop(random: np.random.Generator) -> Float[np.ndarray, "h w 3"]:
    """A wall with a soft light and a table with a grain."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH].astype(np.float64)
    light = np.exp(-((columns - random.uniform(0, WIDTH)) ** 2 + (rows - 20) ** 2) / 9000)[..., None]
    wall = random.uniform(90, 170, 3) * (0.7 + 0.5 * light)
    grain = np.sin(rows * 0.9 + 2 * np.sin(columns / random.uniform(15, 40)))[..., None]
    table = np.array([150.0, 105.0, 65.0]) * random.uniform(0.7, 1.1) * (1 + 0.06 * grain)
    return np.where(rows[..., None] < HORIZON, wall, table)


def path(kind: str, random: np.random.Generator, count: int, radius: float) -> Iterator[tuple[float, float, float]]:
    """(x, y, height above the table) of the ball's centre in every frame."""
    x, floor = random.uniform(20, 60), random.uniform(HORIZON + 14, HEIGHT - 12)
    speed, lift, climb = random.uniform(25, 70), random.uniform(30, 60), 0.0
    if random.random() < 0.5:
        x, speed = WIDTH - x, -speed
    for _ in range(count):
        yield x, floor - radius, lift if kind == "bounce" else 0.0
        x += speed / FPS
        if not 12 < x < WIDTH - 12:
            speed = -speed
        speed *= 0.995 if kind == "roll" else 1.0
        climb -= GRAVITY / FPS
        lift += climb / FPS
        if lift < 0:
            lift, climb = -lift * BOUNCE, -climb * BOUNCE


def frame(
    ground: Float[np.ndarray, "h w 3"], x: float, y: float, lift: float, radius: float, colour: np.ndarray
) -> UInt8[np.ndarray, "h w 3"]:
    """The ball with its shadow on the table."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH].astype(np.float64)
    wide = radius * (1.2 + lift / 60)
    shadow = np.exp(-(((columns - x) / wide) ** 2) - ((rows - y - radius) / (0.35 * wide)) ** 2)
    image = ground * (1 - 0.5 * shadow[..., None] / (1 + lift / 40))
    across, down = (columns - x) / radius, (rows - y + lift) / radius
    depth = np.sqrt(np.clip(1 - across**2 - down**2, 0, 1))
    shade = np.clip(0.35 + 0.75 * (depth * 0.7 - across * 0.35 - down * 0.6), 0.15, 1.2)[..., None]
    inside = np.clip((1 - np.sqrt(across**2 + down**2)) * radius + 0.5, 0, 1)[..., None]
    return (image * (1 - inside) + colour * shade * inside).clip(0, 255).round().astype(np.uint8)


def write(folder: Path, videos: int = VIDEOS, seed: int = 0) -> None:
    """Every second video is of the other class."""
    for number in range(videos):
        random = np.random.default_rng([seed, number])
        kind = ("roll", "bounce")[number % 2]
        (folder / kind).mkdir(parents=True, exist_ok=True)
        ground, radius = backdrop(random), random.uniform(8, 14)
        colour = random.permutation([random.uniform(190, 255), random.uniform(40, 200), random.uniform(20, 80)])
        positions = path(kind, random, int(random.integers(36, 61)), radius)
        frames = (frame(ground, x, y, lift, radius, colour) for x, y, lift in positions)
        write_video(folder / kind / f"{number:04d}.mp4", frames, FPS)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
