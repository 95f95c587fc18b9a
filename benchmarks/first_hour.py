"""Exported weights early in a run, against raw weights and the average with a constant decay.

    python benchmarks/first_hour.py OUT.json [--recipes vq-shapes vae-shapes magi-shapes] [--updates 50 100 200 400]

Each recipe trains as it is for the last number of updates, at the learning rate that its full schedule has there (the
warm-up, then the peak), models with `--batch-size` clips from a cache of `--cache-clips`. The loop chooses between raw
and averaged weights by its own held-back clips; the report measures all of them on other clips that neither training
nor that choice has seen: loss for models, PSNR in dB for tokenizers.
"""

import argparse
import platform
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import nn

from mutoscope import hub
from mutoscope.data.base import ClipBatch, ClipSource, TokenBatch
from mutoscope.data.sources.shapes.source import ShapesData
from mutoscope.data.sources.shapes.world import HELD_BACK_SEED
from mutoscope.families import family_of
from mutoscope.recipes.catalog import RECIPES
from mutoscope.runs.networks import build_tokenizer
from mutoscope.runs.tokenize import tokenize
from mutoscope.runs.train import flushed_denormals
from mutoscope.training.config import LoopConfig, ModelRecipe, TokenizerRecipe
from mutoscope.training.optim import make_ema
from mutoscope.training.tokenizer_trainer import tokenizer_figures, train_tokenizer
from mutoscope.training.trainer import model_figures, train_model
from mutoscope.training.validation import Validation, ValidationRule
from timing import Report, write_report

CPU = torch.device("cpu")
NUM_CLIPS = 64  # that everything is measured on
SHARE = 0.1  # of a small cache that the loop holds back
FIGURES = ("psnr", "loss")  # the first that a network has is reported


class Watch:
    """A tracker that follows the raw weights with both rules of the average and measures all at some updates."""

    def __init__(self, network: nn.Module, loop: LoopConfig, others: Validation, updates: Sequence[int]):
        self.network, self.others, self.updates, self.rows = network, others, updates, list[Report]()
        self.warmed, self.constant = (make_ema(network, loop.ema_decay, warmup) for warmup in (True, False))

    def log(self, step: int, values: dict[str, float]) -> None:
        assert self.warmed is not None and self.constant is not None
        for average in (self.warmed, self.constant):
            average.update_parameters(self.network)
        if step + 1 in self.updates:
            networks = {"raw": self.network, "averaged": self.warmed.module, "constant_decay": self.constant.module}
            found = {kind: self.others.measure(network) for kind, network in networks.items()}
            name = next(name for name in FIGURES if name in found["raw"])
            kind = "averaged" if values["exports_averaged_weights"] else "raw"
            row: Report = {"updates": step + 1, "figure": name, "exported_weights": kind}
            row |= {kind: round(figures[name], 4) for kind, figures in found.items()}
            self.rows.append(row | {"exported_minus_raw": round(found[kind][name] - found["raw"][name], 4)})

    def image(self, step: int, name: str, image: UInt8[np.ndarray, "h w 3"]) -> None:
        """Nothing to keep: only numbers are compared."""

    def close(self) -> None:
        """Nothing is buffered."""


def early_loop(loop: LoopConfig, updates: Sequence[int], **changes: float) -> LoopConfig:
    """The beginning of a run, validated at these updates."""
    every = int(np.gcd.reduce(updates))
    return replace(loop, num_steps=max(updates), log_every=1, validate_every=every, validation_clips=32, **changes)


def tokenizer_rows(recipe: TokenizerRecipe, updates: Sequence[int], out: Path) -> list[Report]:
    """A tokenizer's PSNR at these updates."""
    loop = early_loop(recipe.loop, updates)
    recipe = replace(recipe, loop=loop, optim=replace(recipe.optim, schedule="constant"))
    torch.manual_seed(loop.seed)
    tokenizer = build_tokenizer(recipe.tokenizer)
    others = replace(recipe.data, seed=HELD_BACK_SEED).open()
    validation = Validation(first_clips(others), ValidationRule(tokenizer_figures), measured(loop), CPU, unchanged)
    watch = Watch(tokenizer, loop, validation, updates)
    train_tokenizer(tokenizer, recipe, recipe.data.open(), out, trackers=[watch], device=CPU)
    return watch.rows


def model_rows(
    recipe: ModelRecipe, updates: Sequence[int], out: Path, batch_size: int, cache_clips: int
) -> list[Report]:
    """A model's loss at these updates."""
    loop = early_loop(recipe.loop, updates, batch_size=batch_size, validation_share=SHARE)
    recipe = replace(recipe, loop=loop, optim=replace(recipe.optim, schedule="constant"))
    tokenizer = hub.load_tokenizer(recipe.tokenizer)
    family = family_of(recipe.model)

    def cache(name: str, source: ClipSource[ClipBatch], num_clips: int) -> ClipSource[TokenBatch]:
        options = {"num_clips": num_clips, "fields": recipe.model.clip_fields}
        return tokenize(tokenizer, recipe.tokenizer, source, out / name, **options)

    training = cache("training", recipe.data.open(), cache_clips)
    others = cache("others", replace(recipe.data, seed=HELD_BACK_SEED).open(), NUM_CLIPS)
    torch.manual_seed(loop.seed)
    model = family.network(recipe.model)
    prepare = family.batch_step(recipe.model, recipe.task_weights)
    validation = Validation(others, ValidationRule(model_figures), measured(loop), CPU, prepare)
    watch = Watch(model, loop, validation, updates)
    train_model(model, recipe, training, out / "run", prepare_batch=prepare, trackers=[watch], device=CPU)
    return watch.rows


def first_clips(source: ClipSource[ClipBatch]) -> ClipSource[ClipBatch]:
    """The first clips of an endless dataset."""
    return source.among(np.arange(NUM_CLIPS))


def measured(loop: LoopConfig) -> LoopConfig:
    return replace(loop, validation_clips=NUM_CLIPS)


def unchanged(batch: ClipBatch, step: int) -> ClipBatch:
    return batch


def rows(name: str, options: argparse.Namespace) -> Report:
    """The report of one recipe on the synthetic dataset."""
    recipe = RECIPES[name]()
    assert isinstance(recipe.data, ShapesData)
    with tempfile.TemporaryDirectory() as folder, flushed_denormals():
        if isinstance(recipe, TokenizerRecipe):
            found, batch = tokenizer_rows(recipe, options.updates, Path(folder)), recipe.loop.batch_size
        else:
            assert isinstance(recipe, ModelRecipe)
            batch = options.batch_size
            found = model_rows(recipe, options.updates, Path(folder), batch, options.cache_clips)
    return {"recipe": name, "batch_size": batch, "rows": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--recipes", nargs="+", default=["vq-shapes", "magi-shapes"])
    parser.add_argument("--updates", nargs="+", type=int, default=[50, 100, 200, 400])
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--cache-clips", type=int, default=400)
    options = parser.parse_args()
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    report: Report = {"machine": machine, "dtype": "float32", "measured_clips": NUM_CLIPS}
    report["recipes"] = [rows(name, options) for name in options.recipes]
    write_report(options.out, report)


if __name__ == "__main__":
    main()
