import json
from dataclasses import replace
from typing import Any

import pytest

from mutoscope.data.sources.recorded_data import FolderData
from mutoscope.errors import UserError
from mutoscope.families import FAMILIES
from mutoscope.recipes.shapes import RECIPES, magi_shapes, vq_shapes
from mutoscope.training.config import from_json, to_json, with_data


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_survives_a_json_file(name):
    recipe = RECIPES[name]()
    assert recipe.name == name
    assert (
        from_json(
            json.loads(json.dumps(to_json(recipe))), "The recipe", [family.config for family in FAMILIES.values()]
        )
        == recipe
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["loop"].update(stepz=3), "The recipe: unknown key 'loop.stepz'"),
        (lambda v: v["loop"].pop("num_steps"), "The recipe: key 'loop.num_steps' is missing"),
        (lambda v: v["tokenizer"].update(temporal_downsample=[1, 0]), r"'tokenizer.temporal_downsample\[0\]' must be"),
        (lambda v: v.update(recipe="Cake"), "TokenizerRecipe"),
        (lambda v: v.update(recipe=["TokenizerRecipe"]), "TokenizerRecipe"),
        (lambda v: v.pop("recipe"), "TokenizerRecipe"),
        (lambda v: v["data"].update(kind="fold"), "The recipe: unknown kind of data 'fold': did you mean 'folder'"),
        (lambda v: v["data"].update(windows=3), "'data.windows' has no meaning for data of kind 'shapes'"),
        (lambda v: v["data"].update(hight=3), "unknown key 'data.hight': did you mean 'height'"),
    ],
)
def test_a_wrong_recipe_file_names_the_key(change, message):
    values = to_json(vq_shapes())
    change(values)
    with pytest.raises(UserError, match=message):
        from_json(values, "The recipe", [family.config for family in FAMILIES.values()])


def test_recipes_are_frozen_and_replaceable():
    recipe = vq_shapes()
    with pytest.raises(AttributeError):
        recipe.__setattr__("name", "other")
    assert replace(recipe, name="other") != recipe


def test_settings_of_all_kinds_in_a_recipe_of_an_earlier_version_are_read():
    recipe = vq_shapes()
    values: dict[str, Any] = to_json(recipe)
    values["data"] |= {"path": None, "frame_stride": 1, "split": "train", "windows": 1, "ten_crops": False}
    assert from_json(values, "The recipe", ()) == recipe
    values["data"] |= {"kind": "folder", "path": "clips", "max_objects": 3}
    for name in ("controllable", "mixed", "max_jump", "flawed_history"):
        values["data"].setdefault(name, False)
    found = from_json(values, "The recipe", ()).data
    assert found == FolderData(path="clips", num_frames=16, height=32, width=32)


def test_a_recipe_takes_data_of_another_kind_at_its_own_sizes(tmp_path):
    (tmp_path / "clip.mp4").touch()
    recipe = magi_shapes()
    found = with_data(recipe, path=str(tmp_path))
    assert found.data == FolderData(path=str(tmp_path), num_frames=16, height=32, width=32, max_interval=3)
    assert replace(found, data=recipe.data) == recipe
    assert with_data(recipe, "folder", str(tmp_path)) == found and with_data(recipe) == recipe
