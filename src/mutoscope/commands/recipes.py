"""mutoscope recipes: what can be trained, on which data, at which cost."""

import inspect
import re
import textwrap
from functools import partial
from typing import TYPE_CHECKING

import mutoscope.commands.common as common
from mutoscope.errors import UserError
from mutoscope.json_config import nearest

if TYPE_CHECKING:
    from collections.abc import Callable

    from mutoscope.training.config import Recipe

SECTIONS = ("Cost", "Result", "Published", "Limits")
"""Words that begin a section of a recipe's docstring."""


def recipes(name: str | None = None, /) -> common.Report:
    """List all training recipes, or describe one: what it trains, on which data, its size, cost and figures.

    Costs and results are those that the recipe's author measured or its paper published.

    Args:
        name: one recipe (default: all of them)
    """
    from mutoscope.recipes.catalog import RECIPES, RECORDED_BY

    if name is None:
        chosen = common.progress(RECIPES.items(), len(RECIPES), "recipes", "recipe")
        return {"recipes": [recipe_row(name, build) for name, build in chosen]}
    if name not in RECIPES:
        raise UserError(f"Unknown recipe {name!r}: {nearest(name, RECIPES)} mutoscope recipes lists all.")
    from mutoscope.training.config import to_json

    recipe = RECIPES[name]()
    described: common.Report = {
        "description": docstring(RECIPES[name]),
        "published": published_figures(recipe),
        "recorded_by": RECORDED_BY.get(name),
        "resolved": to_json(recipe),
    }
    return recipe_row(name, RECIPES[name]) | described


def recipe_row(name: str, build: "Callable[[], Recipe]") -> common.Report:
    """One line of the list; sizes are counted without memory."""
    from mutoscope.runs.preflight import count_parameters
    from mutoscope.training.config import ModelRecipe, TokenizerRecipe

    recipe, text = build(), docstring(build)
    data, loop = recipe.data, recipe.loop
    row: common.Report = {
        "name": name,
        "trains": trained(recipe),
        "data": data.kind,
        "frames": data.num_frames,
        "height": data.height,
        "width": data.width,
        "parameters": count_parameters(recipe),
        "num_steps": loop.num_steps,
        "batch_size": loop.batch_size,
        "tokenizer": recipe.tokenizer if isinstance(recipe, ModelRecipe) else None,
        "tasks": list(recipe.task_weights) if isinstance(recipe, ModelRecipe) else [],
        "cost": section(text, "Cost"),
        "result": section(text, "Result"),
    }
    protocol = recipe.protocol if isinstance(recipe, ModelRecipe | TokenizerRecipe) else None
    return row | {"protocol": protocol}


def trained(recipe: "Recipe") -> str:
    """What a recipe trains: tokenizer, the family of a model, or feature network."""
    from mutoscope.families import family_of
    from mutoscope.training.config import ModelRecipe, TokenizerRecipe

    if isinstance(recipe, ModelRecipe):
        return family_of(recipe.model).name
    return "tokenizer" if isinstance(recipe, TokenizerRecipe) else "feature network"


def published_figures(recipe: "Recipe") -> dict[str, dict[str, float]]:
    """The paper's figures under the recipe's protocol, by model; empty for recipes of our own."""
    from mutoscope.evaluation.protocols.published import VIDEO_PROTOCOLS
    from mutoscope.training.config import FeaturesRecipe

    if isinstance(recipe, FeaturesRecipe) or recipe.protocol not in VIDEO_PROTOCOLS:
        return {}
    return {name: dict(figures) for name, figures in VIDEO_PROTOCOLS[recipe.protocol].published.items()}


def docstring(build: "Callable[[], Recipe]") -> str:
    """The documentation of a recipe, whose function may have arguments filled in."""
    function = build.func if isinstance(build, partial) else build
    return inspect.cleandoc(function.__doc__ or "")


def section(text: str, title: str) -> str | None:
    """The part of a docstring that begins with "Title:" or "Title as published:", in one line; None without it."""
    others = "|".join(SECTIONS)
    found = re.search(rf"^{title}\b[^:\n]*: *(.+?)(?=\n\n|\n(?:{others})\b[^:\n]*:|\Z)", text, re.DOTALL | re.MULTILINE)
    return None if found is None else " ".join(found[1].split())


def summary(report: common.Report) -> str:
    return details(report) if "description" in report else overview(report["recipes"])


def overview(rows: list[common.Report]) -> str:
    """A table of all recipes, and how to read more about one."""
    cells = [("recipe", "trains", "data", "clips", "parameters", "updates × batch", "cost")]
    for row in rows:
        clips = f"{row['frames']}×{row['height']}×{row['width']}"
        length = f"{row['num_steps']:,} × {row['batch_size']}"
        cost = textwrap.shorten(row["cost"] or "", 60, placeholder=" …")
        cells.append((row["name"], row["trains"], row["data"], clips, f"{row['parameters']:,}", length, cost))
    return f"{common.table(cells)}\n\nmutoscope recipes NAME says more; mutoscope train NAME --help lists its flags."


def details(row: common.Report) -> str:
    """One recipe with its documentation."""
    clips = f"{row['frames']} frames of {row['height']}×{row['width']}"
    lines = [
        f"{row['name']}: {row['trains']}, {row['parameters']:,} parameters",
        f"data: {row['data']}, {clips}; {row['num_steps']:,} updates of {row['batch_size']} clips",
    ]
    lines += [f"tokenizer: {row['tokenizer']}; tasks: {', '.join(row['tasks'])}"] if row["tokenizer"] else []
    lines += ["", row["description"]]
    for name, figures in row["published"].items():
        lines.append(f"published, {name}: " + ", ".join(f"{metric} {value:g}" for metric, value in figures.items()))
    path = "" if row["data"] == "shapes" else " --data PATH"
    record = [row["recorded_by"]] if row["recorded_by"] else []
    return "\n".join([*lines, "", *record, f"mutoscope train {row['name']}{path} --out runs/{row['name']}"])
