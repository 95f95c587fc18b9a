"""mutoscope train: a tokenizer or a model from a recipe."""

import json
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import mutoscope.commands.common as common
from mutoscope.errors import UserError, printable

if TYPE_CHECKING:
    from mutoscope.runs.plan import Plan
    from mutoscope.training.config import Recipe


def train(
    recipe: str,
    /,
    *,
    out: str | None = None,
    resume: bool = False,
    dry_run: bool = False,
    device: str | None = None,
    overrides: Sequence[str] = (),
) -> common.Report:
    """Train a tokenizer or a model from a recipe, into a folder that the other verbs take as a model.

    Every field of the recipe is a flag, such as --loop.num-steps 200; `mutoscope train RECIPE --help` lists them.
    --data PATH trains on a folder of videos or images, a LeRobot dataset, another dataset or a token cache instead of
    the recipe's data: its kind is found out from the path, or named with --data.kind. Frame size, rate, classes,
    captions and actions follow from the data; whatever is adapted is printed first, and a flag keeps its setting.
    The recipes magi, magvit, par and nova are for recordings of your own; they train a tokenizer first.
    Works unchanged under torchrun. Ctrl-C saves a checkpoint; --resume continues from it.

    Args:
        recipe: magi, magvit, par, nova, tokenizer, vq-shapes, magvit-shapes, one of the papers' such as
            magvit-b-ucf101, or a recipe.json of an earlier run
        out: folder for weights, checkpoints, logs and contact sheets (default: runs/NAME)
        resume: continue from the newest checkpoint in the folder
        dry_run: show the resolved recipe and the size of the network, check that its files exist; train nothing
        device: cpu, cuda ... (default: a GPU if there is one)
        overrides: flags of the recipe that differ from it
    """
    folder = Path(out or f"runs/{Path(recipe).stem}").expanduser()
    plan = plan_run(recipe, overrides, folder if resume else None, device)
    resolved = plan.recipe
    from mutoscope.hub import check_writable_folder
    from mutoscope.training.config import to_json

    if folder.is_file():
        raise UserError(f"{str(folder)!r} is a file; name a folder.")
    check_writable_folder(folder)
    report = {"recipe": resolved.name, "out": str(folder), "num_steps": resolved.loop.num_steps}
    report |= {"adapted": {change.name: change.value for change in plan.changes}}
    for line in plan.lines():
        print(printable(line), file=sys.stderr)
    for warning in plan.warnings:
        warnings.warn(warning, stacklevel=2)
    if dry_run:
        from mutoscope.runs.preflight import count_parameters

        first = {} if plan.first is None else {"trained_first": to_json(plan.first)}
        counted = {"parameters": count_parameters(resolved), "dry_run": True, "resolved": to_json(resolved)}
        return report | counted | first | problem_of(resolved)
    if device is not None:
        common.parse_device(device)
    from mutoscope.runs.train import train as run

    start = time.perf_counter()
    result = run(resolved, folder, resume=resume, device=device)
    if not result.finished:
        raise KeyboardInterrupt(f"stopped after step {result.steps_done}; the same command with --resume continues.")
    parameters = sum(parameter.numel() for parameter in result.network.parameters())
    seconds = time.perf_counter() - start
    done = {"parameters": parameters, "steps_done": result.steps_done, "seconds": seconds}
    return report | done | {"weights": result.kind, "validation": result.figures.get(result.kind)}


def plan_run(name: str, overrides: Sequence[str], resumed: Path | None, device: str | None) -> "Plan":
    """The recipe with its flags, adapted to the data they name.

    resumed: folder of an interrupted run of this recipe, whose settings count instead of a new adaptation.
    """
    from mutoscope.runs.plan import Plan, first_stage, machine_of, planned

    own = named_recipe(name)
    if resumed is not None and (saved := saved_recipe(resumed, own)) is not None:
        recipe = with_flags(saved, name, overrides)
        return Plan(recipe, first_stage(recipe))
    recipe = with_flags(own, name, overrides)
    other_data = any(flag.split("=")[0] == "--data" for flag in overrides) or recipe.data.kind != own.data.kind
    return planned(recipe, other_data=other_data, kept=chosen_names(overrides), machine=machine_of(device))


def saved_recipe(folder: Path, like: "Recipe") -> "Recipe | None":
    """The recipe of an earlier run in a folder, if it is that run of the same recipe."""
    from mutoscope.runs.train import load_recipe

    path = folder / "recipe.json"
    saved = load_recipe(path) if path.is_file() else None
    return saved if saved is not None and saved.name == like.name else None


def chosen_names(overrides: Sequence[str]) -> frozenset[str]:
    """Dotted names of the settings that flags change: "--data.frame-stride=2" is "data.frame_stride"."""
    flags = (flag[2:].split("=")[0] for flag in overrides if flag.startswith("--"))
    return frozenset(flag.replace("-", "_") for flag in flags)


def resolve_recipe(name: str, overrides: Sequence[str] = ()) -> "Recipe":
    """A recipe by name or JSON file, with flags such as --loop.num-steps 200 applied.

    `--data PATH` and `--data.kind KIND` come first: they decide which other flags of the data there are.
    """
    return with_flags(named_recipe(name), name, overrides)


def with_flags(recipe: "Recipe", name: str, overrides: Sequence[str]) -> "Recipe":
    """The recipe with flags applied; see `resolve_recipe`."""
    recipe, flags = with_chosen_data(recipe, overrides)
    if not flags:
        return recipe
    return common.parse_flags(type(recipe), f"mutoscope train {name}", flags, default=recipe)


def with_chosen_data(recipe: "Recipe", overrides: Sequence[str]) -> "tuple[Recipe, list[str]]":
    """The recipe on the data of `--data` and `--data.kind`, and the flags that remain."""
    flags = list(overrides)
    kind, path = take_flag(flags, "--data.kind"), take_flag(flags, "--data")
    if kind is not None or path is not None:
        from mutoscope.training.config import with_data

        recipe = with_data(recipe, kind, None if path is None else str(Path(path).expanduser()))
    return recipe, flags


def take_flag(flags: list[str], name: str) -> str | None:
    """Removes a flag and its value (`--name value` or `--name=value`); returns the value, None without the flag."""
    for i, flag in enumerate(flags):
        if flag == name:
            if i + 1 == len(flags) or flags[i + 1].startswith("--"):
                raise UserError(f"{name} needs a value.")
            value = flags[i + 1]
            del flags[i : i + 2]
            return value
        if flag.startswith(f"{name}="):
            del flags[i]
            return flag.partition("=")[2]
    return None


def named_recipe(name: str) -> "Recipe":
    from mutoscope.json_config import nearest
    from mutoscope.recipes.catalog import RECIPES

    if name in RECIPES:
        return RECIPES[name]()
    path = Path(name).expanduser()
    path = path / "recipe.json" if path.is_dir() else path
    if path.suffix == ".json" or path.is_file():
        from mutoscope.runs.train import load_recipe

        return load_recipe(common.check_input_file(str(path), "recipe"))
    raise UserError(
        f"Unknown recipe {name!r}: {nearest(name, RECIPES)} mutoscope recipes lists all; a recipe.json works too."
    )


def problem_of(recipe: "Recipe") -> common.Report:
    """The first thing that would stop the run, as the "failure" of a report; empty if there is none."""
    from mutoscope.runs.preflight import check_recipe

    try:
        check_recipe(recipe)
    except UserError as error:
        return {"failure": str(error)}
    return {}


def print_override_help(name: str | None, overrides: Sequence[str] = ()) -> None:
    """Show the flags of a recipe, if one is named, on the data that `overrides` choose."""
    if name is not None:
        recipe, _ = with_chosen_data(named_recipe(name), overrides)
        common.parse_flags(type(recipe), f"mutoscope train {name}", ["--help"], default=recipe)


def summary(report: common.Report) -> str:
    size = f"{report['parameters']:,} parameters, {report['num_steps']:,} steps"
    if report.get("dry_run"):
        return (
            f"{json.dumps(report['resolved'], indent=2)}\n{report['recipe']}: {size}; would train into {report['out']}"
        )
    figures = "".join(f", validation {name} {value:.4g}" for name, value in (report["validation"] or {}).items())
    weights = f"{report['weights']} weights{figures}"
    return f"{report['out']}\n{report['recipe']}: {size} in {report['seconds']:.0f} s, {weights}"
