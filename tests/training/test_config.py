import json
from dataclasses import replace

import pytest

from mutoscope.errors import UserError
from mutoscope.recipes.shapes import RECIPES, vq_shapes
from mutoscope.runs.train import FAMILIES
from mutoscope.training.config import from_json, to_json


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_survives_a_json_file(name):
    recipe = RECIPES[name]()
    assert recipe.name == name
    assert from_json(json.loads(json.dumps(to_json(recipe))), "The recipe", tuple(FAMILIES)) == recipe


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["loop"].update(stepz=3), "The recipe: unknown key 'loop.stepz'"),
        (lambda v: v["loop"].pop("num_steps"), "The recipe: key 'loop.num_steps' is missing"),
        (lambda v: v["tokenizer"].update(temporal_downsample=[1, 0]), r"'tokenizer.temporal_downsample\[0\]' must be"),
        (lambda v: v.update(recipe="Cake"), "TokenizerRecipe"),
        (lambda v: v.update(recipe=["TokenizerRecipe"]), "TokenizerRecipe"),
        (lambda v: v.pop("recipe"), "TokenizerRecipe"),
    ],
)
def test_a_wrong_recipe_file_names_the_key(change, message):
    values = to_json(vq_shapes())
    change(values)
    with pytest.raises(UserError, match=message):
        from_json(values, "The recipe", tuple(FAMILIES))


def test_recipes_are_frozen_and_replaceable():
    recipe = vq_shapes()
    with pytest.raises(AttributeError):
        recipe.__setattr__("name", "other")
    assert replace(recipe, name="other") != recipe
