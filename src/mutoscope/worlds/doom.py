"""ViZDoom's scenarios with Freedoom's monsters and walls, as environments with four keys.

Each scenario answers to left, right, forward and attack. Rewards and endings are the scenario's own; only the buttons
are set here, so that one model can have them all. Needs the extra [worlds].
"""

from collections.abc import Mapping
from contextlib import chdir
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8

from mutoscope.actions import Kind
from mutoscope.errors import UserError, reason
from mutoscope.worlds.base import Action, Observation, Seen, Transition
from mutoscope.worlds.frames import shrunk
from mutoscope.writing import workspace

if TYPE_CHECKING:
    from vizdoom import DoomGame, GameState

TICS_PER_SECOND = 35  # of Doom
FRAME_SKIP = 4  # 8.75 frames per second, the usual choice for ViZDoom's agents
COLUMNS = 9  # of `Observation.openness`: an odd number, so that one is straight ahead
FAR = 255.0  # the depth buffer has 8 bits
WEAPON_LABELS = frozenset({"DoomPlayer"})
MAX_SEED = 2**32  # ViZDoom's seeds are 32-bit

_TURNING = MappingProxyType({"left": "TURN_LEFT", "right": "TURN_RIGHT", "forward": "MOVE_FORWARD", "attack": "ATTACK"})
_STEPPING = MappingProxyType(dict(_TURNING) | {"left": "MOVE_LEFT", "right": "MOVE_RIGHT"})


@dataclass(frozen=True)
class Scenario:
    """A scenario of the package vizdoom. file: stem of its configuration; keys: names of keys to its buttons."""

    file: str
    about: str
    keys: Mapping[str, str] = field(default_factory=lambda: _TURNING)
    targets: tuple[str, ...] = ()
    """objects that the scripted policy shoots at"""
    prizes: tuple[str, ...] = ()
    """objects that it walks to"""
    random_share: float = 0.25
    """share of its time in which it holds random keys, so that mistakes occur too"""


_MONSTERS = (
    "Cacodemon",
    "Demon",
    "DoomImp",
    "MarineChainsawVzd",
    "ShotgunGuy",
    "ChaingunGuy",
    "Zombieman",
    "HellKnight",
)
_PACKS = ("Medikit", "CustomMedikit", "Stimpack", "GreenArmor", "ShellBox", "Clip")

SCENARIOS: Mapping[str, Scenario] = MappingProxyType(
    {
        "basic": Scenario(
            "basic",
            "one room and a standing monster; left and right step sideways",
            _STEPPING,
            _MONSTERS,
            random_share=0.75,  # a hit ends the episode, and most frames should not be near an end
        ),
        "health-gathering": Scenario(
            "health_gathering", "a hall with an acid floor and packs that vanish when taken", prizes=_PACKS
        ),
        "my-way-home": Scenario("my_way_home", "rooms and corridors with different walls, and armour as the aim"),
        "defend-the-center": Scenario(
            "defend_the_center", "a round arena: monsters walk up, attack and fall", targets=_MONSTERS
        ),
        "defend-the-line": Scenario(
            "defend_the_line", "a hall: monsters walk up and throw fire from the far side", targets=_MONSTERS
        ),
        "deadly-corridor": Scenario(
            "deadly_corridor", "a corridor between monsters that shoot, armour at its end", targets=_MONSTERS
        ),
        "health-gathering-supreme": Scenario(
            "health_gathering_supreme", "a maze with an acid floor, packs and poison", prizes=_PACKS
        ),
        "take-cover": Scenario("take_cover", "a room: monsters throw fire, left and right step aside", _STEPPING),
    }
)


class DoomEnvironment:
    """One scenario, drawn at 320×240 without a window and shrunk to `size` (height, width)."""

    action_kind: Kind = "buttons"

    def __init__(self, scenario: str, size: tuple[int, int], frame_skip: int = FRAME_SKIP) -> None:
        self.scenario, self.size, self.frame_skip = SCENARIOS[scenario], size, frame_skip
        self.task = scenario
        self.action_names = tuple(self.scenario.keys)
        self.fps = TICS_PER_SECOND / frame_skip
        self._folder = workspace("mutoscope-doom-")
        self.game = _opened(self.scenario, Path(self._folder.name))
        self._count = 0
        self._last: UInt8[np.ndarray, "h w 3"] = np.zeros((*size, 3), np.uint8)

    @property
    def action_range(self) -> tuple[Action, Action]:
        count = len(self.action_names)
        return np.zeros(count, np.float32), np.ones(count, np.float32)

    def reset(self, seed: int) -> Observation:
        self.game.set_seed(seed % MAX_SEED)
        self.game.new_episode()
        self._count = 0
        return self._observe()

    def step(self, action: Action) -> Transition:
        reward = self.game.make_action([float(pressed > 0) for pressed in action], self.frame_skip)
        self._count += 1
        ended = self.game.is_episode_finished()
        # A finished game shows nothing: its last frame is repeated.
        observation = Observation(self._last, self._count, self.action_names) if ended else self._observe()
        return Transition(observation, float(reward), ended)

    def close(self) -> None:
        self.game.close()
        self._folder.cleanup()

    def _observe(self) -> Observation:
        state = self.game.get_state()
        assert state is not None  # an episode is running
        self._last = shrunk(state.screen_buffer, self.size)
        return Observation(self._last, self._count, self.action_names, _objects(state), _openness(state))


def _opened(scenario: Scenario, folder: Path) -> "DoomGame":
    """A running game. folder: becomes the engine's current folder, into which it writes its settings."""
    vizdoom = require_vizdoom()
    game = vizdoom.DoomGame()
    game.load_config(str(Path(vizdoom.scenarios_path) / f"{scenario.file}.cfg"))
    game.set_available_buttons([getattr(vizdoom.Button, button) for button in scenario.keys.values()])
    game.set_window_visible(False)
    game.set_sound_enabled(False)
    game.set_screen_resolution(vizdoom.ScreenResolution.RES_320X240)
    game.set_screen_format(vizdoom.ScreenFormat.RGB24)
    game.set_render_hud(False)
    game.set_labels_buffer_enabled(True)  # for scripted policies
    game.set_depth_buffer_enabled(True)
    try:
        with chdir(folder):
            game.init()
    except Exception as error:  # vizdoom has many classes of errors and no common one
        raise UserError(f"ViZDoom does not start ({reason(error)}); reinstall it: pip install vizdoom") from None
    return game


def _objects(state: "GameState") -> tuple[Seen, ...]:
    width = state.screen_buffer.shape[1]
    return tuple(
        Seen(label.object_name, (label.x + label.width / 2) / width, label.width / width)
        for label in state.labels or ()
        if label.object_name not in WEAPON_LABELS
    )


def _openness(state: "GameState") -> tuple[float, ...]:
    """Median depth of each column around the horizon."""
    depth = state.depth_buffer  # (240, 320) of 8 bits
    assert depth is not None  # enabled in `_opened`
    middle = depth[depth.shape[0] * 4 // 10 : depth.shape[0] * 6 // 10]
    return tuple(float(np.median(part)) / FAR for part in np.array_split(middle, COLUMNS, axis=1))


def require_vizdoom() -> Any:
    """The package vizdoom, or a UserError that says how to get it."""
    try:
        import vizdoom
    except ImportError:
        raise UserError(
            "Doom's scenarios need vizdoom; install it with: pip install 'mutoscope[worlds]' (or: pip install vizdoom)"
        ) from None
    return vizdoom
