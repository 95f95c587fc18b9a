"""Speed of NOVA's sampler against a plain loop written the way the official pipeline is.

    python benchmarks/nova_speed.py OUT.json [--threads 1] [--repeats 2] [--frames 5] [--refresh 1 4 8]

Same weights, same draws, in one process; runs alternate, so the ratio is that of one machine at one time. Times are
processor times, and ratios compare the fastest run of each, which other work on the machine disturbs the least.
The plain loop grows its cache by concatenation, embeds whole frames at every step, runs the last spatial block and the
diffusion head's patch embedding for every token, doubles the noisy input, and computes the head's condition and time
paths anew in every diffusion step. The other rows are the library's sampler: exact, and with `context_refresh`.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mutoscope.layers.attention import attention
from mutoscope.layers.diffusion import Plan
from mutoscope.layers.patchify import patchify, unpatchify
from mutoscope.models.nova import NOVA, NOVAConfig
from mutoscope.models.nova.network import Block
from mutoscope.sampling.frame_ar import FrameARSampler, FrameARSamplerConfig, FrameCondition, set_sizes
from timing import Report, write_report

MODEL = NOVAConfig(
    hidden_size=384,
    temporal_layers=8,
    temporal_heads=6,
    spatial_layers=16,
    spatial_heads=6,
    head_layers=3,
    head_size=384,
    latent_shape=(5, 32, 32),
    num_time_slots=None,
    mixer_rank=24,
    text_size=256,
    text_length=64,
)
SAMPLER = FrameARSamplerConfig(num_decoding_steps=16, num_diffusion_steps=8, guidance_scale=5.0)


class Clock:
    """Sums the processor seconds of each named part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str, function: Callable[[], Tensor]) -> Tensor:
        begin = time.process_time()
        result = function()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - begin
        return result


def plain_block(block: nn.Module, x: Tensor, past: list[Tensor] | None) -> Tensor:
    """A transformer block whose cache is a pair of tensors that grow by concatenation."""
    assert isinstance(block, Block)
    a = block.attention
    q, k, v = a.qkv(x).unflatten(-1, (3, a.heads, -1)).permute(2, 0, 3, 1, 4)
    if past is not None:
        past[:] = [k, v] if not past else [torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)]
        k, v = past
    y = a.output(attention(q, k, v, None).transpose(1, 2).flatten(2))
    x = x + block.norm1(y)
    return x + block.norm2(block.mlp_out(F.gelu(block.mlp_in(x))))


@torch.no_grad()
def plain(model: NOVA, prefix: Tensor, frames: int, generator: torch.Generator, clock: Clock) -> Tensor:
    """One clip with guidance; `prefix` holds the conditional and the unconditional row."""
    config, p = model.config, model.config.patch_size
    n, h, w = config.grid[0] * config.grid[1], *config.latent_shape[1:]
    plan = config.diffusion.plan(SAMPLER.num_diffusion_steps)
    caches: list[list[Tensor]] = [[] for _ in model.temporal_encoder.blocks]
    frames_done: list[Tensor] = []
    order = reference = None
    for t in range(frames):

        def temporal(t: int = t) -> Tensor:
            frame = frames_done[-1].repeat(2, 1, 1, 1, 1) if t else None
            x = model.slot_tokens(frame, 2, t, frames)[:, 0]
            x = torch.cat([prefix, x], 1) if t == 0 else x
            for block, past in zip(model.temporal_encoder.blocks, caches, strict=True):
                x = plain_block(block, x, past)
            return model.temporal_encoder.norm(x[:, prefix.shape[1] if t == 0 else 0 :])

        output = clock("temporal", temporal)
        reference = output if reference is None else reference
        context = output if t == 0 else model._mix(reference, output)
        if order is None:
            order = torch.rand(1, n, 1, generator=generator)[..., 0].argsort(1)
        frame, start = torch.zeros(1, config.latent_channels, 1, h, w), 0
        for size in [s for s in set_sizes(SAMPLER.num_decoding_steps, n) if s]:
            known, ids = order[:, :start], order[:, start : start + size]
            both = frame.repeat(2, 1, 1, 1, 1)
            z = clock("spatial", lambda c=context, f=both, k=known: plain_spatial(model, c, f, k))
            noise = torch.randn(1, config.latent_channels, h, w, generator=generator)[:, :, None]
            x = clock("head", lambda z=z, noise=noise, ids=ids: plain_head(model, plan, z, noise, ids))
            tokens = patchify(frame, p)[:, 0]
            chosen = ids[..., None].expand(-1, -1, tokens.shape[2])
            tokens = tokens.scatter(1, chosen, patchify(x, p)[:, 0].gather(1, chosen))
            frame, start = unpatchify(tokens[:, None], config.grid, p), start + size
        frames_done.append(frame)
    return torch.cat(frames_done, 2)


def plain_spatial(model: NOVA, context: Tensor, frame: Tensor, known: Tensor) -> Tensor:
    encoder, m = model.spatial_encoder, context.shape[1]
    known = known.repeat(2, 1)
    x = encoder.patch_embedding(patchify(frame, model.config.patch_size)[:, 0])
    hidden = torch.ones(x.shape[:2]).scatter(1, known, 0.0)[..., None]
    x = x * (1 - hidden) + model.mask_token * hidden + model._grid_features(model.config.grid)
    positions = known[..., None].expand(-1, -1, x.shape[2])
    half = len(encoder.blocks) // 2
    y = torch.cat([context, x.gather(1, positions)], 1)
    for block in encoder.blocks[:half]:
        y = plain_block(block, y, None)
    y = torch.cat([y[:, :m], x.scatter(1, positions, y[:, m:])], 1)
    for block in encoder.blocks[half:]:
        y = plain_block(block, y, None)
    return encoder.norm(y[:, m:])


def plain_head(model: NOVA, plan: Plan, z: Tensor, x: Tensor, ids: Tensor) -> Tensor:
    """All diffusion steps of one set, on whole frames."""
    head, p = model.head, model.config.patch_size
    both = ids.repeat(2, 1)
    for k in range(len(plan)):
        noisy = patchify(x.repeat(2, 1, 1, 1, 1), p)[:, 0]
        embedded = head.patch_embedding(noisy)
        wide = both[..., None].expand(-1, -1, embedded.shape[2])
        chosen = z.gather(1, both[..., None].expand(-1, -1, z.shape[2]))
        u = F.silu(head.condition(chosen) + head.time(plan.times[k].repeat(2))[:, None])
        y = embedded.gather(1, wide)
        for block in head.blocks:
            y = block(y, u)
        scale, shift = head.modulation(u).chunk(2, -1)
        y = head.output(F.layer_norm(y, y.shape[-1:], eps=1e-6) * (1 + scale) + shift)
        output = noisy.scatter(1, both[..., None].expand_as(y), y)
        conditional, unconditional = unpatchify(output[:, None], model.config.grid, p).chunk(2)
        x = plan.step(k, x, unconditional + SAMPLER.guidance_scale * (conditional - unconditional))
    return x


def library_sampler(model: NOVA, prefix: Tensor, frames: int, refresh: int) -> Tensor:
    condition = FrameCondition(prefix, torch.arange(2), num_passes=2, num_frames=frames)
    sampler = FrameARSampler(replace(SAMPLER, context_refresh=refresh))
    *_, last = sampler.sample(model, condition, torch.Generator().manual_seed(1))
    return last.proposal


def prefix_of(model: NOVA) -> Tensor:
    """A caption of random features, and the null text."""
    features = torch.randn(1, MODEL.text_length, 256, generator=torch.Generator().manual_seed(2))
    present = torch.ones(1, MODEL.text_length, dtype=torch.bool)
    return model.with_motion(torch.cat([model.text_prefix(features, present), model.null_prefix(1)]), None)


def deviation(clip: Tensor, exact: Tensor) -> dict[str, float]:
    """Largest difference of the latents, and the norm of it relative to the standard deviation of the exact ones."""
    difference = clip.float() - exact
    return {
        "largest_difference": difference.abs().max().item(),
        "relative_difference": (difference.norm() / (exact - exact.mean()).norm()).item(),
    }


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--frames", type=int, default=5)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=("float32", "bfloat16"))
    parser.add_argument("--refresh", nargs="+", type=int, default=[1, 4, 8], help="context_refresh; 1 is exact")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    model, clock = NOVA(MODEL).eval(), Clock()
    runs: dict[str, Callable[[], Tensor]] = {}

    def official() -> Tensor:
        return plain(model, prefix_of(model), arguments.frames, torch.Generator().manual_seed(1), clock)

    runs["plain float32"] = official
    for dtype in arguments.dtypes:
        network = NOVA(MODEL).eval()
        network.load_state_dict(model.state_dict())
        network.to(getattr(torch, dtype))
        for n in arguments.refresh:
            name = f"{'exact' if n == 1 else f'context_refresh {n}'} {dtype}"
            runs[name] = lambda m=network, n=n: library_sampler(m, prefix_of(m), arguments.frames, n)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    clips: dict[str, Tensor] = {}
    for _ in range(arguments.repeats):
        for name, run in runs.items():
            begin = time.process_time()
            clips[name] = run()
            seconds[name].append(time.process_time() - begin)
            print(f"{name}: {seconds[name][-1]:.2f} s of the processor", flush=True)
    fastest = {name: min(values) for name, values in seconds.items()}
    rows = {
        name: {
            "processor_seconds": seconds[name],
            "ratio": fastest[name] / fastest["plain float32"],
            **deviation(clip, clips["plain float32"]),
        }
        for name, clip in clips.items()
    }
    report: Report = {
        "machine": platform.machine(),
        "processor": processor(),
        "torch": torch.__version__,
        "threads": arguments.threads,
        "frames": arguments.frames,
        "sampler": asdict(SAMPLER),
        "parameters": sum(p.numel() for p in model.parameters()),
        "plain_parts": {name: value / arguments.repeats for name, value in clock.seconds.items()},
        "rows": rows,
    }
    write_report(arguments.out, report)
    print(json.dumps({name: row["ratio"] for name, row in rows.items()}))


def processor() -> str:
    """Name of the processor, and its instructions for products in bfloat16."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    names = [line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")]
    return " ".join([*names[:1], *(flag for flag in ("amx_bf16", "avx512_bf16") if flag in text)])


if __name__ == "__main__":
    main()
