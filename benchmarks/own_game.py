"""Writes 80 episodes of a small jumping game with their buttons, as a recorder of key presses stores them.

    python benchmarks/own_game.py FOLDER

A plain folder: NAME.mp4 (96x128 pixels, 12 frames/s) and NAME.actions.csv with the columns left, right and jump; row t
holds the buttons pressed in frame t, which lead to frame t + 1. Buttons are held for 1 to 10 frames at random.
"""

import csv
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from mutoscope.data.video.write import write_video

HEIGHT, WIDTH, FPS, EPISODES, FRAMES = 96, 128, 12, 80, 120
NAMES = ("left", "right", "jump")
GROUND, STEP, JUMP, GRAVITY = 78.0, 5.0, -11.0, 2.2  # rows and pixels per frame
PLATFORMS = ((20, 58, 34), (74, 44, 34))  # first column, row, columns
SIZE = 12  # of the runner


@dataclass
class Game:
    """A square runner that turns, jumps and falls; a star wanders from place to place when it is reached."""

    random: np.random.Generator
    x: float = 60.0
    y: float = GROUND
    climb: float = 0.0
    star: int = 0
    stars: list[tuple[float, float]] = field(default_factory=lambda: [(28, 50), (100, 36), (12, 70), (112, 70)])

    def floor(self) -> float:
        """Row of the ground or of the platform under the runner."""
        under = [row for left, row, wide in PLATFORMS if left - SIZE / 2 < self.x < left + wide + SIZE / 2]
        return min([row for row in under if row >= self.y - 0.01], default=GROUND)

    def step(self, left: int, right: int, jump: int) -> None:
        """One frame with these buttons."""
        self.x = float(np.clip(self.x + STEP * (right - left), SIZE / 2, WIDTH - SIZE / 2))
        floor = self.floor()
        if jump and self.y >= floor:
            self.climb = JUMP
        falls_from = self.y
        self.y += self.climb
        self.climb += GRAVITY
        if self.climb >= 0 and self.y >= floor and falls_from <= floor:
            self.y, self.climb = floor, 0.0
        x, y = self.stars[self.star]
        if abs(self.x - x) < SIZE and abs(self.y - SIZE / 2 - y) < SIZE:
            self.star = int(self.random.integers(len(self.stars)))

    def frame(self, ground: Float[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """The picture of the moment."""
        image = ground.copy()
        x, y = self.stars[self.star]
        rows, columns = np.mgrid[:HEIGHT, :WIDTH]
        image[np.abs(rows - y) + np.abs(columns - x) < 6] = (255, 220, 60)
        top, left = round(self.y - SIZE), round(self.x - SIZE / 2)
        image[max(top, 0) : top + SIZE, left : left + SIZE] = (230, 60, 50)
        image[max(top + 3, 0) : top + 5, left + 3 : left + 9] = (250, 250, 250)
        return image.clip(0, 255).astype(np.uint8)


def backdrop() -> Float[np.ndarray, "h w 3"]:
    """Sky, grass and platforms."""
    rows = np.arange(HEIGHT)[:, None, None]
    image = np.broadcast_to(np.array([90.0, 150.0, 220.0]) + rows * 0.6, (HEIGHT, WIDTH, 3)).copy()
    image[round(GROUND) :] = (70, 150, 60)
    image[round(GROUND) : round(GROUND) + 3] = (110, 190, 80)
    for left, row, wide in PLATFORMS:
        image[row : row + 6, left : left + wide] = (120, 80, 50)
    return image


def held_buttons(random: np.random.Generator) -> list[tuple[int, int, int]]:
    """Random buttons, each choice held for 1 to 10 frames."""
    rows: list[tuple[int, int, int]] = []
    while len(rows) < FRAMES:
        way = int(random.integers(3))
        choice = int(way == 0), int(way == 1), int(random.random() < 0.35)
        rows += [choice] * int(random.integers(1, 11))
    return rows[:FRAMES]


def write(folder: Path, episodes: int = EPISODES, seed: int = 0) -> None:
    """Every episode begins in another place."""
    folder.mkdir(parents=True, exist_ok=True)
    ground = backdrop()
    for number in range(episodes):
        random = np.random.default_rng([seed, number])
        game = Game(random, x=float(random.uniform(10, WIDTH - 10)), star=int(random.integers(4)))
        buttons, frames = held_buttons(random), []
        for row in buttons:
            frames.append(game.frame(ground))
            game.step(*row)
        write_video(folder / f"{number:04d}.mp4", frames, FPS)
        with (folder / f"{number:04d}.actions.csv").open("w", newline="") as file:
            csv.writer(file).writerows([NAMES, *buttons])


if __name__ == "__main__":
    write(Path(sys.argv[1]))
