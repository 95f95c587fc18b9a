"""Gymnasium's environments: forms of actions, names, what cannot be recorded."""

import numpy as np
import pytest

from mutoscope.errors import UserError
from mutoscope.worlds.frames import shrunk, size_for
from mutoscope.worlds.gym import GymEnvironment, action_form
from worlds.toy import Dot, register

DOT_ENV = "mutoscope-test/Dot-v0"


@pytest.fixture(autouse=True)
def _environments():
    register()


def test_discrete_actions_become_buttons_with_the_environments_names():
    form = action_form(Dot(actions="discrete"))
    assert form.names == ("noop", "left", "right") and form.kind == "buttons"
    assert form.convert(np.array([0, 0, 1], np.float32)) == 2
    assert form.convert(np.zeros(3, np.float32)) == 0  # no button: the one that does nothing


def test_boxes_become_axes_and_switches_buttons():
    box, binary = action_form(Dot(), ("dx", "dy")), action_form(Dot(actions="binary"))
    assert (box.kind, box.names, box.low.tolist(), box.high.tolist()) == ("continuous", ("dx", "dy"), [-2, -2], [2, 2])
    assert binary.names == ("action0", "action1") and np.array_equal(
        np.asarray(binary.convert(np.array([0.0, 1.0]))), [0, 1]
    )


def test_other_spaces_and_wrong_names_are_refused():
    with pytest.raises(UserError, match="Discrete, Box or MultiBinary"):
        action_form(Dot(actions="dict"))
    with pytest.raises(UserError, match="has 2 actions"):
        action_form(Dot(), ("dx",))


def test_the_frame_skip_holds_an_action_and_divides_the_rate():
    one, two = GymEnvironment(DOT_ENV, None, None), GymEnvironment(DOT_ENV, None, None, frame_skip=2)
    assert (one.fps, two.fps) == (10, 5)
    for environment, steps in ((one, 2), (two, 1)):
        environment.reset(5)
        for _ in range(steps):
            last = environment.step(np.array([-1, 0], np.float32))
        assert last.observation.step == steps
    assert np.array_equal(one._rendered(), two._rendered())


def test_sizes_keep_the_aspect_in_even_numbers():
    assert size_for((210, 160), None, None) == (210, 160)
    assert size_for((240, 320), 96, None) == (96, 128)
    assert size_for((240, 320), None, 160) == (120, 160)
    assert size_for((101, 75), None, None) == (100, 74)


def test_frames_are_cut_evenly_and_averaged():
    frame = np.zeros((40, 80, 3), np.uint8)
    frame[:, 20:60] = 200
    assert (shrunk(frame, (20, 20)) == 200).all()
    checkers = np.indices((8, 8)).sum(0)[..., None].repeat(3, -1) % 2 * 200
    assert (shrunk(checkers.astype(np.uint8), (4, 4)) == 100).all()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("CartPol-v1", "did you mean 'CartPole-v1'"),
        ("mutoscope-test/Blind-v0", "rgb_array|renders no image"),
        ("no_such_package:Thing-v0", "cannot be imported"),
    ],
)
def test_what_cannot_be_recorded_is_a_sentence(name: str, message: str):
    with pytest.raises(UserError, match=message):
        GymEnvironment(name, None, None)
