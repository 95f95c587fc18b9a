"""The recorded environment itself beside the model that imagines it, under the same keys."""

import asyncio
from contextlib import suppress
from typing import cast

import numpy as np
from jaxtyping import UInt8

from mutoscope.errors import UserError
from mutoscope.model_index import ModelIndex
from mutoscope.worlds.base import Environment
from mutoscope.worlds.catalog import DOOM, EnvironmentSpec, open_environment
from mutoscope.worlds.doom import SCENARIOS


class RealWorld:
    """One environment with its first frame. It begins anew where it ends."""

    def __init__(self, environment: Environment, names: tuple[str, ...], seed: int) -> None:
        self.environment, self.names, self.seed = environment, names, seed
        self.first: UInt8[np.ndarray, "h w 3"] = environment.reset(seed).frame
        self._episodes = 0

    async def step(self, action: dict[str, float]) -> UInt8[np.ndarray, "h w 3"]:
        return await asyncio.to_thread(self._step, np.array([action.get(n, 0.0) for n in self.names], np.float32))

    def _step(self, row: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
        transition = self.environment.step(row)
        if transition.ended:
            self._episodes += 1
            return self.environment.reset(self.seed + self._episodes).frame
        return transition.observation.frame

    async def reset(self) -> None:
        self._episodes = 0
        await asyncio.to_thread(self.environment.reset, self.seed)

    def close(self) -> None:
        with suppress(Exception):  # an engine that is gone already
            self.environment.close()


def environment_name(class_label: str | int | None, index: ModelIndex) -> str | None:
    """The environment that a class was recorded from, as far as its name tells.

    A model of a single scenario has no classes: its recording names it.
    """
    names = index.class_names or ()
    label = names[class_label] if isinstance(class_label, int) and 0 <= class_label < len(names) else class_label
    recorded = index.data.get("class_names")
    if not names and isinstance(recorded, list) and len(cast(list[object], recorded)) == 1:
        label = cast(list[object], recorded)[0]
    return f"{DOOM}-{label}" if label in SCENARIOS else None


async def real_world_of(class_label: str | int | None, index: ModelIndex, seed: int) -> RealWorld:
    """Raises UserError for a class without an environment, and where the extra [worlds] is missing."""
    name = environment_name(class_label, index)
    if name is None or index.actions is None:
        raise UserError("This scenario has no environment here to run beside it.")
    spec = EnvironmentSpec(name, index.height, index.width)
    environment = await asyncio.to_thread(open_environment, spec)
    if set(environment.action_names) != set(index.actions.names):
        environment.close()
        raise UserError(f"{name} answers to other keys than the model.")
    return await asyncio.to_thread(RealWorld, environment, environment.action_names, seed)
