"""Actions below frames: a bar shows direction and size, a square whether a button is pressed."""

import numpy as np

from mutoscope.actions import ActionSpec
from mutoscope.data.action_marks import AXIS_COLOR, BUTTON_COLOR, MAX_ROWS, fitted, marked_frames

SPEC = ActionSpec(("dx", "jump"), "continuous", (0, 0), (1, 1), ("sum", "max"))


def colored(frame: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    return (frame == color).all(axis=-1)


def test_a_bar_points_to_the_side_of_its_sign_and_is_as_long_as_its_value():
    frames = np.zeros((4, 10, 96, 3), np.uint8)
    rows = np.array([[-2, 0], [1, 1], [2, 0], [np.nan, np.nan]], np.float32)
    marked = marked_frames(frames, rows, SPEC, largest=(2, 1))
    assert marked.shape[1] > 10 and (marked[:, :10] == frames).all()
    left, half, right, unknown = (colored(frame, AXIS_COLOR).any(axis=0) for frame in marked)
    assert left[:70].any() and not left[75:].any() and right[75:].any() and not right[:70].any()
    assert 0 < half.sum() < right.sum() and not unknown.any()
    assert [bool(colored(frame, BUTTON_COLOR).any()) for frame in marked] == [False, True, False, False]


def test_more_actions_than_rows_are_counted():
    names = tuple(f"joint_{number}" for number in range(14))
    spec = ActionSpec.plain(names, "continuous")
    few, many = (
        marked_frames(np.zeros((1, 4, 96, 3), np.uint8), np.zeros((1, s.size), np.float32), s, [1.0] * s.size)
        for s in (ActionSpec.plain(names[:MAX_ROWS], "continuous"), spec)
    )
    assert many.shape[1] == few.shape[1] + 12  # one line says how many more there are


def test_a_long_name_keeps_its_end():
    assert fitted("gripper", 100, len) == "gripper"
    assert fitted("left_arm_gripper", 8, len) == "…gripper"
