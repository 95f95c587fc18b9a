"""Small environments for tests: a dot that moves by its action, and Gymnasium forms of it."""

from typing import Any, ClassVar, cast

import gymnasium
import numpy as np
from gymnasium import spaces

SIZE, DOT = 32, 6


class Dot(gymnasium.Env):
    """A white dot on grey that moves by (dx, dy) pixels; the episode ends when it touches the right border."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, render_mode: str | None = None, actions: str = "box", frame_size: int = SIZE) -> None:
        self.render_mode, self.frame_size = render_mode, frame_size
        self.action_space = {
            "box": spaces.Box(-2, 2, (2,), np.float32),
            "discrete": spaces.Discrete(3),
            "binary": spaces.MultiBinary(2),
            "dict": spaces.Dict({"a": spaces.Discrete(2)}),
        }[actions]
        self.observation_space = spaces.Box(0, SIZE, (2,), np.float32)
        self.at = np.zeros(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.at = self.np_random.integers(0, SIZE - DOT, 2).astype(float)
        return self.at.astype(np.float32), {}

    def step(self, action: Any):
        if isinstance(self.action_space, spaces.Box):
            move = np.round(np.asarray(action, dtype=float))
        elif isinstance(self.action_space, spaces.Discrete):
            move = np.array([[0, 0], [-2, 0], [2, 0]][int(action)], dtype=float)
        else:
            move = 2 * np.asarray(action, dtype=float)
        self.at = np.clip(self.at + move, 0, SIZE - DOT)
        return self.at.astype(np.float32), float(move[0]), bool(self.at[0] >= SIZE - DOT), False, {}

    def render(self):
        frame = np.full((self.frame_size, self.frame_size, 3), 60, np.uint8)
        x, y = self.at.astype(int)
        frame[y : y + DOT, x : x + DOT] = 255
        return frame

    def get_action_meanings(self) -> list[str]:
        return ["NOOP", "LEFT", "RIGHT"]


class Blind(Dot):
    """Cannot render."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": [], "render_fps": 10}

    def render(self):
        return None


def register() -> None:
    """Makes the environments known to Gymnasium, once."""
    for name, entry in (("mutoscope-test/Dot-v0", Dot), ("mutoscope-test/Blind-v0", Blind)):
        if name not in gymnasium.registry:
            gymnasium.register(name, entry_point=cast(Any, entry))
