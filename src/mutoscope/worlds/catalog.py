"""Names of environments: doom-… for ViZDoom's scenarios, doom for the three of the bundled model, else Gymnasium's."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from mutoscope.errors import UserError
from mutoscope.json_config import nearest
from mutoscope.worlds.base import Environment
from mutoscope.worlds.doom import FRAME_SKIP, SCENARIOS, DoomEnvironment
from mutoscope.worlds.frames import size_for
from mutoscope.worlds.gym import GymEnvironment

DOOM = "doom"
DOOM_SIZE = (120, 160)  # unless one is requested: a quarter of what Doom draws
PLAYED = ("basic", "health-gathering", "defend-the-center")  # scenarios of `magi-doom`


@dataclass(frozen=True)
class EnvironmentSpec:
    """Everything that opens one environment, as plain values that another process can read."""

    name: str
    height: int | None = None
    width: int | None = None
    frame_skip: int | None = None
    keys: tuple[str, ...] = ()
    """names of the actions, where the environment does not tell them"""
    options: Mapping[str, object] = field(default_factory=dict)
    """further arguments of a Gymnasium environment"""


def environment_names(requested: str) -> tuple[str, ...]:
    """The environments of one ENV argument: names with commas between; doom stands for three scenarios."""
    names = [name.strip() for name in requested.split(",") if name.strip()]
    listed = [part for name in names for part in ([f"{DOOM}-{s}" for s in PLAYED] if name == DOOM else [name])]
    if not listed:
        raise UserError("Name an environment, such as doom-basic or CartPole-v1.")
    return tuple(dict.fromkeys(listed))


def open_environment(spec: EnvironmentSpec) -> Environment:
    """Raises UserError for an unknown name, a missing package, and environments that cannot render."""
    if spec.name.startswith(f"{DOOM}-"):
        return _doom(spec)
    if spec.name in SCENARIOS:
        raise UserError(f"Unknown environment {spec.name!r}: did you mean '{DOOM}-{spec.name}'?")
    return GymEnvironment(spec.name, spec.height, spec.width, spec.frame_skip or 1, spec.keys, spec.options)


def _doom(spec: EnvironmentSpec) -> DoomEnvironment:
    scenario = spec.name.removeprefix(f"{DOOM}-")
    if scenario not in SCENARIOS:
        known = [f"{DOOM}-{name}" for name in SCENARIOS]
        raise UserError(f"Unknown scenario {spec.name!r}: {nearest(spec.name, known)}")
    if spec.keys and spec.keys != tuple(SCENARIOS[scenario].keys):
        raise UserError(f"The keys of {spec.name} are {', '.join(SCENARIOS[scenario].keys)}: omit --keys.")
    if spec.options:
        raise UserError(f"Options are arguments of Gymnasium's environments; {spec.name} takes none.")
    sized = spec.height is not None or spec.width is not None
    size = size_for(DOOM_SIZE, spec.height, spec.width) if sized else DOOM_SIZE
    return DoomEnvironment(scenario, size, spec.frame_skip or FRAME_SKIP)
