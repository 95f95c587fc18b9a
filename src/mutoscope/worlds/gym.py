"""Any Gymnasium environment that renders `rgb_array`, as an environment of named actions.

Discrete actions become one button per value, of which one is pressed; boxes become axes; sets of switches buttons.
Needs the extra [worlds], and the package that brings the environment.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from jaxtyping import UInt8

from mutoscope.actions import Kind
from mutoscope.errors import UserError, reason
from mutoscope.json_config import nearest
from mutoscope.worlds.base import Action, Observation, Transition
from mutoscope.worlds.frames import shrunk, size_for

if TYPE_CHECKING:
    import gymnasium

DEFAULT_FPS = 30.0  # where an environment does not state the rate at which it renders
MAX_SEED = 2**31
UNBOUNDED = 1.0  # range of an axis without bounds
IDLE_NAMES = frozenset({"NOOP", "IDLE"})


@dataclass(frozen=True)
class ActionForm:
    """How the numbers of an action become what the environment takes."""

    names: tuple[str, ...]
    kind: Kind
    low: Action
    high: Action
    convert: Callable[[Action], object]


class GymEnvironment:
    """One environment by its id. `names`: of its actions, where the environment does not tell them."""

    def __init__(
        self,
        name: str,
        height: int | None,
        width: int | None,
        frame_skip: int = 1,
        names: Sequence[str] = (),
        options: Mapping[str, object] | None = None,
    ) -> None:
        self.task, self.frame_skip = name, frame_skip
        self.environment = _made(name, dict(options or {}))
        self.form = action_form(self.environment, tuple(names))
        self.action_names = self.form.names
        self.fps = float(self.environment.metadata.get("render_fps") or DEFAULT_FPS) / frame_skip
        self.environment.reset(seed=0)
        self.size = size_for(self._rendered().shape[:2], height, width)
        self._count = 0

    @property
    def action_kind(self) -> Kind:
        return self.form.kind

    @property
    def action_range(self) -> tuple[Action, Action]:
        return self.form.low, self.form.high

    def reset(self, seed: int) -> Observation:
        _, facts = self.environment.reset(seed=seed % MAX_SEED)
        self._count = 0
        return self._observe(facts)

    def step(self, action: Action) -> Transition:
        reward, ended, facts = 0.0, False, {}
        for _ in range(self.frame_skip):
            _, part, terminated, truncated, facts = self.environment.step(self.form.convert(action))
            reward, ended = reward + float(part), bool(terminated or truncated)
            if ended:
                break
        self._count += 1
        return Transition(self._observe(facts), reward, ended)

    def close(self) -> None:
        self.environment.close()

    def _observe(self, facts: Mapping[str, object]) -> Observation:
        return Observation(shrunk(self._rendered(), self.size), self._count, self.action_names, facts=facts)

    def _rendered(self) -> UInt8[np.ndarray, "h w 3"]:
        frame = self.environment.render()
        if not isinstance(frame, np.ndarray) or frame.ndim != 3 or frame.shape[2] != 3:
            raise UserError(f"{self.task} renders no image of (height, width, 3): it cannot be recorded.")
        return np.ascontiguousarray(frame, dtype=np.uint8)


def action_form(environment: "gymnasium.Env", names: tuple[str, ...] = ()) -> ActionForm:
    """Names, kind and range of an environment's actions. Raises UserError for spaces that have no row of numbers."""
    from gymnasium import spaces

    space = environment.action_space
    if isinstance(space, spaces.Discrete):
        count, start = int(space.n), int(space.start)
        found = _named(names or _meanings(environment, count), count)
        idle = next((i for i, name in enumerate(found) if name.upper() in IDLE_NAMES), 0)
        return _buttons(found, lambda row: start + (int(row.argmax()) if row.any() else idle))
    if isinstance(space, spaces.MultiBinary) and len(space.shape) == 1:
        count = int(space.shape[0])
        return _buttons(_named(names, count), lambda row: (row > 0).astype(np.int8))
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        return _axes(space, names)
    raise UserError(f"Actions of {space} cannot be recorded as rows of numbers: use Discrete, Box or MultiBinary.")


def _buttons(names: tuple[str, ...], convert: Callable[[Action], object]) -> ActionForm:
    count = len(names)
    return ActionForm(names, "buttons", np.zeros(count, np.float32), np.ones(count, np.float32), convert)


def _axes(space: Any, names: tuple[str, ...]) -> ActionForm:
    low = np.where(np.isfinite(space.low), space.low, -UNBOUNDED).astype(np.float32).reshape(-1)
    high = np.where(np.isfinite(space.high), space.high, UNBOUNDED).astype(np.float32).reshape(-1)
    shape, dtype = space.shape, space.dtype
    return ActionForm(
        _named(names, len(low)), "continuous", low, high, lambda row: np.reshape(row, shape).astype(dtype)
    )


def _named(names: Sequence[str], count: int) -> tuple[str, ...]:
    """One different name per number of an action."""
    if not names:
        return tuple(f"action{i}" for i in range(count))
    if len(names) != count or len(set(names)) != count:
        raise UserError(f"The environment has {count} actions: --keys must name each once, found {', '.join(names)}.")
    return tuple(names)


def _meanings(environment: "gymnasium.Env", count: int) -> tuple[str, ...]:
    """The names that an environment gives its discrete actions: Atari's convention, or highway-env's."""
    inner = cast(Any, environment.unwrapped)
    meanings = getattr(inner, "get_action_meanings", None)
    if callable(meanings):
        listed = meanings()
    else:
        table = getattr(getattr(inner, "action_type", None), "actions", None)
        listed = [table[i] for i in sorted(table)] if isinstance(table, Mapping) else []
    names = tuple(str(name).lower() for name in cast(Sequence[object], listed))
    return names if len(names) == count == len(set(names)) else ()


def _made(name: str, options: dict[str, object]) -> "gymnasium.Env":
    gymnasium = require_gymnasium()
    _check_known(gymnasium, name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Gymnasium warns about what is refused below
            # The passive checker turns an environment that renders nothing into an assertion.
            environment = gymnasium.make(name, render_mode="rgb_array", disable_env_checker=True, **options)
    except Exception as error:  # environments raise errors of many classes when they are built
        raise UserError(f"{name} cannot be opened for recording: {reason(error)}.") from None
    modes = [str(mode) for mode in environment.metadata.get("render_modes", ())]
    if environment.render_mode != "rgb_array" or "rgb_array" not in modes:
        raise UserError(
            f"{name} does not render rgb_array (its modes: {', '.join(modes) or 'none'}): it cannot be recorded."
        )
    return environment


def _check_known(gymnasium: Any, name: str) -> None:
    """Raises UserError for an id that Gymnasium does not know, with the nearest one; "module:id" imports first."""
    module, _, identifier = name.rpartition(":")
    if module:
        try:
            __import__(module)
        except Exception as error:  # whatever a foreign package raises
            raise UserError(f"The package {module!r} cannot be imported ({reason(error)}); install it.") from None
    try:
        gymnasium.spec(identifier)
    except gymnasium.error.Error:
        raise UserError(
            f"Unknown environment {identifier!r}: {nearest(identifier, sorted(gymnasium.registry))} An environment of "
            "another package is named package:id."
        ) from None


def require_gymnasium() -> Any:
    """The package gymnasium, or a UserError that says how to get it."""
    try:
        import gymnasium
    except ImportError:
        raise UserError(
            "Gymnasium's environments need gymnasium; install it with: pip install 'mutoscope[worlds]' (or: pip "
            "install gymnasium)"
        ) from None
    return gymnasium
