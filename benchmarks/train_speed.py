"""Speed of training with and without `--loop.compile` and `--loop.autocast bf16`, by the recipes of "shapes".

    python benchmarks/train_speed.py OUT.json [--recipes magvit-shapes ...] [--batch 8] [--updates 6] [--threads 1]
        [--variants float32 "float32 compiled" bf16 "bf16 compiled"]

Every variant has a network, an optimiser and clips of its own, equal to those of the others at the start. Updates take
turns, so the ratio of their medians is that of one machine at one time; compiling is not part of it. One thread is
timed by the processor's clock, which other programs prolong little. `loss_difference` is the largest difference from
the losses of `float32`, relative to them.
"""

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import cast

import torch
from torch import nn

from mutoscope import hub
from mutoscope.arithmetic import CountOperations, matrix_rate
from mutoscope.data.base import ClipSource
from mutoscope.families import family_of
from mutoscope.recipes.catalog import RECIPES
from mutoscope.runs.networks import build_tokenizer
from mutoscope.runs.text import open_text_encoder
from mutoscope.runs.train import open_cache
from mutoscope.tokenizers.base import channels_last
from mutoscope.training.batches import Batch
from mutoscope.training.compiled import CompiledBlocks, active
from mutoscope.training.config import LoopConfig, ModelRecipe, TokenizerRecipe
from mutoscope.training.distributed import Process
from mutoscope.training.optim import clip_gradients, make_ema, make_optimizer, make_scheduler
from mutoscope.training.tokenizer_trainer import ReconstructionLoss
from mutoscope.training.trainer import ModelLoss
from mutoscope.training.update import Objective, Share, gradients
from mutoscope.training.utilisation import tokens_per_clip
from timing import Report, write_report

VARIANTS: dict[str, dict[str, object]] = {
    "float32": {},
    "float32 compiled": {"compile": True},
    "bf16": {"autocast": "bf16"},
    "bf16 compiled": {"autocast": "bf16", "compile": True},
}
SHAPES = ("magvit-shapes", "par-shapes-4x", "nova-shapes", "magi-shapes", "vq-shapes")
ALONE = Process(0, 1, torch.device("cpu"))
CLIPS = 64
WARMUP = 2


class Trainer:
    """The training loop without its logs: one update at a time."""

    def __init__(self, recipe: ModelRecipe | TokenizerRecipe, loop: LoopConfig, objective: Objective, model: nn.Module):
        self.loop, self.objective, self.share = loop, objective.train(), Share(loop, ALONE)
        self.optimizer = make_optimizer(objective, recipe.optim)
        self.scheduler = make_scheduler(self.optimizer, recipe.optim, recipe.loop.num_steps)
        self.ema, self.model = make_ema(model, loop.ema_decay, loop.ema_warmup), model
        self.blocks = CompiledBlocks(model, print) if loop.compile else None
        self.step = 0

    def update(self, batch: Batch, compiled: bool = True) -> float:
        with active(self.blocks, wanted=compiled):
            losses = gradients(self.objective, self.objective, batch, self.step, self.share)
        clip_gradients(self.objective, self.loop.clip_norm)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update_parameters(self.model)
        self.step += 1
        return losses["loss"].item()


def setup(
    recipe: ModelRecipe | TokenizerRecipe, folder: Path
) -> tuple[Callable[[], tuple[Objective, nn.Module]], Callable[[list[int], int], Batch]]:
    """A function that builds the network with its first weights, and one that reads the batch of an update."""
    if isinstance(recipe, TokenizerRecipe):
        clips = cast("ClipSource[Batch]", recipe.data.open())

        def build_first() -> tuple[Objective, nn.Module]:
            tokenizer = build_tokenizer(recipe.tokenizer)
            return channels_last(ReconstructionLoss(tokenizer)), tokenizer

        return build_first, lambda indices, step: {**clips[indices], "step": step}
    recipe = replace(recipe, cache_clips=CLIPS, loop=replace(recipe.loop, validation_share=0.0))
    text = open_text_encoder(recipe, folder, ALONE)
    cache = open_cache(recipe, hub.load_tokenizer(recipe.tokenizer), folder, ALONE, text)
    family = family_of(recipe.model)
    prepare = family.batch_step(recipe.model, {next(iter(recipe.task_weights)): 1.0})

    def build() -> tuple[Objective, nn.Module]:
        model = family.network(recipe.model)
        return ModelLoss(model), model

    return build, lambda indices, step: prepare(cache[indices], step)


def row(name: str, batch_size: int, updates: int, variants: list[str]) -> Report:
    recipe = RECIPES[name]()
    assert isinstance(recipe, ModelRecipe | TokenizerRecipe)
    trainers: dict[str, Trainer] = {}
    with tempfile.TemporaryDirectory() as folder:
        build, read = setup(recipe, Path(folder))
        clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
        for variant in variants:
            options = VARIANTS[variant]
            torch.manual_seed(0)
            loop = replace(recipe.loop, batch_size=batch_size, **options)  # type: ignore[arg-type]
            trainers[variant] = Trainer(recipe, loop, *build())
        times: dict[str, list[float]] = {variant: [] for variant in trainers}
        losses: dict[str, list[float]] = {variant: [] for variant in trainers}
        for step in range(WARMUP + updates):
            batch = read([(step * batch_size + i) % CLIPS for i in range(batch_size)], step)
            for variant, trainer in trainers.items():
                begin = clock()
                losses[variant].append(trainer.update(batch))
                if step >= WARMUP:
                    times[variant].append(clock() - begin)
        with CountOperations() as counter:
            trainers["float32"].update(batch, compiled=False)
    seconds = {variant: median(values) for variant, values in times.items()}
    base, tokens = seconds["float32"], tokens_per_clip(recipe)
    rates = {"float32": matrix_rate(ALONE.device), "bf16": matrix_rate(ALONE.device, "bfloat16")}
    rows = {
        variant: {
            "seconds_per_update": round(value, 4),
            "fastest": round(min(times[variant]), 4),
            "clips_per_second": round(batch_size / value, 2),
            "tokens_per_second": None if tokens is None else round(tokens * batch_size / value),
            "times_faster": round(base / value, 3),
            "model_flops_use": round(counter.found.total / value / rates[variant.split()[0]], 3),
            "loss_difference": max(abs(a / b - 1) for a, b in zip(losses[variant], losses["float32"], strict=True)),
        }
        for variant, value in seconds.items()
    }
    return {"recipe": name, "batch": batch_size, "gflop_per_update": round(counter.found.total / 1e9, 2), "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--recipes", nargs="+", default=SHAPES)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--updates", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    report: Report = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "threads": options.threads,
        "updates": options.updates,
    }
    found: list[Report] = []
    for name in options.recipes:
        found.append(row(name, options.batch, options.updates, options.variants))
        print(found[-1], flush=True)
        write_report(options.out, report | {"recipes": found})


if __name__ == "__main__":
    main()
