"""Speed of PAR's sampler against a plain loop written the way the official scripts are.

    python benchmarks/par_speed.py OUT.json [--threads 1] [--repeats 3] [--layers 12] [--cases 1x1 4x1 ...]
        [--only plain ours] [--processor-time]

Same weights, same greedy choices, in one process; runs alternate, so the ratio is that of one machine at one time. The
plain loop attends over the whole cache under a gathered mask, repeats heads by a factor of one, builds cache, masks and
rotary table anew for every call, computes softmax for every choice, and stacks both halves of guidance from the start.
"""

import argparse
import copy
import os
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import NotRequired, TypedDict

import torch
from torch import Tensor

from mutoscope.layers.int8 import quantize_linears
from mutoscope.layers.masks import first_positions_mask, num_visible
from mutoscope.layers.packed import pack_linears
from mutoscope.models.par import PAR, Block, PARConfig
from mutoscope.sampling.parallel_ar import ParallelARSampler, ParallelARSamplerConfig, PrefillMemo, PrefixCondition
from mutoscope.studies.plain import plain_block
from timing import Report, write_report

# Small enough for one core: 12 layers of width 512, 8 heads, 16x16 tokens of 16,384 codes.
SMALL = PARConfig(12, 512, 8, latent_shape=(1, 16, 16), num_classes=1000, mlp_size=1536)
GUIDANCE = 1.5


class Row(TypedDict):
    """Seconds, ratios and equal choices of one case."""

    n: int
    batch: int
    seconds: dict[str, float]
    ratio: NotRequired[float]
    ids_equal: NotRequired[bool]
    ratio_int8: NotRequired[float]
    ids_equal_int8: NotRequired[float]
    ratio_bf16: NotRequired[float]
    ids_equal_bf16: NotRequired[float]


# ------------------------------------------------------------------------------------------------------ the plain loop


@torch.inference_mode()
def plain_loop(model: PAR, labels: Tensor, guidance_scale: float) -> Tensor:
    """Greedy ids in decoding order."""
    config, n, size = model.config, model.num_parallel, len(labels)
    total = len(model.token_order())
    slots = -(-(1 + total) // 8) * 8
    shape = (2 * size, config.num_heads, slots, config.head_size)
    caches = [(torch.zeros(shape), torch.zeros(shape)) for _ in model.blocks]
    table = model.rotations(model.latent_shape)
    masks = first_positions_mask(num_visible(slots, 1, n, model.device), slots).expand(2 * size, -1, -1).clone()

    def step(x: Tensor, begin: int) -> Tensor:
        rows = torch.arange(begin, begin + x.shape[1])
        mask = masks[:, None, rows]  # gathered for every call
        for block, cache in zip(model.blocks, caches, strict=True):
            assert isinstance(block, Block)
            x = plain_block(block, x, table[rows], rows, mask, cache)
        logits = model.output(model.norm(x)).float()
        guided = logits[size:] + guidance_scale * (logits[:size] - logits[size:])
        return guided.softmax(-1).topk(1, dim=-1).indices[..., 0]

    null = torch.full_like(labels, config.num_classes or 0)
    ids = step(model.condition(torch.cat([labels, null]))[:, None], 0)
    decided, position = [ids], 1
    while position < total:
        x = model.token_embedding(torch.cat([ids, ids]))
        if model.query_embedding is not None and position == n:
            x = torch.cat([x, model.query_embedding.weight.expand(2 * size, -1, -1)], dim=1)
        ids = step(x, position)
        decided.append(ids)
        position += x.shape[1]
    return torch.cat(decided, dim=1)


# --------------------------------------------------------------------------------------------------------- our sampler


def our_loop(model: PAR, labels: Tensor, guidance_scale: float, memo: PrefillMemo | None) -> Tensor:
    """Greedy ids in decoding order."""
    count, null = len(labels), model.config.num_classes or 0
    names = (*labels.tolist(), *[null] * count) if memo is not None else None
    with torch.inference_mode():
        condition = PrefixCondition(model.class_prefix(labels, count), model.class_prefix(None, count), labels=names)
        sampler = ParallelARSampler(ParallelARSamplerConfig(guidance_scale=guidance_scale))
        greedy = torch.Generator().manual_seed(0)  # not used: every draw is the most probable token
        *_, last = sampler.sample(model, condition, greedy, draw=lambda logits, positions: logits.argmax(-1), memo=memo)
    return last.tokens.flatten(1)[:, model.token_order()]


def prepared(model: PAR, weights: str) -> PAR:
    """A copy of the model as a pipeline prepares it for decoding: its weights packed, or in 8 or 16 bits."""
    network = copy.deepcopy(model)
    if weights == "int8":
        quantize_linears(network)
    elif weights == "bf16":
        network = network.bfloat16()
    else:
        pack_linears(network)
    return network


def alternate(
    calls: dict[str, Callable[[], Tensor]], repeats: int, clock: Callable[[], float]
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Median seconds of the calls, which alternate, after one warm-up of each; and their results."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    results: dict[str, Tensor] = {}
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            start = clock()
            results[name] = call()
            if repeat:
                times[name].append(clock() - start)
    return {name: median(values) for name, values in times.items()}, results


def row(config: PARConfig, n: int, batch: int, only: list[str], repeats: int, clock: Callable[[], float]) -> Row:
    """Seconds, ratios and equal choices of one case; `only` names the loops that run."""
    torch.manual_seed(0)
    model = PAR(replace(config, num_parallel=n)).eval()
    torch.nn.init.normal_(model.output.weight, std=0.02)
    labels = torch.arange(batch)
    calls: dict[str, Callable[[], Tensor]] = {"plain": lambda: plain_loop(model, labels, GUIDANCE)}
    for name, weights in (("ours", "float"), ("ours_int8", "int8"), ("ours_bf16", "bf16")):
        calls[name] = partial(our_loop, prepared(model, weights), labels, GUIDANCE, PrefillMemo())
    seconds, ids = alternate({name: calls[name] for name in only}, repeats, clock)
    found: Row = {"n": n, "batch": batch, "seconds": seconds}
    if "plain" in ids and "ours" in ids:
        found["ratio"] = seconds["ours"] / seconds["plain"]
        found["ids_equal"] = torch.equal(ids["plain"], ids["ours"])
    if "plain" in ids and "ours_int8" in ids:
        found["ratio_int8"] = seconds["ours_int8"] / seconds["plain"]
        found["ids_equal_int8"] = (ids["plain"] == ids["ours_int8"]).float().mean().item()
    if "plain" in ids and "ours_bf16" in ids:
        found["ratio_bf16"] = seconds["ours_bf16"] / seconds["plain"]
        found["ids_equal_bf16"] = (ids["plain"] == ids["ours_bf16"]).float().mean().item()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--layers", type=int, default=SMALL.num_layers)
    parser.add_argument(
        "--cases", nargs="+", default=[f"{n}x{b}" for n in (1, 4, 16) for b in (1, 4)], help="n x batch"
    )
    parser.add_argument("--only", nargs="+", default=["plain", "ours", "ours_int8", "ours_bf16"])
    parser.add_argument("--processor-time", action="store_true", help="for one thread on a machine with other work")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows: list[Row] = []
    report: Report = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "threads": options.threads,
        "dtype": "float32",
        "guidance_scale": GUIDANCE,
        "clock": "processor" if options.processor_time else "wall",
        "rows": rows,
    }
    clock = time.process_time if options.processor_time else time.perf_counter
    config = replace(SMALL, num_layers=options.layers)
    for case in options.cases:
        n, batch = map(int, case.split("x"))
        rows.append(row(config, n, batch, options.only, options.repeats, clock))
        print(rows[-1], flush=True)
    write_report(options.out, report)


if __name__ == "__main__":
    main()
