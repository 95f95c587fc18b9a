"""mutoscope export: samples in the folders that outside benchmarks read."""

import time
from pathlib import Path
from typing import Literal

import mutoscope.commands.common as common


def export(
    model: str,
    benchmark: str,
    prompts: str,
    out: str,
    /,
    *,
    num_prompts: int | None = None,
    num_samples: int | None = None,
    seed: int = 1337,
    num_decoding_steps: int | None = None,
    num_diffusion_steps: int | None = None,
    guidance_scale: float | None = None,
    motion: float | None = None,
    num_frames: int | None = None,
    device: str = "cpu",
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
) -> common.Report:
    """Write samples of a text-conditional model as VBench, GenEval or DPG-Bench read them; their tools give the scores.

    The same command continues an interrupted export. Files that are there already stay as they are.

    Args:
        model: bundled name or folder of a model that reads prompts
        benchmark: vbench, geneval or dpg-bench
        prompts: the benchmark's own prompts: VBench_full_info.json or a text file of one prompt per line;
            evaluation_metadata.jsonl; dpg_bench.csv or the folder of its prompts
        out: folder for the samples, empty or made new
        num_prompts: only the first ones (default: all)
        num_samples: per prompt (default: 5 for vbench, else 4)
        seed: the same seed gives the same samples, wherever an export was interrupted
        num_decoding_steps: passes of the network per clip
        num_diffusion_steps: denoising steps per token
        guidance_scale: u + s (c - u); 1 is off
        motion: how much should move, in pixels of optical flow
        num_frames: length of the clips (default: what the model was trained for; benchmarks of pictures take one)
        device: cpu, cuda, cuda:1, mps ...
        dtype: number format of the network
    """
    common.check_range("--num-prompts", num_prompts, low=1)
    common.check_range("--num-samples", num_samples, low=1, high=1000)
    common.check_range("--num-decoding-steps", num_decoding_steps, low=1)
    common.check_range("--num-diffusion-steps", num_diffusion_steps, low=1)
    common.check_range("--guidance-scale", guidance_scale, low=0)
    common.check_range("--num-frames", num_frames, low=1)
    common.check_seed(seed)
    from mutoscope.runs.export import export as write
    from mutoscope.runs.export import read_prompts

    place, target = Path(prompts).expanduser(), Path(out).expanduser()
    read_prompts(benchmark, place)  # before the model is loaded
    options = {
        "num_decoding_steps": num_decoding_steps,
        "num_diffusion_steps": num_diffusion_steps,
        "guidance_scale": guidance_scale,
        "motion": motion,
        "num_frames": num_frames,
    }
    pipeline = common.load_pipeline(model, device, dtype)
    start = time.perf_counter()
    counts = {"num_prompts": num_prompts, "num_samples": num_samples, "seed": seed}
    report = write(pipeline, model, benchmark, place, target, **counts, options=options)
    return report | {"seconds": time.perf_counter() - start, **common.machine(pipeline.device, dtype)}


def summary(report: common.Report) -> str:
    return (
        f"{report['output']}\n{report['prompts']} prompts of {report['benchmark']}, {report['num_samples']} samples of "
        f"each, {report['written']} files written, {report['seconds']:.1f} s\nscores: {report['tool']}"
    )
