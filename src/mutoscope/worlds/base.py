"""What an environment is to the recorder: names of its actions, frames, and an end.

Adapters: `worlds/doom.py` (ViZDoom's scenarios) and `worlds/gym.py` (Gymnasium). Row t of the actions is done in frame
t and leads to frame t + 1, as in every recording.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from jaxtyping import Float32, UInt8

from mutoscope.actions import Kind

Action = Float32[np.ndarray, " a"]


@dataclass(frozen=True)
class Seen:
    """An object in view, by ViZDoom's label buffer or by an environment's own facts.

    x: centre, and width: in shares of the frame's width.
    """

    name: str
    x: float
    width: float


@dataclass(frozen=True)
class Observation:
    """What a policy sees before each action."""

    frame: UInt8[np.ndarray, "h w 3"]
    step: int
    """Frames since the episode began."""
    action_names: tuple[str, ...]
    objects: tuple[Seen, ...] = ()
    """Objects in view; empty where an environment does not tell."""
    openness: tuple[float, ...] = ()
    """How far the view reaches in equal columns from left to right, in [0, 1]; empty where it is unknown."""
    facts: Mapping[str, object] = field(default_factory=dict)
    """The `info` of a Gymnasium environment."""


@dataclass(frozen=True)
class Transition:
    """What one action led to."""

    observation: Observation
    reward: float
    ended: bool
    """The episode is over: the frame is its last one."""


class Environment(Protocol):
    """One environment, opened by `worlds.catalog.open_environment`."""

    @property
    def task(self) -> str:
        """One phrase for the table of tasks, by which a model can be conditioned on the environment."""
        ...

    @property
    def action_names(self) -> tuple[str, ...]: ...

    @property
    def action_kind(self) -> Kind: ...

    @property
    def action_range(self) -> tuple[Action, Action]:
        """Smallest and largest value of every number of an action."""
        ...

    @property
    def fps(self) -> float:
        """Frames per second of the recording: the environment's own rate divided by the frame skip."""
        ...

    def reset(self, seed: int) -> Observation:
        """The first frame of an episode; the same seed and the same actions give the same frames."""
        ...

    def step(self, action: Action) -> Transition: ...

    def close(self) -> None: ...


ActionRow = Sequence[float] | Mapping[str, float] | Float32[np.ndarray, " a"]
Policy = Callable[[Observation, np.random.Generator], ActionRow]
"""Chooses the next action: one number per name, or a dict of names to numbers, others 0."""
PolicyFactory = Callable[[Environment], Policy]
"""A policy for one episode, which may keep what it has seen."""
