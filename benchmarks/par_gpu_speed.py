"""Speed of LlamaGen's and PAR's sampler on a GPU: random weights, bfloat16; eager, as CUDA graphs, and compiled.

    python benchmarks/par_gpu_speed.py OUT.json [--size 3B] [--n 1 4 16] [--modes eager captured compiled]

One image of 384x384 (24x24 tokens, 16,384 codes) with guidance, so that every step has two rows. At batch 1 a step
takes at least the time to read every weight once; `bound_seconds` is the sum of these times, at the rate of a large
copy on the device (bytes read plus bytes written).
"""

import argparse
import time
from pathlib import Path

import torch

from mutoscope.families.recorded import RecordedPAR
from mutoscope.layers.cuda_graph import CUDAGraphs
from mutoscope.layers.recorded import Steps
from mutoscope.models.par import PAR, Block, PARConfig
from mutoscope.sampling.base import last_of
from mutoscope.sampling.parallel_ar import ParallelARSampler, ParallelARSamplerConfig, PrefixCondition
from timing import Report, median_seconds, write_report

SAMPLING = ParallelARSamplerConfig(guidance_scale=4.0)
PLAIN_FORWARD = Block.forward


def copy_rate(device: torch.device, size: int = 2**32) -> float:
    """Bytes read and written per second by a large copy."""
    a = torch.ones(size if device.type == "cuda" else 2**26, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    return 2 * len(a) / median_seconds(lambda: b.copy_(a), device, 9)


@torch.inference_mode()
def row(config: PARConfig, mode: str, rate: float, options: argparse.Namespace) -> Report:
    """Seconds per image, and the bound."""
    device = torch.device(options.device)
    torch.set_default_dtype(torch.bfloat16)
    with device:
        model = PAR(config).eval()
    torch.set_default_dtype(torch.float32)
    Block.forward = torch.compile(PLAIN_FORWARD) if mode == "compiled" else PLAIN_FORWARD  # type: ignore[method-assign]
    network = RecordedPAR(model, Steps(CUDAGraphs())) if mode in ("captured", "compiled") else model
    label = torch.zeros(1, dtype=torch.int64, device=device)
    condition = PrefixCondition(model.class_prefix(label, 1), model.class_prefix(None, 1))
    sampler, steps = ParallelARSampler(SAMPLING), 0

    def call() -> None:
        nonlocal steps
        generator = torch.Generator(device).manual_seed(0)
        steps = last_of(sampler.sample(network, condition, generator, static=mode != "eager")).num_steps

    began = time.perf_counter()
    call()
    first, taken = time.perf_counter() - began, median_seconds(call, device, options.repeats)
    weights = sum(p.numel() * p.element_size() for name, p in model.named_parameters() if "embedding" not in name)
    bound = steps * weights / rate
    return {
        "n": config.num_parallel,
        "mode": mode,
        "steps": steps,
        "seconds": taken,
        "seconds_first_call": first,
        "weight_bytes": weights,
        "bound_seconds": bound,
        "fraction_of_bound": bound / taken,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", default="3B")
    parser.add_argument("--n", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--modes", nargs="+", default=["eager", "captured", "compiled"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    device = torch.device(options.device)
    rate = copy_rate(device)
    rows: list[Report] = []
    report: Report = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "model": options.size,
        "dtype": "bfloat16",
        "copy_bytes_per_second": rate,
        "rows": rows,
    }
    for mode in options.modes:
        for n in options.n:
            config = PARConfig.paper(options.size, num_parallel=n)
            rows.append(row(config, mode, rate, options))
            print(rows[-1], flush=True)
            write_report(options.out, report)


if __name__ == "__main__":
    main()
