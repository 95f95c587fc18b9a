"""mutoscope bench: measurements."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import mutoscope.commands.common as common
from mutoscope.errors import UserError
from mutoscope.writing import new_folder

if TYPE_CHECKING:
    import torch

    from mutoscope.studies.speed import SpeedConfig


def bench(
    kind: Literal["speed", "claims", "entropy"],
    model: str,
    /,
    *,
    out: str | None = None,
    seeds: tuple[int, ...] = (),
    num_steps: int | None = None,
    num_clips: int | None = None,
    data: str = "shapes",
    frame: int = 0,
    num_parallel: int = 4,
    dry_run: bool = False,
    num_decoding_steps: tuple[int, ...] = (),
    batch: int = 1,
    repeats: int = 3,
    threads: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    capture: bool = False,
    compile: bool = False,
    against: Literal["plain"] | None = None,
) -> common.Report:
    """Measure how fast a model generates, or train and compare the variants that a paper compares.

    speed: delay of the first frame, frames per second, memory; medians over repetitions after one warm-up run. With
    --against plain: every way to run the model beside the published way of decoding, and beside what the arithmetic of
    this machine allows; for a recipe's name, by random weights.
    claims: every variant of the paper's ablations trained alike on synthetic clips ("shapes") and measured by
    shapes-FVD. Takes hours on two CPU cores; the same command continues a run that was stopped.
    entropy: which tokens of a frame depend on which, and what it costs to decode several at once (PAR, Fig. 11 and 12).

    Args:
        kind: what to measure: speed, claims or entropy
        model: for speed and entropy a bundled name or model folder, with --against also a recipe's name; for claims
            the paper: magvit, par, nova or magi
        out: claims: folder of the run (default: runs/claims-magvit); entropy: image to draw, a .png
        seeds: claims: one training of every variant per seed (default: 0 1, for magi 0 1 2)
        num_steps: claims: updates per training (default: 1,000, for magi 1,000)
        num_clips: claims: held-back clips per measurement (default 128, for magi 512); entropy: clips to
            encode (default 10,000, as in the paper)
        data: entropy: folder of videos, or shapes for synthetic clips
        frame: entropy: latent frame to look at
        num_parallel: entropy: tokens per step
        dry_run: claims: only list what would be trained
        num_decoding_steps: one or several, such as 4 12 64 (default: the model's)
        batch: clips generated together
        repeats: timed runs per row
        threads: CPU threads (default: torch's choice)
        seed: of the generated clips
        device: cpu, cuda, cuda:1, mps ...
        dtype: precision of the network
        capture: speed: on a CUDA GPU, record the steps of a MAGVIT, PAR or LlamaGen model and replay them
        compile: speed: compile the steps first, which takes minutes once and is kept for the next time
        against: speed: plain, to compare float32, compiled steps, int8 and bfloat16 with the published decoding
    """
    if kind == "claims":
        return claims(model, out or f"runs/claims-{model}", seeds, num_steps, num_clips, dry_run, device)
    if kind == "entropy":
        return entropy(model, data, out, num_clips or 10_000, frame, num_parallel)
    common.check_range("--batch", batch, low=1, high=10_000)
    common.check_range("--repeats", repeats, low=1, high=1000)
    common.check_range("--threads", threads, low=1, high=4096)
    common.check_seed(seed)
    for steps in num_decoding_steps:
        common.check_range("--num-decoding-steps", steps, low=1)

    if against is not None and (capture or compile or dtype != "float32" or num_decoding_steps):
        raise UserError(
            "--against compares all dtypes at the model's own steps: omit --dtype, --capture, --compile and steps."
        )

    import torch

    from mutoscope.studies.speed import SpeedConfig, measure_speed, speed_requests

    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        if against is not None:
            return compare_with_plain(model, SpeedConfig((), batch, repeats, seed), device)
        pipeline = common.load_pipeline(model, common.LoadOptions(device, dtype, capture=capture, compile=compile))
        config = SpeedConfig(num_decoding_steps, batch, repeats, seed)
        total = len(speed_requests(pipeline, config)) * (repeats + 1)
        with common.progress_steps(f"bench {kind}", total, "run") as advance:
            rows = measure_speed(pipeline, config, advance)
        return {"model": model, **common.machine(pipeline.device, dtype), "batch": batch, "seed": seed, "rows": rows}
    finally:
        torch.set_num_threads(before)


MAX_MINUTES = 30  # of a comparison by random weights


def compare_with_plain(model: str, config: "SpeedConfig", device: str) -> common.Report:
    """Every way to run a model in turns with the plain loop; see `studies/against.py`."""
    import torch

    from mutoscope import hub
    from mutoscope.arithmetic import processor_name
    from mutoscope.pipeline import VideoPipeline
    from mutoscope.recipes.catalog import RECIPES
    from mutoscope.studies.against import Variant, compare, num_runs
    from mutoscope.studies.untrained import Untrained

    place = common.parse_device(device)
    is_untrained = model in RECIPES and model not in hub.bundled() and not Path(model).exists()
    if is_untrained:
        untrained = Untrained.of(model)
        index = untrained.index
        check_minutes(model, untrained.seconds_at_least, place, num_runs(index.family, config.repeats) * config.batch)

        def load(variant: Variant) -> VideoPipeline:
            parts = untrained.tokenizer(), untrained.model()
            return VideoPipeline(*parts, index, place, variant.dtype, weights=variant.weights, compile=variant.compile)
    else:
        folder = hub.open_folder(model)
        index = folder.index

        def load(variant: Variant) -> VideoPipeline:
            return VideoPipeline.from_pretrained(folder, place, variant.dtype, variant.weights, compile=variant.compile)

    with common.progress_steps("bench speed", num_runs(index.family, config.repeats), "run") as advance:
        found = compare(load, config, advance)
    about = {"processor": processor_name(place), "torch": torch.__version__, "random_weights": is_untrained}
    return {
        "model": model,
        "against": "plain",
        **common.machine(place, "float32"),
        **about,
        "batch": config.batch,
        "seed": config.seed,
        **found,
    }


def check_minutes(model: str, seconds_at_least: "Callable[[float], float]", device: "torch.device", runs: int) -> None:
    """Say how long a comparison takes at least. Raises UserError for one of more than `MAX_MINUTES`."""
    from mutoscope.arithmetic import matrix_rate

    minutes = seconds_at_least(matrix_rate(device)) * runs / 60
    if minutes > MAX_MINUTES:
        raise UserError(
            f"{model} would take at least {minutes:,.0f} minutes here, with {runs} runs: choose a smaller size, fewer "
            "--repeats or a faster --device."
        )
    if minutes > 1:
        print(f"mutoscope: {model} takes at least {minutes:.0f} minutes here.", file=sys.stderr)


def against_summary(report: common.Report) -> str:
    machine = f"{report['processor']}, {report['device']}, {report['threads']} threads, torch {report['torch']}"
    rates = ", ".join(f"{number} {rate / 1e9:,.0f}" for number, rate in report["matrix_rates"].items())
    weights = common.human_bytes(report["weight_bytes"])
    lines = [
        f"{report['model']} on {machine}: {report['mode']}, {report['frames']} frames, batch {report['batch']}"
        + (", random weights" if report["random_weights"] else ""),
        f"matrix products in GFLOP/s: {rates}; {weights} of weights read at {report['memory_rate'] / 1e9:,.0f} GB/s",
    ]
    titles = ("", "seconds", "of plain", "frames/s", "GFLOP", "bound", "of the bound", "same pixels")
    rows = [
        (
            row["row"],
            f"{row['seconds']:.3f}",
            f"{row['ratio']:.2f}",
            f"{row['frames_per_second']:.1f}",
            f"{row['gflop']:.1f}",
            f"{row['bound_seconds']:.3f}" + (" (memory)" if row["bound_by"] == "memory" else ""),
            f"{row['fraction']:.0%}",
            f"{row['same_pixels']:.1%}",
        )
        for row in report["rows"]
    ]
    return "\n".join([*lines, common.table([titles, *rows])])


def claims(
    paper: str,
    out: str,
    seeds: tuple[int, ...],
    num_steps: int | None,
    num_clips: int | None,
    dry_run: bool,
    device: str,
) -> common.Report:
    """Train and measure the variants of a paper; see `studies/registry.py`."""
    from mutoscope.studies.registry import laboratory

    lab = laboratory(paper)
    common.check_range("--num-steps", num_steps, low=200)
    common.check_range("--num-clips", num_clips, low=2)
    for seed in seeds:
        common.check_range("--seeds", seed, low=0)
    from mutoscope.hub import check_writable_folder
    from mutoscope.studies.claims import run_claims

    folder = Path(out).expanduser()
    check_writable_folder(folder)
    variants = lab.variants()
    asked = {"seeds": seeds, "num_steps": num_steps, "num_clips": num_clips}
    config = lab.settings(**{name: value for name, value in asked.items() if value})
    if dry_run:
        plan = [{"variant": v.name, "paper": v.paper, "seed": seed} for seed in config.seeds for v in variants]
        return {"model": paper, "out": str(folder), "num_steps": config.num_steps, "dry_run": True, "trainings": plan}
    with common.progress_steps("bench claims", len(variants) * len(config.seeds), "variant") as advance:
        place = common.parse_device(device)
        report = run_claims(lab, config, folder, device=place, on_result=lambda row: advance())
    return {"model": paper, "out": str(folder), **report}


def entropy(model: str, data: str, out: str | None, num_clips: int, frame: int, num_parallel: int) -> common.Report:
    """Analyse a tokenizer's tokens; see `studies/entropy.py`."""
    common.check_range("--num-clips", num_clips, low=2)
    common.check_range("--frame", frame, low=0)
    common.check_range("--num-parallel", num_parallel, low=1)
    path = None if out is None else common.check_output_file(out)
    if path is not None and path.suffix.lower() != ".png":
        raise UserError(f"--out draws a .png, found {out!r}.")
    from dataclasses import replace

    from mutoscope import hub
    from mutoscope.data.sources.recorded_data import FolderData
    from mutoscope.data.sources.shapes.source import ShapesData
    from mutoscope.studies.entropy import EntropyConfig, analyse, check_drawing, draw

    if path is not None:
        check_drawing()  # before the minutes that the clips take
    index, tokenizer = hub.load_index(model), hub.load_tokenizer(model)
    if data != "shapes" and not Path(data).expanduser().is_dir():
        raise UserError(f"There is no folder {data!r}. Give a folder of videos, or shapes for synthetic clips.")
    folder = None if data == "shapes" else str(Path(data).expanduser())
    data_config = FolderData(path=folder) if folder else ShapesData()
    source = replace(data_config, num_frames=index.num_frames, height=index.height, width=index.width).open()
    config = EntropyConfig(min(num_clips, source.num_clips or num_clips), frame, num_parallel)
    _, rows, columns = tokenizer.spec.latent_shape(index.num_frames, index.height, index.width)
    report = analyse(tokenizer, source, config, (rows, columns))
    if path is not None:
        new_folder(path.parent)
        draw(report, path)
    return {"model": model, "data": data, "frame": frame, "out": out, **report}


def entropy_summary(report: common.Report) -> str:
    rows = [(name, f"{value:.3f}") for name, value in report["mean_increase"].items()]
    heading = f"{report['model']}: {report['mean_entropy']:.2f} nats per token alone, from {report['num_clips']} clips"
    table = common.table([("order", f"increase with {report['num_parallel']} per step"), *rows])
    return f"{heading}\n{table}" + (f"\n{report['out']}" if report["out"] else "")


def claims_summary(report: common.Report) -> str:
    rows = [
        (
            row["paper"],
            row["variant"],
            str(row["num_decoding_steps"]),
            f"{row['shapes_fvd']:.1f}",
            ", ".join(f"{value:.1f}" for value in row["shapes_fvd_per_seed"]),
        )
        for row in report["rows"]
    ]
    titles = ("paper", "variant", "steps", "shapes-FVD", "per seed")
    return f"real against real: {report['real_against_real']:.1f}\n{common.table([titles, *rows])}"


def plan_summary(report: common.Report) -> str:
    rows = [(entry["paper"], entry["variant"], str(entry["seed"])) for entry in report["trainings"]]
    heading = f"{len(rows)} trainings of {report['num_steps']} updates into {report['out']}"
    return f"{heading}\n{common.table([('paper', 'variant', 'seed'), *rows])}"


def summary(report: common.Report) -> str:
    if "trainings" in report:
        return plan_summary(report)
    if "against" in report:
        return against_summary(report)
    if "mean_increase" in report:
        return entropy_summary(report)
    if "real_against_real" in report:
        return claims_summary(report)
    machine = f"{report['device']}, {report['dtype']}, {report['threads']} threads"
    titles = ("mode", "steps", "seconds", "first frame", "frames/s", "with decoding", "memory")
    rows = [
        (
            row["mode"],
            str(row["num_decoding_steps"]),
            f"{row['seconds']:.3f}",
            f"{row['seconds_first_frame']:.3f}",
            f"{row['frames_per_second']:.1f}",
            f"{row['frames_per_second_with_decoding']:.1f}",
            common.human_bytes(row["peak_memory_bytes"]),
        )
        for row in report["rows"]
    ]
    return f"{report['model']} on {machine}, batch {report['batch']}\n{common.table([titles, *rows])}"
