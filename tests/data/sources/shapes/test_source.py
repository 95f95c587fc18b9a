from dataclasses import replace

import numpy as np
import pytest
import torch

from mutoscope.data.sources.shapes.source import ShapesData, ShapesSource
from mutoscope.data.sources.shapes.world import CLASS_NAMES, ShapesConfig, ShapesWorld
from mutoscope.errors import UserError

PLAIN = ShapesData(num_frames=4, height=16, width=16)
VARIED = replace(PLAIN, max_interval=3, mixed=True, max_jump=5, flawed_history=True)


def test_the_source_gives_the_clips_of_its_indices():
    world = ShapesWorld(ShapesConfig(height=16, width=16, num_frames=4), seed=5)
    batch = ShapesSource(world)[[3, 8]]
    assert batch["video"].shape == (2, 4, 16, 16, 3) and batch["video"].dtype == torch.uint8
    np.testing.assert_array_equal(batch["video"][1].numpy(), world.clip(8).frames)


@pytest.mark.parametrize(
    ("data", "names"),
    [
        (PLAIN, {"label"}),
        (replace(PLAIN, controllable=True), {"label", "actions"}),
        (replace(PLAIN, max_interval=2), {"label", "interval"}),
        (replace(PLAIN, mixed=True), {"label", "actions"}),
        (replace(PLAIN, max_jump=3), {"label", "history_only"}),
        (VARIED, {"label", "interval", "actions", "history_only", "history"}),
    ],
)
def test_only_fields_that_vary_are_declared_and_batches_hold_them_as_declared(data, names):
    source = data.open()
    batch = source[range(4)]
    assert set(source.fields) == names
    for name, field in source.fields.items():
        assert batch[name].shape == (4, *field.shape) and str(batch[name].dtype) == f"torch.{field.dtype}"


def test_examples_are_clips_that_training_never_sees_without_gaps_and_corruption():
    assert VARIED.open()[range(4)]["history_only"].any()
    steady = replace(VARIED, max_jump=0, flawed_history=False)
    assert torch.equal(VARIED.examples()["video"], steady.examples()["video"])
    assert not torch.equal(VARIED.examples()["video"], steady.open()[range(4)]["video"])


def test_a_description_names_only_differences_from_plain_clips():
    always = {"kind", "height", "width", "num_frames", "fps", "max_objects", "controllable"}
    assert set(PLAIN.describe()) == always
    assert set(VARIED.describe()) == always | {"max_interval", "mixed", "max_jump", "flawed_history", "actions"}
    assert PLAIN.class_names() == CLASS_NAMES and len(VARIED.class_names()) == len(CLASS_NAMES) + 4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"controllable": True, "max_jump": 4}, "omit controllable"),
        ({"max_jump": -1}, "not be negative.* found -1"),
        ({"flawed_history": True}, "set max_jump too"),
        ({"num_frames": 2, "max_jump": 4}, "at least 3 frames; found 4 for 2 frames"),
        ({"max_interval": 0}, "max_interval must be between 1 and 25"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        ShapesData(**values)
