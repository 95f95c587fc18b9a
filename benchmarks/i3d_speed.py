"""Time of I3D features against the plainest PyTorch loop that is correct.

    python benchmarks/i3d_speed.py OUT.json [--clips 64] [--threads 2] [--repeats 3] [--batch-size 4] [--processor-time]

Same weights, same clips (16 frames of 64×64 pixels, resizing included), in one process; runs alternate, so the ratio is
that of one machine at one time. The plain loop pads explicitly, applies convolution, batch norm and ReLU one after the
other in PyTorch's default memory format, and frees every map after its last use. "Ours" is `Extractors.read`: batch
norms folded into the convolutions, channels-last memory format, 1×1×1 convolutions as matrix products.
--processor-time measures processor time instead of wall-clock time, for one thread on a machine with other work.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from mutoscope.data.sources.shapes.world import ShapesConfig, ShapesWorld, shapes_batch
from mutoscope.evaluation.metrics.conventions import CONVENTIONS, i3d_input
from mutoscope.evaluation.networks.extractors import Extractors
from mutoscope.evaluation.networks.i3d import I3D, MIXED_NAMES, POOL_BEFORE, I3DConfig, same_padding
from timing import write_report

CONVENTION = CONVENTIONS["tats"]


def padded(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    pads = [same_padding(s, k, t) for s, k, t in zip(x.shape[2:], kernel, stride, strict=True)]
    return F.pad(x, [p for pair in reversed(pads) for p in pair])


def plain_unit(weights: dict[str, Tensor], name: str, x: Tensor, stride: int = 1) -> Tensor:
    kernel = weights[f"{name}.conv3d.weight"]
    x = F.conv3d(padded(x, tuple(kernel.shape[2:]), (stride,) * 3), kernel, stride=stride)
    mean, variance, weight, bias = (
        weights[f"{name}.bn.{n}"] for n in ("running_mean", "running_var", "weight", "bias")
    )
    return F.relu(F.batch_norm(x, mean, variance, weight, bias, eps=CONVENTION.eps))


def plain_pool(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    return F.max_pool3d(padded(x, kernel, stride), kernel, stride)


def plain_i3d(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    x = plain_pool(plain_unit(weights, "Conv3d_1a_7x7", x, 2), (1, 3, 3), (1, 2, 2))
    x = plain_unit(weights, "Conv3d_2c_3x3", plain_unit(weights, "Conv3d_2b_1x1", x))
    for name in MIXED_NAMES:
        if name in POOL_BEFORE:
            x = plain_pool(x, *POOL_BEFORE[name][1:])
        unit = f"Mixed_{name}."
        second = plain_unit(weights, f"{unit}b1b", plain_unit(weights, f"{unit}b1a", x))
        third = plain_unit(weights, f"{unit}b2b", plain_unit(weights, f"{unit}b2a", x))
        fourth = plain_unit(weights, f"{unit}b3b", plain_pool(x, (3, 3, 3), (1, 1, 1)))
        x = torch.cat([plain_unit(weights, f"{unit}b0", x), second, third, fourth], dim=1)
    x = F.avg_pool3d(x, (2, 7, 7), stride=1)
    return F.conv3d(x, weights["logits.conv3d.weight"], weights["logits.conv3d.bias"]).flatten(2).mean(2)


@torch.no_grad()
def plain(weights: dict[str, Tensor], clips: Tensor, batch_size: int) -> Tensor:
    return torch.cat([plain_i3d(weights, i3d_input(batch, CONVENTION)) for batch in clips.split(batch_size)])


def random_i3d() -> I3D:
    """Random weights, batch norms included: those of a fresh network are the identity, which hides mistakes."""
    torch.manual_seed(0)
    network = I3D(I3DConfig(eps=CONVENTION.eps))
    for name, value in network.state_dict().items():
        if ".bn." in name and value.is_floating_point():
            value.copy_(0.5 + torch.rand(value.shape))
    return network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--processor-time", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = time.process_time if args.processor_time else time.perf_counter
    clips = shapes_batch(ShapesWorld(ShapesConfig(height=64, width=64)), range(args.clips))["video"]
    network = random_i3d()
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    ours = Extractors(CONVENTION, i3d=network.fold(), batch_size=args.batch_size)

    runs: dict[str, Callable[[Tensor], Tensor]] = {
        "plain": lambda some: plain(weights, some, args.batch_size),
        "ours": lambda some: ours.read(some)["i3d"],
    }
    few = clips[: args.batch_size]
    found = {name: run(few) for name, run in runs.items()}  # also warms up
    difference = ((found["ours"] - found["plain"]).norm() / found["plain"].norm()).item()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(args.repeats):
        for name, run in runs.items():
            began = clock()
            run(clips)
            seconds[name].append(clock() - began)
            print(f"{name}: {args.clips / seconds[name][-1]:.2f} clips/s", flush=True)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    report = {
        "machine": platform.machine(),
        "threads": args.threads,
        "clock": "processor" if args.processor_time else "wall",
        "dtype": "float32",
        "clips": args.clips,
        "batch_size": args.batch_size,
        "convention": CONVENTION.name,
        "seconds": seconds,
        "clips_per_second": {name: args.clips / value for name, value in medians.items()},
        "time_to_plain": medians["ours"] / medians["plain"],
        "relative_difference_of_logits": difference,
    }
    write_report(args.out, report)
    ratio = medians["ours"] / medians["plain"]
    print(f"ours takes {ratio:.2f} of the plain loop's time; logits differ by {difference:.1e}")


if __name__ == "__main__":
    main()
