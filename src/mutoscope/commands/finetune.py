"""mutoscope finetune: continue a model on recordings of your own."""

import json
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import mutoscope.commands.common as common
from mutoscope.commands.train import chosen_names, problem_of, take_flag
from mutoscope.errors import UserError, printable

if TYPE_CHECKING:
    from mutoscope.runs.finetune import FineTuning
    from mutoscope.training.config import ModelRecipe


def finetune(
    model: str,
    data: str,
    out: str,
    /,
    *,
    freeze: tuple[str, ...] = (),
    resume: bool = False,
    dry_run: bool = False,
    device: str | None = None,
    overrides: Sequence[str] = (),
) -> common.Report:
    """Continue a bundled, trained or converted model on videos, images, a dataset or a token cache.

    Classes, captions and actions become those of the data: what both share by name is kept, the rest is new. Clips have
    the size of the model unless --data.height and --data.width say otherwise. What is adapted, kept and new is printed
    first; a model that cannot take the data is refused before any work.
    --lora.r RANK trains low-rank changes of the matrices only, for large models; --lora.alpha and --lora.target-modules
    go with it, and the folder gets whole matrices again. Every field of the recipe is a flag, such as
    --loop.num-steps 200; `mutoscope finetune MODEL --help` lists them.

    Args:
        model: a bundled model such as magi-shapes, or a folder
        data: a folder of videos or images, one video, a dataset or a token cache
        out: folder for weights, checkpoints, logs and contact sheets
        freeze: parameters that stay as they are, by the beginnings of their names (head blocks.0)
        resume: continue from the newest checkpoint in the folder
        dry_run: show what is adapted and the resolved recipe, train nothing
        device: cpu, cuda ... (default: a GPU if there is one)
        overrides: flags of the recipe that differ from it
    """
    folder = Path(out).expanduser()
    from mutoscope.hub import check_writable_folder
    from mutoscope.training.config import to_json

    if folder.is_file():
        raise UserError(f"{out!r} is a file; name a folder.")
    check_writable_folder(folder)
    if device is not None:
        common.parse_device(device)
    plan = plan_finetuning(model, data, freeze, overrides, device)
    show(plan)
    recipe = plan.recipe
    report: common.Report = {
        "model": model,
        "out": str(folder),
        "num_steps": recipe.loop.num_steps,
        "adapted": {change.name: change.value for change in plan.plan.changes},
        "tensors": {
            "kept": len(plan.transfer.kept),
            "adapted": list(plan.transfer.adapted),
            "new": list(plan.transfer.new),
            "dropped": list(plan.transfer.dropped),
        },
        "parameters": plan.parameters,
        "trained_parameters": plan.trained_parameters,
    }
    if dry_run:
        return report | {"dry_run": True, "resolved": to_json(recipe)} | problem_of(recipe)
    from mutoscope.runs.train import train as run

    start = time.perf_counter()
    result = run(recipe, folder, resume=resume, device=device, work="finetune")
    if not result.finished:
        raise KeyboardInterrupt(f"stopped after step {result.steps_done}; the same command with --resume continues.")
    done = {"steps_done": result.steps_done, "seconds": time.perf_counter() - start}
    return report | done | {"weights": result.kind, "validation": result.figures.get(result.kind)}


def plan_finetuning(
    model: str, data: str, freeze: Sequence[str], overrides: Sequence[str], device: str | None
) -> "FineTuning":
    """The run that the arguments describe."""
    from mutoscope.runs.finetune import planned_finetuning
    from mutoscope.runs.plan import machine_of

    recipe = with_flags(model, data, overrides)
    recipe = replace(recipe, frozen=(*recipe.frozen, *freeze))
    return planned_finetuning(recipe, kept=chosen_names(overrides), machine=machine_of(device))


def with_flags(model: str, data: str | None, overrides: Sequence[str]) -> "ModelRecipe":
    """The starting recipe on other data, with flags applied; flags of LoRA switch it on."""
    from mutoscope.runs.finetune import starting_recipe
    from mutoscope.training.config import with_data

    flags, path = list(overrides), str(Path(model).expanduser())
    known = path if Path(path).is_dir() else model
    recipe = starting_recipe(known, lora=any(flag.startswith("--lora.") for flag in flags))
    kind = take_flag(flags, "--data.kind")
    if data is not None:
        recipe = with_data(recipe, kind, str(Path(data).expanduser()))
    chosen = common.parse_flags(type(recipe), f"mutoscope finetune {model} DATA OUT", flags, default=recipe)
    if chosen.start_from != recipe.start_from:
        raise UserError(f"Fine-tuning starts from the model that is named first, {model}: omit --start-from.")
    return chosen


def show(plan: "FineTuning") -> None:
    """Print what is going to happen, on standard error."""
    for line in plan.lines():
        print(printable(line), file=sys.stderr)
    for warning in plan.plan.warnings:
        warnings.warn(warning, stacklevel=3)


def print_override_help(name: str | None, rest: Sequence[str] = ()) -> None:
    """Show the flags of a model's recipe, if one is named."""
    if name is not None:
        data = next((argument for argument in rest if not argument.startswith("-") and Path(argument).exists()), None)
        with_flags(name, data, ["--lora.r", "16", "--help"])


def summary(report: common.Report) -> str:
    size = f"{report['trained_parameters']:,} of {report['parameters']:,} parameters, {report['num_steps']:,} steps"
    if report.get("dry_run"):
        resolved = json.dumps(report["resolved"], indent=2)
        return f"{resolved}\n{report['model']}: {size}; would train into {report['out']}"
    return f"{report['out']}\n{report['model']} fine-tuned: {size} in {report['seconds']:.0f} s"
