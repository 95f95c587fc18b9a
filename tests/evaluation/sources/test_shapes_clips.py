"""Held-out clips of the shapes dataset, and classes in file names."""

import pytest
import torch

from mutoscope.data.sources.shapes.world import CLASS_NAMES, ShapesConfig
from mutoscope.errors import UserError
from mutoscope.evaluation.sources.shapes_clips import class_in_name, real_clips, shapes_class_names, shapes_config_of
from mutoscope.hub import ModelIndex


def test_real_clips_are_held_out_and_numbered():
    few, shifted = real_clips(ShapesConfig(), 0, 4), real_clips(ShapesConfig(), 2, 2)
    assert torch.equal(few.video[2:], shifted.video)
    assert torch.equal(few.attributes["class"][2:], shifted.attributes["class"])
    assert not torch.equal(few.video, real_clips(ShapesConfig(), 0, 4, seed=0).video)


def test_the_dataset_has_the_size_of_the_model_and_models_of_other_data_are_refused():
    index = ModelIndex("magvit", 8, 24, 48, data={"kind": "shapes", "max_objects": 2})
    assert shapes_config_of(index) == ShapesConfig(24, 48, 8, max_objects=2)
    assert shapes_config_of(None) == ShapesConfig()
    others: list[dict[str, object]] = [{"kind": "folder"}, {"kind": "shapes", "controllable": True}]
    for data in others:
        with pytest.raises(UserError, match="models of the shapes dataset"):
            shapes_config_of(ModelIndex("magvit", 16, 32, 32, data=data))


def test_classes_of_steered_clips_are_not_measured_and_others_are_refused():
    mixed = ModelIndex("magi", 16, 32, 32, class_names=(*CLASS_NAMES, "circle-push"), data={"mixed": True})
    assert shapes_class_names(mixed) == CLASS_NAMES
    assert shapes_class_names(ModelIndex("magi", 16, 32, 32)) == ()
    with pytest.raises(UserError, match="knows no class 'cat'"):
        shapes_class_names(ModelIndex("magvit", 16, 32, 32, class_names=("cat",)))


@pytest.mark.parametrize("path, name", [
    ("a/square-spin.mp4", "square-spin"), ("a/square-spin_03.gif", "square-spin"),
    ("circle-glide/7.mp4", "circle-glide"),
    ("a/square-spinner.mp4", None), ("a/b.mp4", None),
])  # fmt: skip
def test_classes_are_read_from_file_and_folder_names(path, name, tmp_path):
    assert class_in_name(tmp_path / path) == (None if name is None else CLASS_NAMES.index(name))
