"""mutoscope export: samples as outside benchmarks read them, or a world as a page without a server."""

import time
from collections.abc import Sequence
from pathlib import Path

import mutoscope.commands.common as common
from mutoscope.commands.options import parse_changed_options
from mutoscope.errors import UserError

CALL_OPTIONS = ("motion", "num_frames", "negative_prompt", "interval")  # beside those of the sampler


def export(
    model: str,
    benchmark: str,
    prompts: str | None = None,
    out: str | None = None,
    /,
    *,
    web: bool = False,
    runtime: str | None = None,
    num_prompts: int | None = None,
    num_samples: int | None = None,
    seed: int = 1337,
    load: common.LoadOptions,
    overrides: Sequence[str] = (),
) -> common.Report:
    """Write samples of a text-conditional model as VBench, GenEval or DPG-Bench read them; their tools give the scores.

    The same command continues an interrupted export. Files that are there already stay as they are.

    mutoscope export MODEL OUT --web writes a world as a folder of static files instead, which plays in a browser
    without a server.

    Args:
        model: bundled name or folder of a model that reads prompts; with --web, of a world
        benchmark: vbench, geneval or dpg-bench; with --web, the folder to write
        prompts: the benchmark's own prompts: VBench_full_info.json or a text file of one prompt per line;
            evaluation_metadata.jsonl; dpg_bench.csv or the folder of its prompts
        out: folder for the samples, empty or made new
        web: write a world as a page
        runtime: with --web, a folder of onnxruntime-web (default: from npm)
        num_prompts: only the first ones (default: all)
        num_samples: per prompt (default: 5 for vbench, else 4)
        seed: the same seed gives the same samples, wherever an export was interrupted
        load: how the model is loaded
        overrides: options of the model's calls, such as --num-frames (default: as in training; benchmarks of images
            take one), --guidance-scale or --motion (see mutoscope generate MODEL --help)
    """
    if web:
        if prompts is not None or out is not None or overrides:
            raise UserError("A page is written by: mutoscope export MODEL OUT --web; omit the rest.")
        return _web(model, Path(benchmark).expanduser(), None if runtime is None else Path(runtime).expanduser(), load)
    if prompts is None or out is None:
        raise UserError("Samples are written by: mutoscope export MODEL BENCHMARK PROMPTS OUT; a page with --web.")
    common.check_range("--num-prompts", num_prompts, low=1)
    common.check_range("--num-samples", num_samples, low=1, high=1000)
    common.check_seed(seed)
    from mutoscope import hub
    from mutoscope.runs.export import export as write
    from mutoscope.runs.export import read_prompts

    source, target = Path(prompts).expanduser(), Path(out).expanduser()
    read_prompts(benchmark, source)  # before the model is loaded
    folder = hub.open_folder(model)
    options = parse_changed_options(folder, f"mutoscope export {model}", overrides, also=CALL_OPTIONS)
    pipeline = common.load_pipeline(folder, load)
    start = time.perf_counter()
    counts = {"num_prompts": num_prompts, "num_samples": num_samples, "seed": seed}
    report = write(pipeline, model, benchmark, source, target, **counts, options=options)
    return report | {"seconds": time.perf_counter() - start, **common.machine(pipeline.device, load.dtype)}


def _web(model: str, out: Path, runtime: Path | None, load: common.LoadOptions) -> common.Report:
    """A world as a folder of static files."""
    from mutoscope import hub
    from mutoscope.playground.web_export import export_web

    hub.check_writable_folder(out)
    folder = hub.open_folder(model)
    pipeline = common.load_pipeline(folder, load)
    start = time.perf_counter()
    report = export_web(pipeline, folder.path.resolve().name, out, runtime)
    return report | {"seconds": time.perf_counter() - start}


def print_override_help(model: str | None, overrides: Sequence[str] = ()) -> None:
    """The options of a model are those of `generate`."""


def summary(report: common.Report) -> str:
    if "model_bytes" in report:
        from mutoscope.playground.web_export import report_sizes

        return report_sizes(report)
    return (
        f"{report['output']}\n{report['prompts']} prompts of {report['benchmark']}, {report['num_samples']} samples of "
        f"each, {report['written']} files written, {report['seconds']:.1f} s\nscores: {report['tool']}"
    )
