"""Speed of FAR's sampler beside a plain loop, and the cost of long context, with random weights.

    python benchmarks/far_speed.py OUT.json [--width 768] [--layers 2] [--steps 4] [--threads 1] [--frames 16 64]

Parts of the report:
  loop     processor seconds of one clip by the sampler and by a plain loop that computes as the published code does:
           modulation of every token, a dense mask in every pass, keys rotated anew in every step, and what the cache
           lacks read in the same pass as the first step; short model, both with a cache; and the largest difference
           between the two clips
  context  processor seconds per frame and bytes of the cache against the number of frames, for a short and a long
           model of the same width, and for the long one without a cache, as its published evaluation runs

Both sides of `loop` take turns in one process. The time of a frame is proportional to the number of layers.
"""

import argparse
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from mutoscope.layers.positions import rotate
from mutoscope.models.far import FAR, FARCache, FARConfig, FrameConditions
from mutoscope.models.far.network import EPS, Block
from mutoscope.sampling.frame_flow import FlowCondition, FrameFlowSampler, FrameFlowSamplerConfig
from timing import Report, write_report

REPEATS = 3
CLEAN = -1.0


@dataclass
class PlainCache:
    """Keys before their rotation and values of every layer, and what is needed to rotate them."""

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    num_frames: int = 0


def plain_pass(model: FAR, cache: PlainCache, latents: Tensor, times: Tensor) -> Tensor:
    """Velocity of the last frame; `latents` are the frames that the cache lacks, the noisy one last."""
    _, _, f, height, width = latents.shape
    x = model.embed(latents)
    n, first = x.shape[2], cache.num_frames
    x = x.flatten(1, 2)
    numbers = torch.arange(first + f)
    rotation = model.rotation(numbers, (height, width), model.config.patch_size)
    frames = numbers.repeat_interleave(n)
    mask = torch.zeros(f * n, (first + f) * n).masked_fill(frames > frames[-f * n :, None], -torch.inf)
    # One vector per token.
    vector = model.vectors(times, FrameConditions()).repeat_interleave(n, dim=1)
    keys, values = [], []
    for layer, block in enumerate(model.blocks):
        assert isinstance(block, Block) and block.heads.output is not None
        chunk = block.modulation(vector).chunk(6, dim=-1)
        normed = F.layer_norm(x, x.shape[-1:], eps=EPS) * (1 + chunk[1]) + chunk[0]
        q, k, v = rearrange(block.heads.qkv(normed), "b l (t h c) -> t b h l c", t=3, h=model.config.num_heads)
        q, k = block.heads.query_norm(q), block.heads.key_norm(k)
        if first:
            k, v = torch.cat([cache.keys[layer], k], 2), torch.cat([cache.values[layer], v], 2)
        keys.append(k)
        values.append(v)
        q, rotated = rotate(q, rotation[-f * n :]), rotate(k, rotation)
        out = F.scaled_dot_product_attention(q, rotated, v, attn_mask=mask)
        x = x + chunk[2] * block.heads.output(rearrange(out, "b h l c -> b l (h c)"))
        normed = F.layer_norm(x, x.shape[-1:], eps=EPS) * (1 + chunk[4]) + chunk[3]
        x = x + chunk[5] * block.mlp_out(F.gelu(block.mlp_in(normed), approximate="tanh"))
    if f > 1:  # all frames but the noisy one
        cache.keys, cache.values = [k[:, :, :-n] for k in keys], [v[:, :, :-n] for v in values]
        cache.num_frames = first + f - 1
    scale, shift = model.modulation(vector).chunk(2, dim=-1)
    tokens = model.output(F.layer_norm(x, x.shape[-1:], eps=EPS) * (1 + scale) + shift)[:, -n:]
    return model.to_frames(tokens[:, None], height // model.config.patch_size)


@torch.no_grad()
def plain_clip(model: FAR, num_frames: int, steps: int, noise: Tensor) -> Tensor:
    """A whole clip, with a cache."""
    plan, cache = model.config.diffusion.plan(steps), PlainCache()
    frames: list[Tensor] = []
    for frame in range(num_frames):
        x = noise[:, :, frame : frame + 1]
        for k in range(steps):
            new = torch.cat([*frames[cache.num_frames :], x], dim=2)
            times = torch.full((len(x), new.shape[2]), CLEAN)
            times[:, -1] = plan.times[k]
            x = plan.step(k, x, plain_pass(model, cache, new, times))
        frames.append(x)
    return torch.cat(frames, dim=2)


class WithNoise(FrameFlowSampler[FrameConditions, FARCache]):
    """The sampler with noise that is known before."""

    def __init__(self, config: FrameFlowSamplerConfig, noise: Tensor) -> None:
        super().__init__(config)
        self.known = noise

    def noise(self, shape: tuple[int, ...], frame: int, generator: torch.Generator) -> Tensor:
        return self.known[:, :, frame : frame + 1]


def our_clip(model: FAR, num_frames: int, steps: int, noise: Tensor) -> Tensor:
    """The same clip by the sampler."""
    sampler = WithNoise(FrameFlowSamplerConfig(num_decoding_steps=steps), noise)
    condition = FlowCondition(lambda frame: FrameConditions(), len(noise), num_frames)
    *_, last = sampler.sample(model, condition, torch.Generator())
    return last.proposal


def random_model(width: int, layers: int, num_frames: int, is_long: bool = False) -> FAR:
    """Random weights of which none is zero: at its start the output of a network is."""
    torch.manual_seed(0)
    patch_size, shape = (4 if is_long else None), (num_frames, 8, 8)
    config = FARConfig(hidden_size=width, num_layers=layers, latent_shape=shape, coarse_patch_size=patch_size)
    model = FAR(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
    return model


def seconds(call: Callable[[], object]) -> float:
    """Processor seconds of all threads, which other load on the machine hardly changes."""
    begin = time.process_time()
    call()
    return time.process_time() - begin


def loop(width: int, layers: int, num_frames: int, steps: int) -> Report:
    """The sampler beside the plain loop."""
    model, noise = random_model(width, layers, num_frames), torch.randn(1, 32, num_frames, 8, 8)
    ours, plain = our_clip(model, num_frames, steps, noise), plain_clip(model, num_frames, steps, noise)
    times: dict[str, list[float]] = {"ours": [], "plain": []}
    for _ in range(REPEATS):
        times["ours"].append(seconds(lambda: our_clip(model, num_frames, steps, noise)))
        times["plain"].append(seconds(lambda: plain_clip(model, num_frames, steps, noise)))
    ratio = median(ours / plain for ours, plain in zip(times["ours"], times["plain"], strict=True))
    return {
        "frames": num_frames,
        "steps": steps,
        "seconds": {name: round(median(values), 4) for name, values in times.items()},
        "ratio": round(ratio, 3),
        "largest_difference": float((ours - plain).abs().max()),
    }


def context(width: int, layers: int, lengths: list[int], steps: int) -> list[Report]:
    """Cost of a frame that sees `length − 1` others, once these are read."""
    rows: list[Report] = []
    for length in lengths:
        row: Report = {"frames": length}
        for name, is_long, use_cache in (("short", False, True), ("long", True, True), ("long_no_cache", True, False)):
            model = random_model(width, layers, length, is_long)
            config = FrameFlowSamplerConfig(num_decoding_steps=steps, use_cache=use_cache)
            latents = torch.randn(1, 32, length - 2, 8, 8)
            condition = FlowCondition(lambda frame: FrameConditions(), 1, length, latents)
            events = FrameFlowSampler[FrameConditions, FARCache](config).sample(model, condition, torch.Generator())
            read = seconds(lambda events=events: [next(events) for _ in range(steps)])
            row[name] = {"seconds_first_frame": round(read, 4), "seconds": round(seconds(lambda e=events: list(e)), 4)}
            if use_cache:
                cache = model.reserve(1, length)
                row[f"{name}_cache_bytes"] = cache.keys.nbytes + cache.values.nbytes
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--loop-frames", type=int, default=8)
    parser.add_argument("--frames", type=int, nargs="+", default=[16, 64])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    report: Report = {
        "machine": platform.processor() or platform.machine(),
        "threads": args.threads,
        "width": args.width,
        "layers": args.layers,
        "loop": loop(args.width, args.layers, args.loop_frames, args.steps),
    }
    write_report(args.out, report)
    report["context"] = context(args.width, args.layers, args.frames, args.steps)
    write_report(args.out, report)


if __name__ == "__main__":
    main()
