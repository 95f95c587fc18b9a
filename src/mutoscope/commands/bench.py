"""mutoscope bench: measurements."""

from typing import Literal

import mutoscope.commands.common as common


def bench(
    kind: Literal["speed"],
    model: str,
    /,
    *,
    num_decoding_steps: tuple[int, ...] = (),
    batch: int = 1,
    repeats: int = 3,
    threads: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
) -> common.Report:
    """Measure how fast a model generates: delay of the first frame, frames per second, memory.

    Every row is the median over repetitions after one warm-up run.

    Args:
        kind: what to measure: speed
        model: bundled name or model folder
        num_decoding_steps: one or several, such as 4 12 64 (default: the model's)
        batch: clips generated together
        repeats: timed runs per row
        threads: CPU threads (default: torch's choice)
        seed: of the generated clips
        device: cpu, cuda, cuda:1, mps ...
        dtype: number format of the network
    """
    common.check_range("--batch", batch, low=1, high=10_000)
    common.check_range("--repeats", repeats, low=1, high=1000)
    common.check_range("--threads", threads, low=1, high=4096)
    common.check_seed(seed)
    for steps in num_decoding_steps:
        common.check_range("--num-decoding-steps", steps, low=1)

    import torch

    from mutoscope.benchmark.speed import SpeedConfig, measure_speed, speed_requests

    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        pipeline = common.load_pipeline(model, device, dtype)
        config = SpeedConfig(num_decoding_steps, batch, repeats, seed)
        total = len(speed_requests(pipeline, config)) * (repeats + 1)
        with common.progress_steps(f"bench {kind}", total, "run") as advance:
            rows = measure_speed(pipeline, config, advance)
        return {"model": model, **common.machine(pipeline.device, dtype), "batch": batch, "seed": seed, "rows": rows}
    finally:
        torch.set_num_threads(before)


def summary(report: common.Report) -> str:
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
