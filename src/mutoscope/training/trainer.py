"""The training loop, and stage 2, which trains any module with `.loss(batch, generator)`.

Stage 1, the tokenizer, uses the same loop from `tokenizer_trainer.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from mutoscope.data.base import BatchT, ClipSource
from mutoscope.data.held_back import split_clips
from mutoscope.data.loader import StepSampler, make_loader
from mutoscope.errors import UserError
from mutoscope.layers.batch_means import WholeMean, all_at_hand
from mutoscope.layers.draws import Draws
from mutoscope.terminal import lasting_output
from mutoscope.training.batches import Batch, autocast, to_device
from mutoscope.training.callbacks import Callback, Recorder, due, due_early
from mutoscope.training.checkpoint import CHECKPOINTS, Stateful, save_checkpoint, start_or_resume, write_recipe
from mutoscope.training.compiled import CompiledBlocks, active
from mutoscope.training.config import FeaturesRecipe, LoopConfig, ModelRecipe, Recipe, completed, to_json
from mutoscope.training.distributed import Process, barrier, exchange, join, largest_over_ranks, wrap
from mutoscope.training.health import Health
from mutoscope.training.keeping import CheckpointKeeper
from mutoscope.training.optim import clip_gradients, make_ema, make_optimizer, make_scheduler, set_learning_rate
from mutoscope.training.signals import NOTHING, SAVE, STOP, StopSignals
from mutoscope.training.tracking import (
    LOG,
    JsonlTracker,
    Tracker,
    announce,
    check_trackers,
    open_trackers,
    read_log,
)
from mutoscope.training.update import Objective, Share, gradients
from mutoscope.training.utilisation import Utilisation, tokens_per_clip
from mutoscope.training.validation import Candidates, Figures, Validation, ValidationRule, WeightsKind

Corrupt = Callable[[Batch, int, Draws], Batch]
"""Changes a batch of training by the weights of the moment: (batch, step, draws)."""


@dataclass(frozen=True)
class TrainResult:
    """network: the weights to export. finished: False after a signal.

    kind: "raw" or "averaged". figures: what was measured on held-back clips, by kind; empty without validation.
    """

    network: nn.Module
    steps_done: int
    finished: bool
    kind: WeightsKind = "raw"
    figures: Mapping[WeightsKind, Figures] = field(default_factory=dict)


class ModelLoss(Objective):
    """`model.loss` as a forward pass. It depends on no mean over the whole batch."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, draws: Draws, whole: WholeMean = all_at_hand) -> tuple[Tensor, dict[str, Tensor]]:
        return self.model.loss(batch, draws)


def model_figures(model: nn.Module, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
    """The training loss of a model on held-back clips."""
    return {"loss": model.loss(batch, generator)[0]}


def train_model(
    model: nn.Module,
    recipe: ModelRecipe | FeaturesRecipe,
    source: ClipSource[BatchT],
    out: str | Path,
    *,
    prepare_batch: Callable[[BatchT, int], Batch] = lambda batch, step: batch,
    corrupt: Corrupt | None = None,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    trackers: Sequence[Tracker] = (),
    device: str | torch.device | None = None,
) -> TrainResult:
    """Trains `model` in place on its `.loss(batch, generator)`; returns what to export.

    The loss must be a mean over the clips of a batch, and a clip's draws must come from its own generator
    (`mutoscope.layers.draws`): then micro-batches and ranks average to the same loss as one large batch.
    `prepare_batch(batch, step)` may add fields that depend on the step, such as the task.
    `corrupt(batch, step, draws)` may change batches of training by the weights of the moment, and never those of
    validation.
    Writes `log.jsonl`, `curve.png`, `checkpoints/` and `samples/` below `out`, and reports to the trackers that the
    recipe names. With `loop.validation_share`, whole recordings of `source` are held back (`data/held_back.py`), the
    loss on them is logged, and the better of raw and averaged weights is returned.
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
        rule=ValidationRule(model_figures),
        prepare_batch=prepare_batch,
        corrupt=corrupt,
        resume=resume,
        callbacks=callbacks,
        trackers=trackers,
        device=device,
    )


@lasting_output()
def run_loop(
    model: nn.Module,
    loss_module: Objective,
    recipe: Recipe,
    source: ClipSource[BatchT],
    out: str | Path,
    *,
    rule: ValidationRule,
    prepare_batch: Callable[[BatchT, int], Batch] = lambda batch, step: batch,
    corrupt: Corrupt | None = None,
    resume: bool,
    callbacks: Sequence[Callback],
    trackers: Sequence[Tracker],
    device: str | torch.device | None,
    clip_groups: Sequence[nn.Module] | None = None,
) -> TrainResult:
    """Updates the weights of `loss_module`, whose forward pass returns the loss and its named parts.

    `model` is the part of it that is averaged, shown to callbacks and returned; the rest, such as a discriminator, is
    stored in the checkpoints only. rule: what is measured on held-back clips. clip_groups: networks whose gradients are
    clipped separately.
    """
    loop, out, settings = recipe.loop, Path(out), to_json(recipe)
    process = join(device)
    check_batch(loop, process)
    check_trackers(loop.report_to)
    with StopSignals() as stop:
        loss_module.to(process.device).train()
        optimizer = make_optimizer(loss_module, recipe.optim)
        scheduler = make_scheduler(optimizer, recipe.optim, loop.num_steps)
        ema = make_ema(model, loop.ema_decay, loop.ema_warmup)
        generator = torch.Generator(process.device)  # part of a checkpoint; every update seeds draws of its own
        parts: dict[str, Stateful] = {"model": loss_module, "optimizer": optimizer, "scheduler": scheduler}
        parts |= {"ema": ema} if ema else {}
        start = start_or_resume(
            out / CHECKPOINTS, settings, parts, generator, resume, process.device, partial(completed, like=recipe)
        )
        check_same_start(start, process)
        set_learning_rate(optimizer, scheduler, start)
        objective = wrap(loss_module, process)
        split = split_clips(source, loop.validation_share, loop.seed)
        validation = None
        if split is not None and process.is_main:  # the others wait at the next exchange of gradients
            validation = Validation(split.held_back, rule, loop, process.device, prepare_batch)
            announce(split.note)
        candidates = Candidates(model, ema, validation)
        training = source if split is None else split.training
        share = Share(loop, process)
        sampler = StepSampler(
            training.num_clips, loop.batch_size, loop.num_steps, loop.seed, start, process.rank, process.world_size
        )
        if process.is_main:
            write_recipe(out, settings)
            requested = open_trackers(loop.report_to, out, recipe.name, settings, start)
            trackers = [JsonlTracker(out / LOG, start), *requested, *trackers]
        keeper = CheckpointKeeper(
            out / CHECKPOINTS,
            loop,
            start,
            Health(read_log(out / LOG)),
            lambda steps_done, spare: save_checkpoint(
                out / CHECKPOINTS, steps_done, parts, generator, settings, loop.checkpoints_total_limit, spare
            ),
        )
        use = Utilisation(loop, process.device, tokens_per_clip(recipe))
        with Recorder(out, loop, start, process, trackers, keeper.after_divergence, use) as recorder:
            compiled = CompiledBlocks(model, recorder.say) if loop.compile else None
            batches = recorder.shares.reading(make_loader(training, sampler, loop.num_workers, loop.seed))
            for step, batch in enumerate(batches, start=start):
                prepared = prepare_batch(to_device(batch, process.device), step)
                if corrupt is not None:
                    with autocast(loop, process.device):
                        prepared = corrupt(prepared, step, share.corruption_draws(step))
                with exchange(process), use.counting() as counted, active(compiled, wanted=not counted):
                    losses = gradients(loss_module, objective, prepared, step, share)
                grad_norm = clip_gradients(loss_module, loop.clip_norm, clip_groups)
                learning_rate = optimizer.param_groups[0]["lr"]
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad(set_to_none=True)
                loss_module.updated()
                if ema and (step + 1) % loop.ema_every == 0:
                    ema.update_parameters(model)

                shown = due_early(step, loop.sample_every, loop.num_steps)
                validated = split is not None and (shown or due(step, loop.validate_every, loop.num_steps))
                if process.is_main:
                    keeper.observe(step, losses["loss"], grad_norm)
                own_request = max(stop.take(), SAVE if process.is_main and keeper.is_due() else NOTHING)
                request = largest_over_ranks(own_request, process)
                saved = request != NOTHING or due(step, loop.checkpoint_every, loop.num_steps)
                validate = candidates.validate if validated else None
                recorder.record(step, losses, learning_rate, grad_norm, validate, saved)
                works_alone = shown or validated or saved
                if works_alone and recorder.sheets_due(step, shown):
                    recorder.notify(callbacks, step + 1, candidates.network, prepared)
                is_regular = validation is not None and due(step, loop.validate_every, loop.num_steps)
                is_best = is_regular and keeper.improves(candidates.cost)
                if process.is_main and (saved or is_best):
                    with recorder.saving():
                        keeper.save_best(step + 1, candidates.cost) if is_best else keeper.save(step + 1)
                if stop.name and request != NOTHING:  # one that came since is for the next update
                    recorder.say(f"{stop.take_name()}: checkpoint saved after update {step + 1:,}.")
                if shown or saved:
                    recorder.draw_curve()
                if works_alone:
                    barrier(process)  # until the main process has done what it does alone
                if request == STOP and step + 1 < loop.num_steps:
                    return TrainResult(candidates.network, step + 1, finished=False, kind=candidates.kind)
            if start >= loop.num_steps:  # killed before its last curve
                recorder.draw_curve()
        if validation is not None:
            if not candidates.figures:  # a finished run that was resumed: chosen again as at its last update
                candidates.validate()
            announce(candidates.report())
    return TrainResult(candidates.network, loop.num_steps, True, candidates.kind, candidates.figures)


def check_same_start(start: int, process: Process) -> None:
    """Raises UserError where ranks would continue from different checkpoints, whose optimisers would differ for good.

    A network file system may show a new file on one host later than on another one.
    """
    latest, earliest = largest_over_ranks(start, process), -largest_over_ranks(-start, process)
    if latest != earliest:
        raise UserError(
            f"The processes find different newest checkpoints, after {earliest:,} and {latest:,} updates: start again "
            "once all of them see the same files."
            if process.is_main
            else ""
        )


def check_batch(loop: LoopConfig, process: Process) -> None:
    """Raises UserError unless the batch splits evenly; unequal parts would weigh clips unequally."""
    parts = process.world_size * loop.accumulation
    if loop.batch_size % parts:
        raise UserError(
            f"loop.batch_size {loop.batch_size} does not split into {process.world_size} ranks x {loop.accumulation} "
            f"micro-batches (loop.accumulation); use a multiple of {parts}."
        )
