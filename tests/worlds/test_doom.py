"""Doom's scenarios: four keys in each, the same frames from the same seed, a scripted policy that sees the game."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from mutoscope.errors import UserError
from mutoscope.worlds.base import Observation, Seen
from mutoscope.worlds.catalog import PLAYED, EnvironmentSpec, open_environment
from mutoscope.worlds.doom import SCENARIOS, DoomEnvironment
from mutoscope.worlds.policies import RandomKeys, ScriptedDoom, checked_row, find_policy

pytest.importorskip("vizdoom")


@pytest.fixture(scope="module")
def basic():
    environment = DoomEnvironment("basic", (48, 64))
    yield environment
    environment.close()


def played(environment: DoomEnvironment, seed: int, steps: int = 12) -> np.ndarray:
    frames, rng, policy = [environment.reset(seed).frame], np.random.default_rng(seed), RandomKeys(environment)
    for step in range(steps):
        row = checked_row(policy(Observation(frames[-1], step, environment.action_names), rng), environment)
        frames.append(environment.step(row).observation.frame)
    return np.stack(frames)


def test_the_same_seed_gives_the_same_frames_after_other_episodes(basic: DoomEnvironment):
    first = played(basic, 7)
    other = played(basic, 8)
    assert np.array_equal(first, played(basic, 7)) and not np.array_equal(first, other)


@pytest.mark.slow
@pytest.mark.parametrize("name", PLAYED)
def test_every_scenario_of_the_bundled_model_answers_to_its_four_keys(name: str):
    environment = open_environment(EnvironmentSpec(f"doom-{name}", 48))
    assert environment.action_names == ("left", "right", "forward", "attack")
    assert environment.fps == 8.75 and environment.reset(0).frame.shape == (48, 64, 3)
    ends = []
    for key in range(3):
        environment.reset(1)
        for _ in range(6):
            last = environment.step(np.eye(4, dtype=np.float32)[key])
        ends.append(last.observation.frame.astype(int))
    environment.close()
    assert all(np.abs(a - b).mean() > 2 for a, b in itertools.pairwise(ends))


def test_objects_and_openness_are_in_shares_of_the_view(basic: DoomEnvironment):
    seen = basic.reset(3)
    assert any(found.name == "Cacodemon" and 0 < found.x < 1 for found in seen.objects)
    assert len(seen.openness) == 9 and all(0 <= value <= 1 for value in seen.openness)


@pytest.mark.parametrize(("x", "key"), [(0.1, "left"), (0.9, "right")])
def test_the_scripted_policy_turns_to_what_it_sees(basic: DoomEnvironment, x: float, key: str):
    policy, rng = ScriptedDoom(basic), np.random.default_rng(0)
    rows = []
    for step in range(40):
        policy.random_left = 0
        seen = Observation(np.zeros((4, 4, 3), np.uint8), step, basic.action_names, (Seen("Cacodemon", x, 0.1),))
        rows.append(policy(seen, rng))
    assert rows.count({key: 1.0}) > 30


def test_random_keys_are_held(basic: DoomEnvironment):
    policy, rng = RandomKeys(basic), np.random.default_rng(1)
    seen = Observation(np.zeros((4, 4, 3), np.uint8), 0, basic.action_names)
    rows = np.stack([policy(seen, rng) for _ in range(300)])
    changes = (rows[1:] != rows[:-1]).any(1).mean()
    assert 0.15 < changes < 0.5 and set(np.unique(rows)) == {0, 1}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (EnvironmentSpec("doom-basik"), "did you mean 'doom-basic'"),
        (EnvironmentSpec("basic"), "did you mean 'doom-basic'"),
        (EnvironmentSpec("doom-basic", keys=("a", "b")), "omit --keys"),
        (EnvironmentSpec("doom-basic", options={"a": 1}), "takes none"),
    ],
)
def test_wrong_names_are_sentences(spec: EnvironmentSpec, message: str):
    with pytest.raises(UserError, match=message):
        open_environment(spec)


def test_scripted_is_for_doom_only():
    with pytest.raises(UserError, match="for Doom"):
        find_policy("scripted")(open_environment(EnvironmentSpec("CartPole-v1", 32)))
    with pytest.raises(UserError, match="did you mean 'scripted'"):
        find_policy("scriptd")


def test_scenarios_have_the_same_names_of_keys():
    assert {tuple(scenario.keys) for scenario in SCENARIOS.values()} == {("left", "right", "forward", "attack")}


def test_the_engine_writes_nothing_into_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    environment = DoomEnvironment("basic", (48, 64))
    environment.reset(0)
    environment.close()
    assert not list(tmp_path.iterdir())
