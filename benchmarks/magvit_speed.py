"""Speed of MAGVIT's 12 parallel steps against one token at a time: MAGVIT-B, and an autoregressive model of its size.

    python benchmarks/magvit_speed.py OUT.json [--device cuda --dtype bfloat16 --compile --capture --ar-tokens 1024]

Both have random weights, 1,024 tokens (a clip of 16×128×128) and a class label, in one process, so that the ratio is
that of one machine at one time. The autoregressive transformer keeps keys and values; with --ar-tokens fewer than
1,024 some of its tokens are timed, evenly spaced in the sequence, and the others are interpolated.
"""

import argparse
import itertools
import json
import os
import platform
from pathlib import Path
from typing import Literal, TypedDict

import torch

from mutoscope.families.recorded import RecordedMagvit, RecordedMagvitAR
from mutoscope.layers.cuda_graph import CUDAGraphs
from mutoscope.layers.recorded import Steps
from mutoscope.models.magvit import Magvit, MagvitConfig
from mutoscope.models.magvit.baselines import MagvitAR, MagvitARConfig
from mutoscope.sampling.autoregressive import AutoregressiveSampler, TokenCondition
from mutoscope.sampling.masked import MaskedCondition, MaskedSampler, MaskedSamplerConfig
from mutoscope.tokenizers.vq3d import VQ3D, VQ3DConfig
from timing import median_seconds, write_report

FRAMES = 16


Size = Literal["B", "L"]


class Row(TypedDict):
    """One measurement of the report."""

    model: str
    steps: int
    seconds: float


class ParallelRow(Row):
    tflops_per_second: float


class SerialRow(Row):
    seconds_per_token: float


def prepare(model: Magvit | MagvitAR, options: argparse.Namespace) -> None:
    """Move the network to its device in evaluation mode, and compile its blocks if the options say so."""
    model.to(options.device, getattr(torch, options.dtype)).eval()
    if options.compile:
        block = type(model.blocks[0])
        block.forward = torch.compile(block.forward)


@torch.inference_mode()
def parallel_row(size: Size, device: torch.device, options: argparse.Namespace) -> ParallelRow:
    """A whole clip's tokens in 12 steps, and the floating-point operations per second."""
    config = MagvitConfig.paper(size, num_classes=101, tasks=("class-conditional",))
    model = Magvit(config)
    weights = sum(p.numel() for p in model.blocks.parameters())
    prepare(model, options)
    network = RecordedMagvit(model, Steps(CUDAGraphs())) if options.capture else model
    sampler, label = MaskedSampler(MaskedSamplerConfig()), torch.zeros(1, dtype=torch.int64, device=device)

    def call() -> None:
        for _ in sampler.sample(network, MaskedCondition("class-conditional", label=label), seeded(device)):
            pass

    taken = median_seconds(call, device, options.repeats)
    n = config.prefix_length + config.num_tokens
    operations = 12 * (2 * weights * n + 4 * config.num_layers * n * n * config.hidden_size)
    return {"model": f"MAGVIT-{size}", "steps": 12, "seconds": taken, "tflops_per_second": operations / taken / 1e12}


@torch.inference_mode()
def autoregressive_row(size: Size, device: torch.device, options: argparse.Namespace) -> SerialRow:
    """A whole clip's tokens one by one, or interpolated from single tokens at several positions of the sequence."""
    config = MagvitARConfig.paper(size, num_classes=101)
    model, total = MagvitAR(config), config.num_tokens
    prepare(model, options)
    network = RecordedMagvitAR(model, Steps(CUDAGraphs())) if options.capture else model
    if options.ar_tokens >= total:
        label, sampler = torch.zeros(1, dtype=torch.int64, device=device), AutoregressiveSampler()

        def call() -> None:
            for _ in sampler.sample(network, TokenCondition(1, label), seeded(device)):
                pass

        taken = median_seconds(call, device, options.repeats)
        return {"model": f"AR-{size}", "steps": total, "seconds": taken, "seconds_per_token": taken / total}
    cache, token = network.new_cache(1), torch.zeros(1, 1, dtype=torch.int64, device=device)
    depths = torch.linspace(0, total - 1, max(2, options.ar_tokens // 8)).long().tolist()
    times = []
    for depth in depths:

        def step(depth: int = depth) -> None:
            cache.length = depth  # the contents of the skipped positions do not change the time
            network.code_logits(token, cache).argmax(-1)

        times.append(median_seconds(step, device, 7))
    per_token = sum((a + b) / 2 for a, b in itertools.pairwise(times)) / (len(times) - 1)
    return {"model": f"AR-{size}", "steps": total, "seconds": per_token * total, "seconds_per_token": per_token}


def seeded(device: torch.device) -> torch.Generator:
    """A generator on the device itself, so that drawing does not wait for the CPU."""
    return torch.Generator(device).manual_seed(0)


@torch.inference_mode()
def decoder_row(size: Size, device: torch.device, options: argparse.Namespace) -> Row:
    tokenizer = VQ3D(VQ3DConfig.paper("B" if size == "B" else "L")).to(device).eval()
    tokens = torch.zeros(1, 4, 16, 16, dtype=torch.int64, device=device)
    return {
        "model": f"3D-VQ-{size} decoder",
        "steps": 1,
        "seconds": median_seconds(lambda: tokenizer.decode(tokens), device, 3),
    }


def matrix_rate(device: torch.device, dtype: torch.dtype, size: int = 8192) -> float:
    """Tera-operations per second of a large product of random matrices."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / median_seconds(lambda: a @ b, device, 9) / 1e12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", default="B", choices=("B", "L"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--compile", action="store_true", help="the blocks, with torch.compile")
    parser.add_argument("--capture", action="store_true", help="steps as CUDA graphs")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ar-tokens", type=int, default=128)
    options = parser.parse_args()
    device = torch.device(options.device)
    parallel = parallel_row(options.size, device, options)
    serial = autoregressive_row(options.size, device, options)
    decoder = decoder_row(options.size, device, options)
    peak = matrix_rate(device, getattr(torch, options.dtype)) if device.type == "cuda" else None
    report = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "dtype": options.dtype,
        "compiled": options.compile,
        "captured": options.capture,
        "torch": torch.__version__,
        "rows": [parallel, serial, decoder],
        "speedup_over_autoregressive": serial["seconds"] / parallel["seconds"],
        "fraction_of_peak": None if peak is None else parallel["tflops_per_second"] / peak,
        "measured_peak_tflops": peak,
        "frames_per_second": FRAMES / parallel["seconds"],
        "frames_per_second_with_decoding": FRAMES / (parallel["seconds"] + decoder["seconds"]),
    }
    write_report(options.out, report)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
