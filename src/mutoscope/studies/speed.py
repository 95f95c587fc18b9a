"""Speed of a pipeline as its user experiences it: delay of the first frame, frames per second, memory.

Times are medians over repetitions after one warm-up run. Peak memory is that of the whole process on a CPU, and of the
allocator on a GPU. Figures of different machines do not compare.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypedDict

import numpy as np

from mutoscope.errors import UserError
from mutoscope.families import Request
from mutoscope.pipeline import Generation, VideoPipeline, peak_memory_bytes, reset_peak_memory

PROMPT = "a red ball moves to the right"  # its words change no time


@dataclass(frozen=True)
class SpeedConfig:
    """`batch` samples are generated together. `num_decoding_steps`: one row each; the model's default if empty."""

    num_decoding_steps: tuple[int, ...] = ()
    batch: int = 1
    repeats: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch < 1 or self.repeats < 1:
            raise UserError(f"batch and repeats must be at least 1, found {self.batch} and {self.repeats}.")


class SpeedRow(TypedDict):
    """Times in seconds; frames per second count all samples, without and with decoding to pixels."""

    mode: str
    num_decoding_steps: int
    frames: int
    repeats: int
    seconds: float
    seconds_first_frame: float
    seconds_fastest: float
    seconds_slowest: float
    frames_per_second: float
    frames_per_second_with_decoding: float
    peak_memory_bytes: int


def measure_speed(
    pipeline: VideoPipeline, config: SpeedConfig, on_run: Callable[[], object] = lambda: None
) -> list[SpeedRow]:
    """One row per mode and number of decoding steps. `on_run` is called after every run, warm-ups included."""
    requests = speed_requests(pipeline, config)
    return [_measure(pipeline, request, config.repeats, on_run) for request in requests]


def speed_requests(pipeline: VideoPipeline, config: SpeedConfig) -> list[Request]:
    """The timed calls: generation from a class or a prompt, and frame prediction, if the model can do them."""
    pipeline.family  # noqa: B018  refuses a tokenizer alone
    index = pipeline.index
    grey = np.full((1, index.height, index.width, 3), 128, dtype=np.uint8)
    modes = {"class-conditional": {}, "frame-prediction": {"context": grey}, "text-conditional": {"prompt": PROMPT}}
    possible = {mode: conditions for mode, conditions in modes.items() if mode in index.tasks}
    if not possible:
        raise UserError(f"The benchmark times {' and '.join(modes)}; this model can do {', '.join(index.tasks)}.")
    shared = {"num_samples": config.batch, "batch_size": config.batch, "seed": config.seed}
    steps: Sequence[int | None] = config.num_decoding_steps or (None,)
    return [
        pipeline.prepare(task=_named(mode), num_decoding_steps=count, **shared, **conditions)
        for mode, conditions in possible.items()
        for count in steps
    ]


def _named(mode: str) -> str | None:
    """The task of a call; a prompt says it itself."""
    return None if mode == "text-conditional" else mode


def _measure(pipeline: VideoPipeline, request: Request, repeats: int, on_run: Callable[[], object]) -> SpeedRow:
    pipeline.run(request)  # the first run allocates memory and chooses kernels
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
