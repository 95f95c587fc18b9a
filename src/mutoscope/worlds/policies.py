"""Policies that play environments: random held keys, a small scripted one for Doom, and functions of one's own.

A recording shows a model what its policy does and nothing else: random keys alone stay near the start, and scripted
ones alone never do the unexpected. `mixed` alternates between both.
"""

import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import cast

import numpy as np
from jaxtyping import Float32

from mutoscope.errors import UserError, reason
from mutoscope.json_config import nearest
from mutoscope.worlds.base import Action, Environment, Observation, Policy, PolicyFactory, Seen
from mutoscope.worlds.doom import DoomEnvironment

HOLD = (1, 6)  # frames that a key stays pressed, as in a person's play at 9 frames per second
RANDOM_SPELL = (4, 12)  # frames in which the scripted policy holds random keys, in a share of its time
FIRES_FROM = (0.02, 0.2)  # width of a monster, in widths of the frame, from which it is shot at: one draw per episode
IN_SIGHT = 0.06  # distance from the middle, in widths, at which a scripted policy attacks
NEAR = 0.02  # openness of a wall in front of which the scripted policy turns
AHEAD = 0.2  # distance from the middle at which it walks on while turning


class RandomKeys:
    """Presses a random set of keys, or draws axes uniformly, and holds them for 1 to 6 frames."""

    def __init__(self, environment: Environment) -> None:
        self.low, self.high = environment.action_range
        self.buttons = environment.action_kind == "buttons"
        self.row: Action = np.zeros_like(self.low)
        self.left = 0

    def __call__(self, observation: Observation, rng: np.random.Generator) -> Action:
        if self.left == 0:
            self.left = int(rng.integers(HOLD[0], HOLD[1] + 1))
            self.row = self._drawn(rng)
        self.left -= 1
        return self.row

    def _drawn(self, rng: np.random.Generator) -> Action:
        if not self.buttons:
            return rng.uniform(self.low, self.high).astype(np.float32)
        count = len(self.low)
        row = np.zeros(count, np.float32)
        if rng.random() < 0.9:  # now and then no key
            row[rng.integers(count)] = 1
            if rng.random() < 0.25:  # two keys together
                row[rng.integers(count)] = 1
        return row


class Replayed:
    """Does the same rows in every episode, then no action."""

    def __init__(self, rows: Float32[np.ndarray, "t a"], environment: Environment) -> None:
        if rows.shape[1] != len(environment.action_names):
            raise UserError(
                f"The actions are rows of {rows.shape[1]} numbers, {environment.task} has "
                f"{len(environment.action_names)}: {', '.join(environment.action_names)}."
            )
        self.rows, self.step = rows, 0

    def __call__(self, observation: Observation, rng: np.random.Generator) -> Action:
        step, self.step = self.step, self.step + 1  # not the observation's step, which begins anew in endless episodes
        return self.rows[step] if step < len(self.rows) else np.zeros_like(self.rows[0])


class ScriptedDoom:
    """Turns to monsters and shoots, walks to packs, else walks where the view is open and turns before walls."""

    def __init__(self, environment: Environment) -> None:
        if not isinstance(environment, DoomEnvironment):
            raise UserError("The scripted policy is for Doom's scenarios: use --policy random, or a function of yours.")
        self.scenario = environment.scenario
        self.steps_aside = self.scenario.keys["left"] == "MOVE_LEFT"
        self.random = RandomKeys(environment)
        self.random_left, self.turn_left, self.side = 0, 0, "left"
        self.fires_from: float | None = None

    def __call__(self, observation: Observation, rng: np.random.Generator) -> dict[str, float] | Action:
        if self.random_left > 0:
            self.random_left -= 1
            return self.random(observation, rng)
        if self.fires_from is None:
            self.fires_from = rng.uniform(*FIRES_FROM)
        if rng.random() < self._chance_of_spell():
            self.random_left = int(rng.integers(RANDOM_SPELL[0], RANDOM_SPELL[1] + 1))
        if target := _nearest(observation, self.scenario.targets):
            return self._attack(target, rng)
        if prize := _nearest(observation, self.scenario.prizes):
            return self._walk_to(prize)
        return self._aside(rng) if self.steps_aside else self._explore(observation, rng)

    def _chance_of_spell(self) -> float:
        """Chance per frame of other behaviour that leaves random keys their share of the time."""
        share = self.scenario.random_share
        return share / (1 - share) / (sum(RANDOM_SPELL) / 2)

    def _attack(self, target: Seen, rng: np.random.Generator) -> dict[str, float]:
        """Turns to a monster, lets it come near, then shoots."""
        assert self.fires_from is not None
        offset = target.x - 0.5
        if abs(offset) < max(IN_SIGHT, target.width / 3):
            if target.width < self.fires_from and rng.random() < 0.9:
                return {} if rng.random() < 0.7 else {"forward": 1.0}
            return {"attack": 1.0}
        return {"left" if offset < 0 else "right": 1.0}

    def _walk_to(self, prize: Seen) -> dict[str, float]:
        offset = prize.x - 0.5
        keys: dict[str, float] = {"forward": 1.0} if abs(offset) < AHEAD else {}
        return keys | ({"left" if offset < 0 else "right": 1.0} if abs(offset) > IN_SIGHT else {})

    def _aside(self, rng: np.random.Generator) -> dict[str, float]:
        """Steps to one side, with changes of mind."""
        if rng.random() < 0.1:
            self.side = "right" if self.side == "left" else "left"
        return {self.side: 1.0}

    def _explore(self, observation: Observation, rng: np.random.Generator) -> dict[str, float]:
        view = np.array(observation.openness)
        middle = len(view) // 2
        if self.turn_left > 0:
            self.turn_left -= 1
            return {self.side: 1.0}
        if view[middle] < NEAR or rng.random() < 0.03:  # a wall, or a look around
            self.side = "left" if view[:middle].max() >= view[middle + 1 :].max() else "right"
            self.turn_left = int(rng.integers(1, 8))
            return {self.side: 1.0}
        offset = int(view.argmax()) - middle
        turn: dict[str, float] = {"left" if offset < 0 else "right": 1.0} if abs(offset) > 1 else {}
        return {"forward": 1, **(turn if rng.random() < 0.6 else {})}


def _nearest(observation: Observation, names: tuple[str, ...]) -> Seen | None:
    """The widest object in view with one of these names."""
    found = [seen for seen in observation.objects if seen.name in names]
    return max(found, key=lambda seen: seen.width, default=None)


POLICIES: Mapping[str, PolicyFactory] = {"random": RandomKeys, "scripted": ScriptedDoom}


def find_policy(name: str) -> PolicyFactory:
    """A policy by its name, or a function of one's own as module:function or path/to/file.py:function.

    Importing executes that module, which is the user's own. Raises UserError for an unknown name or function.
    """
    if ":" not in name:
        if name not in POLICIES:
            known = nearest(name, [*POLICIES, "mixed"])
            raise UserError(f"Unknown policy {name!r}: {known} A function of yours is named file.py:function.")
        return POLICIES[name]
    module_name, _, function = name.rpartition(":")
    module = _imported(module_name)
    found = getattr(module, function, None)
    if not callable(found):
        raise UserError(f"{module_name} has no function {function!r} to use as a policy.")
    policy = cast(Policy, found)
    return lambda environment: policy


def _imported(name: str) -> ModuleType:
    try:
        if name.endswith(".py"):
            return _module_of_file(Path(name).expanduser())
        return importlib.import_module(name)
    except UserError:
        raise
    except Exception as error:  # whatever the user's module raises
        raise UserError(f"The policy's module {name} cannot be imported ({reason(error)}).") from None


def _module_of_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"policy_{path.stem}", path) if path.is_file() else None
    if spec is None or spec.loader is None:
        raise UserError(f"There is no Python file {path} with a policy.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def checked_row(row: object, environment: Environment) -> Float32[np.ndarray, " a"]:
    """A policy's answer as one row, within the range of the actions. Raises UserError for another shape or name."""
    names, (low, high) = environment.action_names, environment.action_range
    if isinstance(row, Mapping):
        if unknown := sorted(set(map(str, row)) - set(names)):
            raise UserError(f"The policy named an action {unknown[0]!r}: {nearest(unknown[0], names)}")
        row = [row.get(name, 0.0) for name in names]
    try:
        values = np.asarray(row, dtype=np.float32).reshape(-1)
    except (TypeError, ValueError) as error:
        raise UserError(f"The policy returned {row!r}, which is no row of numbers ({reason(error)}).") from None
    if values.shape != (len(names),) or not np.isfinite(values).all():
        raise UserError(f"The policy returned {row!r}; expected {len(names)} finite numbers: {', '.join(names)}.")
    return np.clip(values, low, high)


def policies_for(names: str) -> tuple[PolicyFactory, ...]:
    """The policies that episodes take in turn: names with commas between, or mixed."""
    listed = ["random", "scripted"] if names == "mixed" else [name.strip() for name in names.split(",")]
    return tuple(find_policy(name) for name in listed)


__all__ = ["POLICIES", "RandomKeys", "Replayed", "ScriptedDoom", "checked_row", "find_policy", "policies_for"]
