"""The training loop, and stage 2, which trains any module with `.loss(batch, generator)`.

Stage 1, the tokenizer, uses the same loop from `tokenizer_trainer.py`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from mutoscope.data.base import BatchT, ClipSource
from mutoscope.data.loader import StepSampler, make_loader
from mutoscope.errors import UserError
from mutoscope.training.callbacks import Batch, Callback, Recorder, StopSignals, due
from mutoscope.training.checkpoint import Stateful, save_checkpoint, start_or_resume, write_recipe
from mutoscope.training.config import FeaturesRecipe, LoopConfig, ModelRecipe, Recipe, completed, to_json
from mutoscope.training.distributed import Process, any_rank, join, no_sync, wrap
from mutoscope.training.optim import clip_gradients, make_ema, make_optimizer, make_scheduler, set_learning_rate
from mutoscope.training.tracking import JsonlTracker, Tracker, check_trackers, open_trackers


@dataclass(frozen=True)
class TrainResult:
    """network: the weights to export, averaged ones where the recipe keeps them. finished: False after a signal."""

    network: nn.Module
    steps_done: int
    finished: bool


class ModelLoss(nn.Module):
    """`model.loss` as a forward pass, so that data parallelism can wrap it."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        return self.model.loss(batch, generator)


def train_model(
    model: nn.Module,
    recipe: ModelRecipe | FeaturesRecipe,
    source: ClipSource[BatchT],
    out: str | Path,
    *,
    prepare_batch: Callable[[BatchT, int], Batch] = lambda batch, step: batch,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    trackers: Sequence[Tracker] = (),
    device: str | torch.device | None = None,
) -> TrainResult:
    """Trains `model` in place on its `.loss(batch, generator)`; returns what to export.

    The loss must be a mean over the clips of a batch: then micro-batches and ranks average to the same gradient as
    one large batch. `prepare_batch(batch, step)` may add fields that depend on the step, such as the task.
    Writes `log.jsonl`, `checkpoints/` and `samples/` below `out`, and reports to the trackers that the recipe names.
    With `resume`, continues the newest good checkpoint there; on CPU the continued run equals an uninterrupted one bit
    for bit.
    Raises UserError for a changed recipe, a full disk, damaged checkpoints or a diverging loss.
    """
    return run_loop(
        model,
        ModelLoss(model),
        recipe,
        source,
        out,
        prepare_batch=prepare_batch,
        resume=resume,
        callbacks=callbacks,
        trackers=trackers,
        device=device,
    )


def run_loop(
    model: nn.Module,
    loss_module: nn.Module,
    recipe: Recipe,
    source: ClipSource[BatchT],
    out: str | Path,
    *,
    prepare_batch: Callable[[BatchT, int], Batch] = lambda batch, step: batch,
    resume: bool,
    callbacks: Sequence[Callback],
    trackers: Sequence[Tracker],
    device: str | torch.device | None,
    clip_groups: Sequence[nn.Module] | None = None,
) -> TrainResult:
    """Updates the weights of `loss_module`, whose forward pass returns the loss and its named parts.

    `model` is the part of it that is averaged, shown to callbacks and returned; the rest, such as a discriminator, is
    stored in the checkpoints only. clip_groups: networks whose gradients are clipped separately.
    """
    loop, out, settings = recipe.loop, Path(out), to_json(recipe)
    process = join(device)
    check_batch(loop, process)
    check_trackers(loop.report_to)
    with StopSignals() as stop:
        loss_module.to(process.device).train()
        optimizer = make_optimizer(loss_module, recipe.optim)
        scheduler = make_scheduler(optimizer, recipe.optim, loop.num_steps)
        ema = make_ema(model, loop.ema_decay)
        generator = torch.Generator(process.device)
        parts: dict[str, Stateful] = {"model": loss_module, "optimizer": optimizer, "scheduler": scheduler}
        parts |= {"ema": ema} if ema else {}
        start = start_or_resume(
            out / "checkpoints", settings, parts, generator, resume, process.device, partial(completed, like=recipe)
        )
        set_learning_rate(optimizer, scheduler, start)
        exported = ema.module if ema else model
        objective = wrap(loss_module, process)
        sampler = StepSampler(
            source.num_clips, loop.batch_size, loop.num_steps, loop.seed, start, process.rank, process.world_size
        )
        if process.is_main:
            write_recipe(out, settings)
            requested = open_trackers(loop.report_to, out, recipe.name, settings, start)
            trackers = [JsonlTracker(out / "log.jsonl", start), *requested, *trackers]
        with Recorder(out, loop, start, process, trackers) as recorder:
            for step, batch in enumerate(make_loader(source, sampler, loop.num_workers, loop.seed), start=start):
                prepared = prepare_batch(to_device(batch, process.device), step)
                seed_step(generator, loop.seed, step, process.rank)
                losses: dict[str, Tensor] = {}
                for i, micro_batch in enumerate(split_batch(prepared, loop.accumulation)):
                    with no_sync(objective, last=i + 1 == loop.accumulation):
                        with autocast(loop, process.device):
                            loss, named = objective(micro_batch, generator)
                        (loss / loop.accumulation).backward()
                    add_losses(losses, {"loss": loss} | named, loop.accumulation)
                grad_norm = clip_gradients(loss_module, loop.clip_norm, clip_groups)
                learning_rate = optimizer.param_groups[0]["lr"]
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad(set_to_none=True)
                if ema and (step + 1) % loop.ema_every == 0:
                    ema.update_parameters(model)

                recorder.record(step, losses, learning_rate, grad_norm)
                if due(step, loop.sample_every, loop.num_steps):
                    recorder.notify(callbacks, step + 1, exported, prepared)
                stopping = any_rank(stop.requested, process)
                if process.is_main and (stopping or due(step, loop.checkpoint_every, loop.num_steps)):
                    save_checkpoint(out / "checkpoints", step + 1, parts, generator, settings)
                if stopping:
                    return TrainResult(exported, step + 1, finished=step + 1 == loop.num_steps)
    return TrainResult(exported, loop.num_steps, finished=True)


def check_batch(loop: LoopConfig, process: Process) -> None:
    """Raises UserError unless the batch splits evenly; unequal parts would weigh clips unequally."""
    parts = process.world_size * loop.accumulation
    if loop.batch_size % parts:
        raise UserError(
            f"loop.batch_size {loop.batch_size} does not split into {process.world_size} ranks x {loop.accumulation} "
            f"micro-batches (loop.accumulation); use a multiple of {parts}."
        )


def seed_step(generator: torch.Generator, seed: int, step: int, rank: int) -> None:
    """Sets `generator` and torch's global one (dropout) to a pure function of (seed, step, rank).

    Draws of a callback, of an earlier rank layout or before an interruption then cannot change this update.
    """
    own, dropout = np.random.SeedSequence([seed, step, rank]).generate_state(2, np.uint64)
    generator.manual_seed(int(own >> 1))
    torch.manual_seed(int(dropout >> 1))


def autocast(loop: LoopConfig, device: torch.device) -> AbstractContextManager:
    """bfloat16 matrix products and convolutions if the recipe says so."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=loop.autocast == "bf16")


def to_device(batch: BatchT, device: torch.device) -> BatchT:
    """Every tensor of a (nested) batch on `device`."""
    return cast(BatchT, _map_tensors(batch, lambda tensor: tensor.to(device, non_blocking=True)))


def split_batch(batch: Batch, parts: int) -> Iterator[Batch]:
    """Consecutive equal slices of every tensor; values that are no tensors (the task) go into each slice."""
    for i in range(parts):
        yield _map_tensors(batch, lambda tensor, i=i: tensor.chunk(parts)[i])


def _map_tensors(batch: Batch, function: Callable[[Tensor], Tensor]) -> Batch:
    def convert(value: object) -> object:
        if isinstance(value, Tensor):
            return function(value)
        return _map_tensors(value, function) if isinstance(value, Mapping) else value

    return {name: convert(value) for name, value in batch.items()}


def add_losses(total: dict[str, Tensor], named: dict[str, Tensor], parts: int) -> None:
    """Adds this micro-batch's share to the named losses of the update, without waiting for the device."""
    for name, value in named.items():
        share = value.detach() / parts
        total[name] = total[name] + share if name in total else share
