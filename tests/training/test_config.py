import json
from dataclasses import replace

import pytest

from mutoscope.errors import UserError
from mutoscope.recipes.shapes import RECIPES, vq_shapes
from mutoscope.training.config import from_json, to_json


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_survives_a_json_file(name):
    recipe = RECIPES[name]()
    assert recipe.name == name
    assert from_json(json.loads(json.dumps(to_json(recipe)))) == recipe


def test_whole_numbers_are_accepted_for_floats_and_none_where_optional():
    values = to_json(vq_shapes())
    values["optim"]["eps"] = 1
    values["loop"]["ema_decay"] = None
    recipe = from_json(values)
    assert recipe.optim.eps == 1.0 and isinstance(recipe.optim.eps, float)
    assert recipe.loop.ema_decay is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["loop"].update(stepz=3), "Unknown field loop.stepz"),
        (lambda v: v["loop"].pop("num_steps"), "Missing field loop.num_steps"),
        (lambda v: v["loop"].update(num_steps="many"), "loop.num_steps must be int, found 'many'"),
        (lambda v: v["loop"].update(num_steps=True), "loop.num_steps must be int, found True"),
        (lambda v: v["loop"].update(autocast="fp4"), "loop.autocast"),
        (lambda v: v.update(data=3), "data must be an object"),
        (lambda v: v["tokenizer"].update(temporal_downsample=[1, 0]), r"tokenizer.temporal_downsample\[0\]"),
        (lambda v: v.update(recipe="Cake"), "TokenizerRecipe"),
    ],
)
def test_a_wrong_recipe_file_names_the_field(change, message):
    values = to_json(vq_shapes())
    change(values)
    with pytest.raises(UserError, match=message):
        from_json(values)


def test_recipes_are_frozen_and_replaceable():
    recipe = vq_shapes()
    with pytest.raises(AttributeError):
        recipe.name = "other"
    assert replace(recipe, name="other") != recipe
