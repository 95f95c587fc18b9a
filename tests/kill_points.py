"""Kills every verb that writes at its file events, runs it again, and compares the result with an uninterrupted run.

A file event is what Python's audit hooks report below the working folder: a file opened for writing, a rename, a new
folder, a removal. A process is ended by SIGKILL before such an event, and for a file opened for writing once more right
after it, when the file exists and is empty. All points and the file of figures:

    PYTHONPATH=tests python tests/kill_points.py --out benchmarks/results/kill_points.json

`test_kill_points.py` runs a sample of the points.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import torch

SECONDS = 900  # after which a run counts as stuck
CREATING = {"os.mkdir", "os.remove", "os.rmdir", "os.rename", "os.truncate", "os.link", "os.symlink"}
TIMED = {  # values that depend on the clock
    "clips_per_second", "tokens_per_second", "data_share", "model_flops_use", "updates_per_second",
    "seconds_to_end", "seconds_to_recognisable", "seconds", "seconds_first_frame", "frames_per_second",
}  # fmt: skip
FINISHED = ("holds a finished recording", "exists already", "is not empty")  # a second run's answer to a whole result
TINY_LOOP = {
    "num_steps": 3,
    "batch_size": 2,
    "log_every": 1,
    "checkpoint_every": 2,
    "num_workers": 0,
    "validation_clips": 2,
}


@dataclass(frozen=True)
class Case:
    """A command line below a working folder, and what is added to continue it."""

    name: str
    arguments: tuple[str, ...]
    resume: tuple[str, ...] = ()
    by_name_only: bool = False  # takes a minute a run


@dataclass(frozen=True)
class Event:
    """One file event. is_open: of a file for writing, at which a process can die before and after."""

    kind: str
    path: str
    is_open: bool


@dataclass(frozen=True)
class Point:
    """Where a process dies: before event `number`, or after it."""

    number: int
    after: bool


# ---------------------------------------------------------------------------------------------------------------------
# Processes


def in_child(function: Callable[[], int], log: Path, folder: Path) -> int:
    """The exit status of a function in a forked process; minus the signal where one ended it.

    Forked, because importing torch takes longer than any of these runs.
    """
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.chdir(folder)
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            status = function()
            sys.stdout.flush()
            sys.stderr.flush()
        except BaseException:
            import traceback

            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(status)
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -signal.SIGALRM


def run(arguments: Sequence[str]) -> int:
    from mutoscope.cli import main

    torch.set_num_threads(1)
    return main(arguments)


def event_of(name: str, values: tuple[Any, ...], below: str) -> Event | None:
    """The file event of an audit event, None for reads and for paths elsewhere."""
    if name != "open" and name not in CREATING:
        return None
    named = values[:1] if name == "open" else values[:2]
    paths = [os.fspath(value) for value in named if isinstance(value, str | bytes | os.PathLike)]
    paths = [os.path.abspath(path.decode() if isinstance(path, bytes) else path) for path in paths]
    if not any(path.startswith(below) for path in paths):
        return None
    if name != "open":
        return Event(name, " > ".join(paths), is_open=False)
    if isinstance(values[0], int) or not values[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        return None
    if os.path.isdir(paths[0]):  # a file without a name, which no kill leaves behind
        return None
    return Event("open", paths[0], is_open=True)


def die_at(point: Point, below: str) -> None:
    """From here on this process ends at a point."""
    count = 0

    def hook(name: str, values: tuple[Any, ...]) -> None:
        nonlocal count
        if name != "open" and name not in CREATING:
            return
        event = event_of(name, values, below)
        if event is None:
            return
        if count == point.number:
            count = -(10**9)
            if point.after and event.is_open:
                os.close(os.open(event.path, values[2] & ~os.O_EXCL, 0o666))
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1

    sys.addaudithook(hook)


def note_events(file: Path, below: str) -> None:
    """From here on file events are written to a file, a line each."""
    target = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def hook(name: str, values: tuple[Any, ...]) -> None:
        event = event_of(name, values, below)
        if event is not None:
            os.write(target, (json.dumps([event.kind, event.path, event.is_open]) + "\n").encode())

    sys.addaudithook(hook)


# ---------------------------------------------------------------------------------------------------------------------
# Results


def contents(folder: Path) -> dict[str, object]:
    """Every file below a folder, in a form that two equal results share."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): content(path) for path in files if path.name != "run.log"}


def content(path: Path) -> object:
    data = path.read_bytes()
    if path.suffix in (".json", ".jsonl"):
        try:
            return [untimed(json.loads(line)) for line in (data.splitlines() if path.suffix == ".jsonl" else [data])]
        except ValueError:
            return data
    return data


def untimed(value: object) -> object:
    if isinstance(value, dict):
        return {name: untimed(item) for name, item in value.items() if name not in TIMED}
    return [untimed(item) for item in value] if isinstance(value, list) else value


def same(name: str, one: object, other: object) -> bool:
    """Equal bytes; of checkpoints equal values, and of videos equal frames."""
    if one == other:
        return True
    if not isinstance(one, bytes) or not isinstance(other, bytes):
        return False
    if name.endswith(".pt"):
        return equal(loaded(one), loaded(other))
    if name.endswith(".mp4"):
        return np.array_equal(frames(one), frames(other))
    return False


def loaded(data: bytes) -> object:
    import io

    return torch.load(io.BytesIO(data), weights_only=True)


def frames(data: bytes) -> np.ndarray:
    import io

    import av

    with av.open(io.BytesIO(data), "r") as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def equal(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(equal(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def differences(found: dict[str, object], expected: dict[str, object]) -> list[str]:
    """Sentences about what is missing, what is left over, and what differs."""
    lines = [f"{name} is missing" for name in expected.keys() - found.keys()]
    lines += [f"{name} is left over" for name in found.keys() - expected.keys()]
    both = found.keys() & expected.keys()
    return sorted(lines) + [f"{name} differs" for name in sorted(both) if not same(name, found[name], expected[name])]


# ---------------------------------------------------------------------------------------------------------------------
# Cases


def write_inputs(root: Path) -> None:
    """Model folders, clips and recipes that the cases read."""
    from mutoscope.data.video.read import write_video
    from mutoscope.playground.web_export import RUNTIME_FILES
    from tiny_magi import save_tiny_magi
    from tiny_models import save_tiny_model, save_tiny_par, save_tiny_tokenizer
    from tiny_nova import save_tiny_nova

    savers = {"magi": save_tiny_magi, "nova": save_tiny_nova, "par": save_tiny_par, "magvit": save_tiny_model}
    for name, save in savers.items():
        save(root / name)
    save_tiny_tokenizer(root / "tokenizer")
    for number, name in enumerate(("circle", "dog")):
        clip = np.full((12, 16, 24, 3), 60, dtype=np.uint8)
        for t in range(12):
            clip[t, 2:6, t : t + 4] = 120 + 100 * number
        path = root / "clips" / name / "a.webm"
        path.parent.mkdir(parents=True)
        write_video(path, clip, 8)
        path.with_suffix(".txt").write_text(f"a blue {name}")
    write_recipes(root)
    (root / "prompts.jsonl").write_text(
        "\n".join(json.dumps({"tag": "colors", "prompt": f"a {color} circle"}) for color in ("red", "blue")) + "\n"
    )
    write_official(root / "bert.safetensors")
    write_world(root / "world")
    (root / "page").mkdir()
    for name in RUNTIME_FILES:
        (root / "page" / Path(name).name).write_text("nothing")


def write_world(folder: Path) -> None:
    """A model that can be written as a page."""
    from mutoscope.hub import save_pretrained
    from tiny_magi import SAMPLING, tiny_index, tiny_magi, tiny_vae

    model, picture = tiny_magi(clean_first_frame=True), np.full((8, 12, 3), 90, np.uint8)
    first = {"first_frames/square-0.png": 1}
    index = tiny_index(model, sampling={**SAMPLING, "window_mode": "slide"}, first_frames=first)
    save_pretrained(folder, index, tiny_vae(), model, first_frames={"first_frames/square-0.png": picture})


def write_official(path: Path) -> None:
    """A transformer in the naming of the official code."""
    from safetensors.torch import save_file

    from mutoscope.interop import magvit_flax
    from tiny_models import MODEL, tiny_model

    flax = magvit_flax.to_flax(tiny_model().state_dict(), magvit_flax.transformer_layout(MODEL), MODEL.num_heads)
    save_file({f"params/{name}": value.contiguous() for name, value in flax.items()}, path)


def write_recipes(root: Path) -> None:
    """A recipe of a few updates for every family and every kind of tokenizer."""
    from mutoscope.data.sources.shapes.source import ShapesData
    from mutoscope.models.nova import NOVAConfig
    from mutoscope.recipes.shapes import shapes_features, vae_shapes, vq_shapes
    from mutoscope.runs.finetune import planned_finetuning, starting_recipe
    from mutoscope.runs.text import run_vocabulary
    from mutoscope.text.words import OFFSETS
    from mutoscope.tokenizers.causal3d import Causal3DConfig
    from mutoscope.tokenizers.discriminator import DiscriminatorConfig
    from mutoscope.training.config import AdversarialConfig, Recipe, to_json, with_data

    def write(name: str, recipe: Recipe) -> None:
        loop = replace(recipe.loop, **TINY_LOOP)
        (root / f"{name}.json").write_text(json.dumps(to_json(replace(recipe, name=name, loop=loop))))

    for family in ("magvit", "par", "nova", "magi"):
        recipe = with_data(starting_recipe(str(root / family)), None, str(root / "clips"))
        recipe = replace(recipe, loop=replace(recipe.loop, validation_share=0.0))
        recipe = replace(planned_finetuning(recipe).recipe, start_from=None)
        if isinstance(recipe.model, NOVAConfig):  # its own words alone
            recipe = replace(recipe, model=replace(recipe.model, text_size=len(OFFSETS) * len(run_vocabulary(recipe))))
        write(f"train-{family}", recipe)
    data, vq, vae = ShapesData(num_frames=8, height=16, width=16), vq_shapes(), vae_shapes()
    network = replace(
        vq.tokenizer, filters=4, channel_multipliers=(1, 2), temporal_downsample=(True,), num_groups=2, embedding_dim=8
    )
    vq = replace(vq, data=data, tokenizer=network)
    write("train-vq", vq)
    discriminator = DiscriminatorConfig(filters=4, channel_multipliers=(1, 2), clip_shape=(8, 16, 16))
    write("train-adversarial", replace(vq, adversarial=AdversarialConfig(discriminator, perceptual_weight=0.0)))
    assert isinstance(vae.tokenizer, Causal3DConfig)
    small = replace(
        vae.tokenizer, filters=4, channel_multipliers=(1, 2), temporal_downsample=(False,), num_res_blocks=1
    )
    write("train-vae", replace(vae, data=data, tokenizer=small))
    write("train-features", shapes_features())


def cases(root: Path) -> list[Case]:
    """Every verb that writes."""
    found = []
    for name in ("vq", "adversarial", "vae", "features", "magvit", "par", "nova", "magi"):
        found.append(Case(f"train {name}", ("train", str(root / f"train-{name}.json"), "--out", "run"), ("--resume",)))
    loop = (
        "--loop.num-steps",
        "2",
        "--loop.batch-size",
        "2",
        "--loop.checkpoint-every",
        "1",
        "--loop.num-workers",
        "0",
    )
    small = (
        "--model.hidden-size",
        "16",
        "--model.num-layers",
        "1",
        "--model.num-heads",
        "2",
        "--model.head-size",
        "16",
    )
    first = ("train", "magi", "--data", str(root / "clips"), "--out", "run", "--tokenizer-steps", "2")
    size = ("--data.height", "32", "--data.width", "32")
    found.append(Case("train magi, tokenizer first", (*first, *loop, *small, *size), ("--resume",)))
    tuned = ("finetune", str(root / "nova"), str(root / "clips"), "run", "--optim.warmup-steps", "0")
    found.append(Case("finetune nova", (*tuned, *loop), ("--resume",)))
    clips = ("--num-frames", "4", "--height", "16", "--width", "16")
    found.append(
        Case("tokenize", ("tokenize", str(root / "nova"), str(root / "clips"), "tokens", *clips, "--batch-size", "1"))
    )
    compared = ("evaluate", str(root / "clips"), "--reference", str(root / "clips"), "--state", "state")
    found.append(Case("evaluate", (*compared, "--out", "report.json")))
    record = ("record", "mutoscope-test/Dot-v0", "dots", "--episodes", "2", "--max-frames", "5", "--keys", "dx", "dy")
    found.append(Case("record", record))
    for suffix in ("mp4", "png"):
        out = ("--class-label", "1", "--out", f"clip.{suffix}")
        found.append(Case(f"generate {suffix}", ("generate", str(root / "magvit"), *out)))
    found.append(Case("reconstruct", ("reconstruct", str(root / "magi"), str(root / "clips/dog/a.webm"), "again.mp4")))
    samples = ("geneval", str(root / "prompts.jsonl"), "samples", "--num-samples", "2", "--num-decoding-steps", "2")
    found.append(Case("export", ("export", str(root / "nova"), *samples, "--num-diffusion-steps", "2")))
    page = ("export", str(root / "world"), "page", "--web", "--runtime", str(root / "page"))
    found.append(Case("export page", page, by_name_only=True))
    shape = ("--num-frames", "8", "--height", "8", "--width", "8", "--num-classes", "3")
    tasks = ("--tokenizer", str(root / "tokenizer"), "--tasks", "class-conditional", "frame-prediction")
    found.append(Case("convert", ("convert", "magvit-flax", str(root / "bert.safetensors"), "model", *shape, *tasks)))
    return found


# ---------------------------------------------------------------------------------------------------------------------
# The harness


class Harness:
    """Runs cases in fresh folders below `root`."""

    def __init__(self, root: Path):
        self.root, self.inputs, self.log = root, root / "inputs", root / "log.txt"
        self.inputs.mkdir(parents=True)

        def prepare() -> int:
            write_inputs(self.inputs)
            return 0

        if in_child(prepare, self.log, root):
            raise RuntimeError(f"the inputs cannot be written:\n{self.log.read_text()}")
        self.cases = cases(self.inputs)

    def whole(self, case: Case) -> tuple[dict[str, object], list[Event]]:
        """The result of an uninterrupted run, and its file events."""
        work, events, modules = self.fresh(), self.root / "events.txt", self.root / "modules.txt"
        events.unlink(missing_ok=True)

        def watched() -> int:
            note_events(events, str(work))
            status = run(case.arguments)
            modules.write_text("\n".join(sys.modules))
            return status

        if status := in_child(watched, self.log, work):
            raise RuntimeError(f"{case.name} ends with {status}:\n{self.log.read_text()}")
        for name in modules.read_text().splitlines():  # once here instead of in every process to come
            if name.startswith(("torch.", "mutoscope.", "PIL.")) and name not in sys.modules:
                with suppress(Exception):
                    import_module(name)
        lines = events.read_text().splitlines() if events.exists() else []
        return contents(work), [Event(*json.loads(line)) for line in lines]

    def killed(self, case: Case, point: Point, expected: dict[str, object]) -> list[str]:
        """What is wrong after a kill at a point and a second run; empty if nothing is."""
        work = self.fresh()

        def dying() -> int:
            die_at(point, str(work))
            return run(case.arguments)

        if (status := in_child(dying, self.log, work)) != -signal.SIGKILL:
            return [f"the first run ended with {status} instead of being killed"]
        status = in_child(lambda: run((*case.arguments, *case.resume)), self.log, work)
        said = self.log.read_text()
        problems = differences(contents(work), expected)
        if status and not (status == 2 and any(answer in said for answer in FINISHED)):
            problems.append(f"the second run ended with {status}: {said[-300:]}")
        return problems

    def fresh(self) -> Path:
        work = self.root / "work"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        return work


def points_of(events: Sequence[Event]) -> list[Point]:
    """Before every event, and after every opening of a file for writing."""
    return [
        Point(i, after) for i, event in enumerate(events) for after in ((False, True) if event.is_open else (False,))
    ]


def chosen(points: Sequence[Point], count: int | None) -> list[Point]:
    """At most `count` points at equal distances; None: all."""
    if count is None or len(points) <= count:
        return list(points)
    return [points[i] for i in np.linspace(0, len(points) - 1, count).round().astype(int)]


def prepared() -> None:
    """Imports before any fork, and the environments that `record` knows."""
    import av  # noqa: F401
    import gymnasium  # noqa: F401
    import pyarrow.parquet  # noqa: F401

    import mutoscope.commands.train
    import mutoscope.runs.export
    import mutoscope.runs.finetune
    import mutoscope.runs.train  # noqa: F401
    from worlds.toy import register

    register()


@dataclass
class Tally:
    """A case and what is left to do for it."""

    case: Case
    expected: dict[str, object]
    events: list[Event]
    points: list[Point]
    done: int = 0
    identical: int = 0


def measure(harness: Harness, names: Sequence[str], per_case: int | None, out: Path | None = None) -> dict[str, Any]:
    """Kills at the chosen points of the cases whose names contain one of `names`; the figures.

    Cases take turns, and `out` is written after every turn, so that a part of the points is a sample of all of them.
    """
    tallies = []
    for case in harness.cases:
        if any(name in case.name for name in names) or not (names or case.by_name_only):
            expected, events = harness.whole(case)
            points = chosen(points_of(events), per_case)
            np.random.default_rng(0).shuffle(points)  # type: ignore[arg-type]
            tallies.append(Tally(case, expected, events, points))
            print(f"{case.name}: {len(points)} points", file=sys.stderr, flush=True)
    began, failures = time.perf_counter(), []
    for turn in range(max(len(tally.points) for tally in tallies)):
        for tally in tallies:
            if turn < len(tally.points):
                failures += try_point(harness, tally, tally.points[turn])
        figures = figures_of(tallies, failures) | {"seconds": round(time.perf_counter() - began)}
        if out is not None:
            out.write_text(json.dumps(figures, indent=2) + "\n")
    return figures


def try_point(harness: Harness, tally: Tally, point: Point) -> list[dict[str, object]]:
    """Kills at one point; the failure, if it is one."""
    problems = harness.killed(tally.case, point, tally.expected)
    tally.done += 1
    tally.identical += not problems
    if not problems:
        return []
    event = tally.events[point.number]
    where = f"{'after' if point.after else 'before'} {point.number} {event.kind} {event.path}"
    print(f"{tally.case.name}: {where}: {problems}", file=sys.stderr, flush=True)
    return [{"case": tally.case.name, "point": where, "problems": problems}]


def figures_of(tallies: Sequence[Tally], failures: list[dict[str, object]]) -> dict[str, Any]:
    """The figures so far."""
    leftovers = sum("left over" in str(failure["problems"]) for failure in failures)
    return {
        "points": sum(tally.done for tally in tallies),
        "identical": sum(tally.identical for tally in tallies),
        "leftovers": leftovers,
        "cases": {
            tally.case.name: {
                "all_points": len(points_of(tally.events)),
                "points": tally.done,
                "identical": tally.identical,
            }
            for tally in tallies
        },
        "failures": failures,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="JSON file of the figures")
    parser.add_argument("--per-case", type=int, help="points of every case (default: all)")
    parser.add_argument("--case", action="append", default=[], help="part of the names of the cases (default: all)")
    options = parser.parse_args()
    prepared()
    root = Path(mkdtemp(prefix="mutoscope-kill-points-"))
    try:
        figures = measure(Harness(root), options.case, options.per_case, options.out)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    print(json.dumps({name: figures[name] for name in ("points", "identical", "leftovers", "seconds")}))
    return int(figures["identical"] < figures["points"])


if __name__ == "__main__":
    sys.exit(main())
