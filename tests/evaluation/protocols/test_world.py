"""Control and drift against recordings: models that obey, ignore, freeze and dissolve."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation.dot_streams import FPS, DotModel, write_episodes
from mutoscope.actions import ActionSpec
from mutoscope.errors import UserError
from mutoscope.evaluation.engine import measure
from mutoscope.evaluation.networks.inverse_dynamics import DynamicsConfig
from mutoscope.evaluation.plan import Outcome, Settings, StreamSettings
from mutoscope.evaluation.protocols import world
from mutoscope.evaluation.protocols.world import open_world, opposite_buttons, turn_of
from mutoscope.evaluation.rows import State

NETWORK = DynamicsConfig(side=32, channels=(8, 16), hidden_size=32, num_steps=250)
STREAMS = StreamSettings(minutes=(0.05, 0.25), streams=6)  # 30 and 150 frames


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_episodes(tmp_path_factory.mktemp("recordings") / "dot line", 12)


@pytest.fixture(scope="module")
def settings(recordings: Path) -> Settings:
    return Settings(num_clips=12, batch_size=6, reference=str(recordings), streams=STREAMS)


@pytest.fixture(scope="module")
def network(settings: Settings):
    """Trained once for all tests of this file."""
    return world.opened_network(open_world(DotModel(), settings, NETWORK))


def outcome(model: DotModel, settings: Settings, state: State = State()) -> Outcome:  # noqa: B008
    plan = open_world(model, settings, NETWORK)
    return plan.outcome(measure(plan, state))


def values(found: Outcome) -> dict[str, float]:
    assert all(name.startswith("dot-line-") for name in found.metrics)
    return {name.removeprefix("dot-line-"): figure["value"] for name, figure in found.metrics.items()}


@pytest.fixture
def trained(network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "opened_network", lambda plan: network)


@pytest.fixture(scope="module")
def exact(network, settings: Settings):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world, "opened_network", lambda plan: network)
        return outcome(DotModel("exact"), settings)


def test_a_model_that_obeys_is_as_good_as_real(exact: Outcome):
    found = values(exact)
    print(json.dumps(found, indent=1))
    assert found["action_accuracy_real"] > 0.9 and found["action_accuracy_ratio"] > 0.97
    assert found["next_frame_psnr_db"] > found["next_frame_psnr_db_last_frame"] + 5
