"""Checkpoints: written whole or not at all, checked when read, only continued under the recipe that wrote them."""

import json
import re
import warnings
import zipfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypedDict, cast

import torch

from mutoscope.errors import UserError, reason
from mutoscope.ownership import temporary_beside
from mutoscope.pickles import check_torch_file
from mutoscope.state_dicts import read_torch
from mutoscope.writing import flush, new_folder, write_whole, writing

# Fields that may differ on resume: they change logs, speed (up to rounding), the split of a batch or which of two
# finished networks is exported, or (num_steps) the end of the cosine.
FREE_FIELDS = (
    "loop.num_steps",
    "loop.log_every",
    "loop.sample_every",
    "loop.checkpoint_every",
    "loop.checkpoint_minutes",
    "loop.checkpoints_total_limit",
    "loop.sheet_share",
    "loop.num_workers",
    "loop.accumulation",
    "loop.compile",
    "loop.threads",
    "loop.report_to",
    "loop.validate_every",
    "loop.validation_clips",
    "loop.recognisable_after",
)


CHECKPOINTS = "checkpoints"  # folder in that of a run
NAME = re.compile(r"step-[0-9]{8,}\.pt")


class Stateful(Protocol):
    """Anything a checkpoint can hold: modules, optimisers, schedulers."""

    def state_dict(self) -> dict[str, object]: ...

    def load_state_dict(self, state_dict: dict[str, object]) -> object: ...


RecipeValues = Mapping[str, object]  # a recipe as JSON values


class Checkpoint(TypedDict):
    """The content of a checkpoint file."""

    step: int
    """Updates done."""
    recipe: dict[str, object]
    parts: dict[str, dict[str, object]]
    """Name -> state dict of a `Stateful`."""
    torch_rng: torch.Tensor
    generator: torch.Tensor


def checkpoint_paths(folder: Path) -> list[Path]:
    """Finished checkpoints, oldest first. Files of other names, such as copies, are none: nothing removes them."""
    return sorted(path for path in folder.glob("step-*.pt") if NAME.fullmatch(path.name))


def step_of(path: Path) -> int:
    """Updates done at a checkpoint, by the name of its file."""
    return int(path.stem.rpartition("-")[2])


def save_checkpoint(
    folder: Path,
    step: int,
    parts: Mapping[str, Stateful],
    generator: torch.Generator,
    recipe: RecipeValues,
    keep: int = 2,
    spare: Collection[int] = (),
) -> Path:
    """Writes the state after `step` updates under a temporary name, then renames it; keeps the newest `keep`.

    spare: updates of checkpoints that stay although they are older.
    Raises UserError when the file cannot be written (full disk); earlier checkpoints stay as they are.
    """
    new_folder(folder)
    path = folder / f"step-{step:08d}.pt"
    temporary = temporary_beside(path)
    state: Checkpoint = {
        "step": step,
        "recipe": dict(recipe),
        "parts": {name: part.state_dict() for name, part in parts.items()},
        "torch_rng": torch.get_rng_state(),
        "generator": generator.get_state(),
    }
    try:
        with writing(path, tensor_bytes(state), temporary):
            with temporary.open("wb") as file:
                torch.save(state, file)
                flush(file)
            temporary.replace(path)
    except UserError as error:
        kept = checkpoint_paths(folder)
        advice = f"The last good checkpoint is {kept[-1]}" if kept else "There is no earlier checkpoint"
        raise UserError(f"{error} {advice}; then resume the run.") from error
    for old in checkpoint_paths(folder)[:-keep]:
        if step_of(old) not in spare:
            old.unlink(missing_ok=True)
    return path


def tensor_bytes(values: object) -> int:
    """Bytes of all tensors in nested containers: about the size of the file that holds them."""
    if isinstance(values, torch.Tensor):
        return values.numel() * values.element_size()
    if isinstance(values, Mapping):
        return sum(map(tensor_bytes, cast(Mapping[object, object], values).values()))
    return sum(map(tensor_bytes, cast(Sequence[object], values))) if isinstance(values, list | tuple) else 0


def load_latest_checkpoint(folder: Path, device: torch.device | str = "cpu") -> Checkpoint | None:
    """The newest checkpoint that reads back whole, or None when there is none.

    A damaged one is skipped with a warning; raises UserError when all are damaged.
    """
    paths = checkpoint_paths(folder)
    for path in reversed(paths):
        try:
            return _load(path, device)
        except (MemoryError, torch.OutOfMemoryError):  # the file may be whole
            raise
        except Exception as error:  # every kind of damage raises its own kind of exception
            warnings.warn(f"Checkpoint {path} is damaged ({reason(error)}); trying the one before it.", stacklevel=2)
    if paths:
        raise UserError(f"No checkpoint in {folder} can be read, all are damaged; train again into another folder.")
    return None


def _load(path: Path, device: torch.device | str) -> Checkpoint:
    check_torch_file(path)
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise ValueError(f"wrong checksum of {damaged}")
    state = read_torch(path, device=device)
    if not isinstance(state, dict) or (missing := Checkpoint.__required_keys__ - state.keys()):
        raise ValueError(f"{', '.join(sorted(missing)) if isinstance(state, dict) else 'a table'} missing")
    return cast(Checkpoint, state)


def restore(state: Checkpoint, parts: Mapping[str, Stateful], generator: torch.Generator) -> int:
    """Puts a loaded checkpoint into the objects of this run; returns the number of updates done."""
    for name, part in parts.items():
        part.load_state_dict(state["parts"][name])
    torch.set_rng_state(state["torch_rng"].cpu())
    if state["generator"].shape == generator.get_state().shape:  # of a GPU's it is another; updates seed their own
        generator.set_state(state["generator"].cpu())
    return state["step"]


def start_or_resume(
    folder: Path,
    recipe: RecipeValues,
    parts: Mapping[str, Stateful],
    generator: torch.Generator,
    resume: bool,
    device: torch.device | str = "cpu",
    complete: Callable[[RecipeValues], RecipeValues] = lambda saved: saved,
) -> int:
    """The step to continue from: 0 for a new run, the last good checkpoint's when resuming.

    Refuses (UserError) to start over existing checkpoints and to continue under a recipe that differs in anything
    but FREE_FIELDS. A changed num_steps moves the end of the cosine; updates already done stay as they were.
    complete: adds to a saved recipe the fields that did not exist when it was saved.
    """
    if not resume:
        check_new(folder)
        return 0
    state = load_latest_checkpoint(folder, device)
    if state is None:
        warnings.warn(f"No checkpoint in {folder} yet; starting at step 0.", stacklevel=2)
        return 0
    if changed := [name for name in changed_fields(complete(state["recipe"]), recipe) if name not in FREE_FIELDS]:
        raise UserError(
            f"The run in {folder} was started with other settings: {', '.join(changed)} differ. "
            "Resume with the recipe.json beside it or choose another output folder."
        )
    return restore(state, parts, generator)


def check_new(folder: Path) -> None:
    """Raises UserError where a folder holds the checkpoints of an earlier run, before anything of that run changes."""
    if checkpoint_paths(folder):
        raise UserError(f"{folder} already holds checkpoints; resume that run or choose another output folder.")


def write_recipe(out: Path, recipe: RecipeValues) -> None:
    """Puts recipe.json into the run's folder, whole or not at all; it can be loaded and trained again."""
    write_whole(new_folder(out) / "recipe.json", json.dumps(recipe, indent=2) + "\n")


def changed_fields(old: RecipeValues, new: RecipeValues) -> list[str]:
    """Dotted names of the fields in which two recipes differ."""
    before, after = _flatten(old), _flatten(new)
    missing = object()
    return sorted(n for n in before.keys() | after.keys() if before.get(n, missing) != after.get(n, missing))


def _flatten(values: RecipeValues, prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in values.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat
