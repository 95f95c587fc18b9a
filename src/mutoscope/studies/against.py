"""Speed of a model's variants against a plain loop, and against what the arithmetic of this machine allows.

All variants take turns in one process, so ratios are those of one machine at one time. The bound of a variant is the
time of its operations at the measured rates of matrix products of its numbers, or the time of reading its weights, keys
and values, whichever is longer; see `mutoscope.arithmetic`. Default clips read no history twice, so all operations of
the exact sampler are necessary ones.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import TypedDict

import numpy as np
import torch
from torch import nn

from mutoscope.arithmetic import CountOperations, Operations, matrix_rate, memory_rate
from mutoscope.families import family_named
from mutoscope.pipeline import VideoPipeline, Weights
from mutoscope.studies.plain import make_plain
from mutoscope.studies.speed import SpeedConfig, speed_requests
from mutoscope.tokenizers.base import channels_last

PLAIN = "plain"
GIGA = 1e9


@dataclass(frozen=True)
class Variant:
    """A way to run a model: how its pipeline is loaded."""

    name: str
    dtype: torch.dtype = torch.float32
    weights: Weights = "float"
    compile: bool = False

    def exists_for(self, family: str) -> bool:
        """Whether models of a family can run this way; "tokenizer" for one alone, whose weights stay as they are."""
        if self == EAGER:
            return True
        return family != "tokenizer" and (self.weights == "float" or family_named(family).capabilities.packs)


EAGER, COMPILED = Variant("eager"), Variant("compiled", compile=True)
# Every way that is compared; another one is one more line.
VARIANTS = (
    EAGER,
    COMPILED,
    Variant("int8", weights="int8"),
    Variant("bfloat16", torch.bfloat16),
)


class Row(TypedDict):
    """One way of running a model. Times in seconds per call, decoding to pixels included.

    ratio: of the medians, to the plain loop. gflop, read_bytes: counted in this row; the bounds of the plain loop and
    of compiled steps are that of the exact sampler. fraction: of the bound that the fastest run reached. same_pixels:
    share of the 8-bit values that equal those of the plain loop, for the same seed.
    """

    row: str
    seconds: float
    seconds_fastest: float
    ratio: float
    frames_per_second: float
    gflop: float
    read_bytes: int
    bound_seconds: float
    bound_by: str
    fraction: float
    same_pixels: float


class Comparison(TypedDict):
    """Rates of the machine in operations and bytes per second, and one row per way.

    clock: "processor" counts the time of this process only, "wall" all time.
    """

    mode: str
    frames: int
    num_decoding_steps: int
    repeats: int
    clock: str
    matrix_rates: dict[str, float]
    memory_rate: float
    weight_bytes: int
    rows: list[Row]


@dataclass
class _Runner:
    """One way, loaded, with what was found out about it so far."""

    call: Callable[[], np.ndarray]
    weight_bytes: int
    operations: Operations = field(default_factory=Operations)
    clock: Callable[[], float] = time.perf_counter
    seconds: list[float] = field(default_factory=list[float])
    frames: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint8))

    def warm_up(self) -> None:
        """Two runs that do not count: the first allocates memory and chooses kernels, the second is counted."""
        self.frames = self.call()
        with CountOperations() as counter:
            self.call()
        self.operations = counter.found

    def run(self) -> None:
        begin = self.clock()
        self.call()
        self.seconds.append(self.clock() - begin)


def compare(
    load: Callable[[Variant], VideoPipeline], config: SpeedConfig, on_run: Callable[[], object] = lambda: None
) -> Comparison:
    """Every way that exists for a model, in turns with the plain loop, by the first call that `bench speed` times.

    `load` opens the model anew for each way. `on_run` is called after every run, see `num_runs`. Raises UserError for
    a model that cannot be timed.
    """
    plain = load(EAGER)
    device, family = plain.device, plain.index.family
    runners = {PLAIN: _runner(plain, config, is_plain=True)}
    for variant in VARIANTS:
        if variant.exists_for(family):
            runners[variant.name] = _runner(load(variant), config)
    clock = clock_of(device)
    for runner in runners.values():
        runner.clock = time.process_time if clock == "processor" else time.perf_counter
        runner.warm_up()
        on_run()
    rates = measured_rates(device, runners)
    for _ in range(config.repeats):
        for runner in runners.values():
            runner.run()
            on_run()
    again = measured_rates(device, runners)  # a rate that another program disturbed once
    rates = {number: max(rate, again[number]) for number, rate in rates.items()}
    weight_bytes = runners[EAGER.name].weight_bytes
    memory = memory_rate(device, weight_bytes)
    mode, steps = _timed(plain, config)
    return {
        "mode": mode,
        "frames": len(runners[PLAIN].frames),
        "num_decoding_steps": steps,
        "repeats": config.repeats,
        "clock": clock,
        "matrix_rates": rates,
        "memory_rate": memory,
        "weight_bytes": weight_bytes,
        "rows": [_row(name, runner, runners, rates, memory) for name, runner in runners.items()],
    }


def clock_of(device: torch.device) -> str:
    """The time of the processor where one thread does all the work, since other programs prolong it little."""
    return "processor" if device.type == "cpu" and torch.get_num_threads() == 1 else "wall"


def num_runs(family: str, repeats: int) -> int:
    """Runs of `compare`, one warm-up per way among them."""
    return (1 + sum(variant.exists_for(family) for variant in VARIANTS)) * (repeats + 1)


def measured_rates(device: torch.device, runners: Mapping[str, _Runner]) -> dict[str, float]:
    """Matrix rates of all numbers that some way multiplies."""
    numbers = sorted({number for runner in runners.values() for number in runner.operations.by_number})
    return {number: matrix_rate(device, number) for number in numbers}


def _runner(pipeline: VideoPipeline, config: SpeedConfig, is_plain: bool = False) -> _Runner:
    parts: list[nn.Module] = [pipeline.tokenizer]
    if pipeline.model is None:
        if not is_plain:
            channels_last(pipeline.tokenizer)  # as `mutoscope reconstruct` does
        clip = _noise(pipeline, config)
        return _Runner(lambda: pipeline.reconstruct(clip).frames, _bytes(parts))
    if is_plain:
        make_plain(pipeline.model)
    request = speed_requests(pipeline, config)[0]
    return _Runner(
        lambda: np.concatenate([clip.frames for clip in pipeline.run(request).clips]),
        _bytes([*parts, pipeline.model]),
    )


def _noise(pipeline: VideoPipeline, config: SpeedConfig) -> np.ndarray:
    index, draws = pipeline.index, np.random.default_rng(config.seed)
    return draws.integers(256, size=(index.num_frames, index.height, index.width, 3), dtype=np.uint8)


def _timed(pipeline: VideoPipeline, config: SpeedConfig) -> tuple[str, int]:
    if pipeline.model is None:
        return "reconstruction", 1
    request = speed_requests(pipeline, config)[0]
    return request.task, request.num_steps


def _bytes(networks: list[nn.Module]) -> int:
    tensors = [tensor for network in networks for tensor in (*network.parameters(), *network.buffers())]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _row(name: str, runner: _Runner, runners: Mapping[str, _Runner], rates: Mapping[str, float], memory: float) -> Row:
    plain, seconds, fastest = runners[PLAIN], median(runner.seconds), min(runner.seconds)
    # The plain loop does too much, and compiled steps pad their sets: their bound is the exact sampler's.
    needed = runners[EAGER.name].operations if name in (PLAIN, COMPILED.name) else runner.operations
    arithmetic, reading = needed.seconds(rates), needed.read_bytes / memory
    bound = max(arithmetic, reading)
    return {
        "row": name,
        "seconds": seconds,
        "seconds_fastest": fastest,
        "ratio": seconds / median(plain.seconds),
        "frames_per_second": len(runner.frames) / seconds,
        "gflop": runner.operations.total / GIGA,
        "read_bytes": runner.operations.read_bytes,
        "bound_seconds": bound,
        "bound_by": "arithmetic" if arithmetic >= reading else "memory",
        "fraction": bound / fastest,
        "same_pixels": float((runner.frames == plain.frames).mean()),
    }
