"""Stage 1: the loop that trains a tokenizer to reconstruct clips (arXiv 2212.05199, §3.1)."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from mutoscope.data.loader import BatchSource
from mutoscope.tokenizers.base import VideoTokenizer
from mutoscope.training.callbacks import Callback
from mutoscope.training.config import TokenizerRecipe
from mutoscope.training.tracking import Tracker
from mutoscope.training.trainer import Batch, TrainResult, run_loop


class ReconstructionLoss(nn.Module):
    """The tokenizer's training loss as a forward pass, which is what data parallelism can wrap."""

    def __init__(self, tokenizer: VideoTokenizer):
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, batch: Batch, _: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
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
    return run_loop(
        tokenizer.to(memory_format=torch.channels_last_3d),
        ReconstructionLoss(tokenizer),
        recipe,
        source,
        out,
        resume=resume,
        callbacks=callbacks,
        trackers=trackers,
        device=device,
    )
