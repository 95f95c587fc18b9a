"""Control and drift against recordings: models that obey, ignore, freeze and dissolve."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation.dot_streams import FPS, NAMES, Behaviour, DotModel, write_episodes
from mutoscope.actions import ActionSpec
from mutoscope.errors import UserError
from mutoscope.evaluation.engine import evaluate, measure
from mutoscope.evaluation.networks.inverse_dynamics import DynamicsConfig, InverseDynamics
from mutoscope.evaluation.plan import Outcome, Settings, StreamSettings
from mutoscope.evaluation.protocols import world
from mutoscope.evaluation.protocols.world import layout_of, open_world, opposite_buttons, turn_of
from mutoscope.evaluation.protocols.world_measures import next_positions, tolerated
from mutoscope.evaluation.rows import State
from mutoscope.hub import save_pretrained
from tiny_magi import tiny_index, tiny_magi, tiny_vae
from tiny_models import save_tiny_model

NETWORK = DynamicsConfig(side=32, channels=(8, 16), hidden_size=32, num_steps=150)
STREAMS = StreamSettings(minutes=(0.05, 0.25), streams=6)  # 30 and 150 frames
PREFIX = "dot-line-"


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_episodes(tmp_path_factory.mktemp("recordings") / "dot line", 20)


@pytest.fixture(scope="module")
def settings(recordings: Path) -> Settings:
    return Settings(num_clips=20, batch_size=10, reference=str(recordings), streams=STREAMS)


@pytest.fixture(scope="module")
def network(settings: Settings) -> InverseDynamics:
    """Trained once for all tests of this file."""
    return world.opened_network(open_world(DotModel(), settings, NETWORK))


@pytest.fixture(scope="module")
def outcomes(network: InverseDynamics, settings: Settings) -> dict[Behaviour, Outcome]:
    found: dict[Behaviour, Outcome] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world, "opened_network", lambda plan: network)
        behaviours: tuple[Behaviour, ...] = ("exact", "random", "frozen", "noise")
        for behaviour in behaviours:
            plan = open_world(DotModel(behaviour), settings, NETWORK)
            found[behaviour] = plan.outcome(measure(plan, State()))
    return found


def value(found: Outcome, name: str) -> float:
    number = found.metrics[PREFIX + name]["value"]
    assert number is not None, name
    return number


def interval(found: Outcome, name: str) -> tuple[float, float]:
    low, high = found.metrics[PREFIX + name]["ci95"] or (np.nan, np.nan)
    return low, high


def test_a_model_that_obeys_is_as_good_as_the_recording(outcomes):
    exact = outcomes["exact"]
    assert all(name.startswith(PREFIX) for name in exact.metrics) and json.dumps(exact.metrics, allow_nan=False)
    assert value(exact, "action_accuracy_real") > 0.95 and value(exact, "action_accuracy_ratio") > 0.98
    for name in NAMES:
        assert value(exact, f"action_accuracy_{name}") > 0.95
    assert value(exact, "next_frame_psnr_db") > value(exact, "next_frame_psnr_db_last_frame") + 20
    distance = "next_frame_distance_inverse_dynamics"
    assert value(exact, distance) < 0.1 * value(exact, f"{distance}_last_frame")
    for horizon in (1, 4, 16):
        psnr = value(exact, f"psnr_db_frame_{horizon}")
        for guess in ("first_frame", "last_frame", "context_again", "other_actions"):
            assert psnr > value(exact, f"psnr_db_frame_{horizon}_{guess}") + 20, guess
    assert f"{PREFIX}psnr_db_frame_64" not in exact.metrics  # episodes have 60 frames
    assert value(exact, "return_psnr_db") > value(exact, "return_psnr_db_away") + 10


def test_a_model_that_obeys_stays_alive(outcomes):
    exact = outcomes["exact"]
    assert value(exact, "alive_0.05_min") == 1.0 and value(exact, "alive_0.25_min") > 0.8
    assert value(exact, "alive_rule_real") > 0.9 and value(exact, "alive_rule_reconstructed") > 0.9
    assert value(exact, "alive_rule_frozen") < 0.1 and value(exact, "alive_rule_noise") == 0.0
    own, real = (value(exact, f"frechet_inverse_dynamics_frame_16{suffix}") for suffix in ("", "_real"))
    assert own < 5 * real
    assert f"{PREFIX}frechet_inverse_dynamics_frame_1024" not in exact.metrics


@pytest.mark.parametrize("behaviour", ["random", "frozen", "noise"])
def test_a_model_that_ignores_its_actions_is_at_chance(outcomes, behaviour: Behaviour):
    low, high = interval(outcomes[behaviour], "action_accuracy")
    assert low - 0.03 < 0.5 < high + 0.03 and high < 0.7
    assert value(outcomes[behaviour], "next_frame_psnr_db") < 25


@pytest.mark.parametrize("behaviour", ["frozen", "noise"])
def test_frozen_and_noise_streams_are_dead(outcomes, behaviour: Behaviour):
    found = outcomes[behaviour]
    assert value(found, "alive_0.25_min") < 0.1
    assert value(found, "frechet_inverse_dynamics_frame_16") > 3 * value(
        found, "frechet_inverse_dynamics_frame_16_real"
    )


def test_the_report_says_what_the_figures_depend_on(outcomes, recordings: Path):
    details = outcomes["exact"].details
    described = details["protocol_details"]
    assert details["reference"] == str(recordings) and described["dataset"] == "dot-line"
    assert described["episodes"] == {"training": 10, "evaluation": 10} and "half" in described["split"]
    assert described["rule"]["name"] == "alive-16" and described["generated"]["behaviour"] == "exact"
    assert described["turn"]["there"] == [[1.0, 0.0]] * 8 and described["turn"]["back"] == [[0.0, 1.0]] * 8
    assert any("few for the limits of alive-16" in caveat for caveat in details["caveats"])
    json.dumps(details, allow_nan=False)


def test_a_state_continues_and_keeps_the_network(settings: Settings, tmp_path: Path, monkeypatch):
    streams, config = StreamSettings(minutes=(0.03,), streams=2), replace(NETWORK, num_steps=4)
    own = replace(settings, num_clips=2, streams=replace(streams, sheet=tmp_path / "sheet.png"), state=tmp_path / "s")

    def run() -> Outcome:
        plan = open_world(DotModel(), own, config)
        return plan.outcome(measure(plan, State.open(own.state, plan.settings())))

    first = run()
    assert (tmp_path / "s" / world.NETWORK_FILE).is_file() and (tmp_path / "sheet.png").is_file()
    monkeypatch.setattr(world, "train_dynamics", lambda *arguments: pytest.fail("trained again"))
    (tmp_path / "s" / "clips-000000.safetensors").unlink()
    assert run().metrics == first.metrics
    (tmp_path / "s" / world.NETWORK_FILE).write_bytes(b"broken")
    (tmp_path / "s" / "clips-000000.safetensors").unlink()
    with pytest.raises(UserError, match="is damaged.*Delete it"):
        run()


def test_a_model_folder_is_measured_from_python(recordings: Path, tmp_path: Path):
    model = tiny_magi()
    index = tiny_index(model, fps=FPS, actions=ActionSpec.plain(NAMES, "buttons", FPS))
    folder = save_pretrained(tmp_path / "model", index, tiny_vae(), model)
    streams = StreamSettings(minutes=(0.04,), streams=2, network_steps=4)
    options = {"num_decoding_steps": 1, "num_diffusion_steps": 2}
    report = evaluate(
        folder, "world", num_clips=2, batch_size=2, reference=recordings, streams=streams, options=options
    )
    assert report["protocol"] == "world" and report["num_clips"] == 2 and report["num_real"] > 2
    assert {f"{PREFIX}psnr_db_frame_16_ceiling", f"{PREFIX}alive_0.04_min"} <= set(report["metrics"])
    assert report["protocol_details"]["history_frames"] == 4 and report["protocol_details"]["context_frames"] == 4


# ----------------------------------------------------------------------------------------------------------- bad inputs


def refused(model: object, settings: Settings, words: str) -> None:
    with pytest.raises(UserError, match=words):
        open_world(model, settings, NETWORK)  # type: ignore[arg-type]


def test_recordings_that_do_not_fit_are_refused(settings: Settings, tmp_path: Path):
    refused(DotModel(), replace(settings, reference=None), "--reference RECORDINGS")
    refused(DotModel(names=("jump", "duck")), settings, "turn_left, turn_right.*jump, duck")
    short = write_episodes(tmp_path / "short", 3, length=12)
    refused(DotModel(), replace(settings, reference=str(short)), "0 of 3 episodes.*16 frames.*12")
    for file in short.glob("*.csv"):
        file.unlink()
    refused(DotModel(), replace(settings, reference=str(short)), "has no actions")
    refused(DotModel(), replace(settings, split="test"), "not divided")
    one = write_episodes(tmp_path / "one", 1, length=40)
    refused(DotModel(), replace(settings, reference=str(one)), "1 of 1 episodes")


def test_models_and_settings_that_do_not_fit_are_refused(settings: Settings, recordings: Path, tmp_path: Path):
    refused(str(recordings), settings, "not videos")
    refused(str(save_tiny_model(tmp_path / "plain")), settings, "takes no actions")
    refused(DotModel(window=1), settings, "one frame at a time")
    refused(DotModel(), replace(settings, task="frame-prediction"), "--task belongs to other protocols")
    refused(DotModel(), replace(settings, by_frame=True), "--by-frame belongs to the protocol 'folders'")
    refused(DotModel(), replace(settings, streams=StreamSettings(minutes=(0.01,))), "6 frames.*--minutes")
    refused(DotModel(), replace(settings, streams=StreamSettings(there="turn_left")), "--there and --back")
    with pytest.raises(UserError, match="--streams belongs to the protocol 'world'"):
        evaluate(recordings, streams=StreamSettings(streams=3))


# --------------------------------------------------------------------------------------------------------------- parts


def test_opposite_buttons_are_found_by_their_names():
    def found(*names: str) -> tuple[str, str] | None:
        return opposite_buttons(ActionSpec.plain(names, "buttons"))

    assert found("MOVE_LEFT", "MOVE_RIGHT", "TURN_LEFT", "TURN_RIGHT") == ("TURN_LEFT", "TURN_RIGHT")
    assert found("attack", "Left", "right") == ("Left", "right")
    assert found("left", "jump") is None
    axes = ActionSpec.plain(("left", "right"), "continuous")
    assert opposite_buttons(axes) is None
    rows, notes = turn_of(axes, None, None)
    assert rows is None and "--there and --back" in notes[0]
    rows, notes = turn_of(axes, "left=0.5*3", "left=-1")
    assert rows is not None and not notes
    assert rows[0].tolist() == [[0.5, 0]] * 3 and rows[1].tolist() == [[-1, 0]] * 8


def test_lengths_follow_the_episodes_and_the_model():
    layout = layout_of(DotModel(), [300, 20, 90], (1, 0.1), None)
    assert layout.context == 5 and layout.horizons == (1, 4, 16, 64) and layout.length == 69 and layout.history == 5
    assert layout.lifetimes == (("0.1_min", 60), ("1_min", 600)) and layout.windows == (16, 128)
    assert layout.window_starts == (16, 44, 128, 584) and layout.sheet == (10, 100)
    assert next_positions(layout)[0] == 5 and next_positions(layout)[-1] == 68
    short = layout_of(DotModel(window=30), [16, 16], (1,), None)
    assert short.context == 8 and short.horizons == (1, 4) and short.history == 8
    assert next_positions(short) == [8, 9, 10, 11]


def test_a_stream_that_is_no_longer_finite_ends_in_black():
    def frames(count: int):
        for _ in range(count):
            yield np.full((2, 4, 4, 3), 9, np.uint8)
        raise UserError("The latents of frame 3 are NaN.")

    found = list(tolerated(frames(3), 5))
    assert [int(frame.max()) for frame in found] == [9, 9, 9, 0, 0]
    with pytest.raises(UserError, match="frame 3"):
        list(tolerated(frames(0), 5))


def test_the_global_generator_is_left_as_it_was(settings: Settings):
    before = torch.random.get_rng_state()
    world.opened_network(open_world(DotModel(), settings, replace(NETWORK, num_steps=4)))
    assert torch.equal(before, torch.random.get_rng_state())
