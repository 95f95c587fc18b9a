"""Stage 1: the loop that trains a tokenizer to reconstruct clips (arXiv 2212.05199, §3.1)."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from mutoscope.data.loader import BatchSource, StepSampler, make_loader
from mutoscope.tokenizers.base import VideoTokenizer
from mutoscope.training.callbacks import Callback, Recorder, StopSignals, due
from mutoscope.training.checkpoint import save_checkpoint, start_or_resume, write_recipe
from mutoscope.training.config import TokenizerRecipe, to_json
from mutoscope.training.distributed import any_rank, join, no_sync, wrap
from mutoscope.training.optim import clip_gradients, make_ema, make_optimizer, make_scheduler, set_learning_rate
from mutoscope.training.tracking import JsonlTracker, Tracker
from mutoscope.training.trainer import TrainResult, add_losses, autocast, check_batch, seed_step, split_batch, to_device


class ReconstructionLoss(nn.Module):
    """The tokenizer's training loss as a forward pass, which is what data parallelism can wrap."""

    def __init__(self, tokenizer: VideoTokenizer):
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        video = self.tokenizer.from_uint8(batch["video"])  # (b, 3, t, h, w)
        # Convolutions read channels-last memory a quarter faster on CPU and on tensor cores.
        output = self.tokenizer.forward_train(video.contiguous(memory_format=torch.channels_last_3d))
        return output.loss, output.losses


def train_tokenizer(
    tokenizer: VideoTokenizer,
    recipe: TokenizerRecipe,
    source: BatchSource,
    out: str | Path,
    *,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    trackers: Sequence[Tracker] = (),
    device: str | torch.device | None = None,
) -> TrainResult:
    """Trains `tokenizer` in place on batches with "video" uint8 (b, t, h, w, 3); returns what to export.

    Writes `log.jsonl`, `checkpoints/` and `samples/` below `out`. With `resume`, continues the newest good checkpoint
    there; on CPU the continued run equals an uninterrupted one bit for bit.
    Raises UserError for a changed recipe, a full disk, damaged checkpoints or a diverging loss.
    """
    loop, out = recipe.loop, Path(out)
    process = join(device)
    check_batch(loop, process)
    with StopSignals() as stop:
        tokenizer.to(process.device, memory_format=torch.channels_last_3d).train()
        optimizer = make_optimizer(tokenizer, recipe.optim)
        scheduler = make_scheduler(optimizer, recipe.optim, loop.num_steps)
        ema = make_ema(tokenizer, loop.ema_decay)
        generator = torch.Generator(process.device)
        parts = {"model": tokenizer, "optimizer": optimizer, "scheduler": scheduler} | ({"ema": ema} if ema else {})
        start = start_or_resume(out / "checkpoints", to_json(recipe), parts, generator, resume, process.device)
        set_learning_rate(optimizer, scheduler, start)
        exported = ema.module if ema else tokenizer
        objective = wrap(ReconstructionLoss(tokenizer), process)
        sampler = StepSampler(
            source.num_clips, loop.batch_size, loop.num_steps, loop.seed, start, process.rank, process.world_size
        )
        if process.is_main:
            write_recipe(out, to_json(recipe))
            trackers = [JsonlTracker(out / "log.jsonl", start), *trackers]
        with Recorder(out, loop, start, process, trackers) as recorder:
            for step, batch in enumerate(make_loader(source, sampler, loop.num_workers), start=start):
                batch = to_device(batch, process.device)
                seed_step(generator, loop.seed, step, process.rank)
                losses: dict[str, Tensor] = {}
                for i, micro_batch in enumerate(split_batch(batch, loop.accumulation)):
                    with no_sync(objective, last=i + 1 == loop.accumulation):
                        with autocast(loop, process.device):
                            loss, named = objective(micro_batch)
                        (loss / loop.accumulation).backward()
                    add_losses(losses, {"loss": loss} | named, loop.accumulation)
                grad_norm = clip_gradients(tokenizer, loop.clip_norm)
                learning_rate = optimizer.param_groups[0]["lr"]
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad(set_to_none=True)
                if ema:
                    ema.update_parameters(tokenizer)

                recorder.record(step, losses, learning_rate, grad_norm)
                if due(step, loop.sample_every, loop.num_steps):
                    recorder.notify(callbacks, step + 1, exported, batch)
                stopping = any_rank(stop.requested, process)
                if process.is_main and (stopping or due(step, loop.checkpoint_every, loop.num_steps)):
                    save_checkpoint(out / "checkpoints", step + 1, parts, generator, to_json(recipe))
                if stopping:
                    return TrainResult(exported, step + 1, finished=step + 1 == loop.num_steps)
    return TrainResult(exported, loop.num_steps, finished=True)
