"""How fast a pipeline generates, as its user waits for it.

Every row states what it depends on. Times are medians over repetitions after one warm-up; peak memory is that of the
whole process on a CPU and what the allocator held on a GPU. Figures of different machines do not compare.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from mutoscope.errors import UserError
from mutoscope.families import Request
from mutoscope.pipeline import Generation, VideoPipeline, peak_memory_bytes, reset_peak_memory


@dataclass(frozen=True)
class SpeedConfig:
    """`batch` samples are generated at once. `num_decoding_steps` empty: the model's default."""

    num_decoding_steps: tuple[int, ...] = ()
    batch: int = 1
    repeats: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch < 1 or self.repeats < 1:
            raise UserError(f"batch and repeats must be at least 1, found {self.batch} and {self.repeats}.")


def measure_speed(
    pipeline: VideoPipeline, config: SpeedConfig, on_run: Callable[[], object] = lambda: None
) -> list[dict[str, Any]]:
    """One row per mode and number of decoding steps. `on_run` is called after every run, warm-ups included."""
    requests = speed_requests(pipeline, config)
    return [_measure(pipeline, request, config.repeats, on_run) for request in requests]


def speed_requests(pipeline: VideoPipeline, config: SpeedConfig) -> list[Request]:
    """What is timed: class-conditional generation and frame prediction, as far as the model can."""
    index = pipeline.index
    grey = np.full((1, index.height, index.width, 3), 128, dtype=np.uint8)
    modes = {"class-conditional": {}, "frame-prediction": {"context": grey}}
    possible = {mode: given for mode, given in modes.items() if mode in index.tasks}
    if not possible:
        raise UserError(f"The benchmark times {' and '.join(modes)}; this model can do {', '.join(index.tasks)}.")
    shared = {"num_samples": config.batch, "batch_size": config.batch, "seed": config.seed}
    steps: Sequence[int | None] = config.num_decoding_steps or (None,)
    return [
        pipeline.prepare(task=mode, num_decoding_steps=count, **shared, **given)
        for mode, given in possible.items()
        for count in steps
    ]


def _measure(pipeline: VideoPipeline, request: Request, repeats: int, on_run: Callable[[], object]) -> dict[str, Any]:
    pipeline.run(request)  # first calls allocate and choose kernels
    on_run()
    reset_peak_memory(pipeline.device)
    runs: list[Generation] = []
    for _ in range(repeats):
        runs.append(pipeline.run(request))
        on_run()
    sampling = median(run.seconds_sampling for run in runs)
    seconds = median(run.seconds for run in runs)
    frames = runs[0].num_frames
    return {
        "mode": request.task,
        "num_decoding_steps": request.num_steps,
        "frames": frames,
        "repeats": repeats,
        "seconds": seconds,
        "seconds_first_frame": median(run.seconds_first_frame for run in runs),
        "seconds_fastest": min(run.seconds for run in runs),
        "seconds_slowest": max(run.seconds for run in runs),
        "frames_per_second": frames / max(sampling, 1e-9),
        "frames_per_second_with_decoding": frames / max(seconds, 1e-9),
        "peak_memory_bytes": peak_memory_bytes(pipeline.device),
    }
