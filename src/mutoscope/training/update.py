"""The gradients of one update, and the random draws behind them: the same however the batch is split.

A batch is split among processes, and on each of them into micro-batches. Three rules make that invisible, up to the
rounding of sums in another order: every clip draws from a generator of its own, every loss is a mean over clips with
equal weights, and statistics of a batch, such as the entropy of the average code, are those of the whole batch.
"""

import itertools
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from mutoscope.layers.batch_means import WholeMean, all_at_hand
from mutoscope.layers.draws import ClipGenerators, Draws
from mutoscope.training.batches import Batch, add_losses, autocast, split_batch
from mutoscope.training.config import LoopConfig
from mutoscope.training.distributed import Process, mean_tensor, no_sync

LOSS, CORRUPTION, OTHERS = 1, 2, 3  # streams of draws in one update, independent of each other


class Objective(nn.Module, ABC):
    """A training loss as a forward pass, so that data parallelism can wrap it."""

    @property
    def has_batch_terms(self) -> bool:
        """Whether the loss depends on means over the whole batch, which it takes from `whole`."""
        return False

    @abstractmethod
    def forward(self, batch: Batch, draws: Draws, whole: WholeMean = all_at_hand) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and its named parts, for a part of a batch."""

    def statistics(self, batch: Batch, draws: Draws, whole: WholeMean) -> None:
        """Calls `whole` as the forward pass does, for an objective with `has_batch_terms`; needs no gradients."""
        self(batch, draws, whole)

    def updated(self) -> None:
        """Called after every update, once for all micro-batches."""


@dataclass(frozen=True)
class Share:
    """The clips of every batch that this process trains on, in `accumulation` micro-batches."""

    loop: LoopConfig
    process: Process

    def clips(self, part: int | None = None) -> range:
        """Indices in the batch of the clips of one micro-batch, or of all of this process."""
        size = self.loop.batch_size // self.process.world_size
        first, count = self.process.rank * size, size
        if part is not None:
            count = size // self.loop.accumulation
            first += part * count
        return range(first, first + count)

    def draws(self, step: int, part: int) -> ClipGenerators:
        """Generators of the loss of one micro-batch."""
        return generators(self.loop.seed, step, LOSS, self.clips(part), self.process.device)

    def corruption_draws(self, step: int) -> ClipGenerators:
        """Generators of what changes the batch before the losses; on the CPU, as samplers need them."""
        return generators(self.loop.seed, step, CORRUPTION, self.clips(), torch.device("cpu"))


def generators(seed: int, step: int, stream: int, clips: range, device: torch.device) -> ClipGenerators:
    """Generators of some clips of a batch, each a pure function of (seed, step, stream, index of the clip).

    So neither callbacks nor earlier interruptions nor the split of the batch change an update.
    """
    states = np.random.SeedSequence([seed, step, stream]).generate_state(1 + clips.stop, np.uint64)
    batch, *own = (torch.Generator(device).manual_seed(int(states[i] >> 1)) for i in (0, *(1 + clip for clip in clips)))
    return ClipGenerators(own, batch)


def seed_global(seed: int, step: int, clip: int) -> None:
    """Seeds torch's global generator, for modules of others: nothing of ours draws from it.

    clip: index of the first one of a micro-batch.
    """
    torch.manual_seed(int(np.random.SeedSequence([seed, step, OTHERS, clip]).generate_state(1, np.uint64)[0] >> 1))


class SplitMeans:
    """Means over the whole batch for each of its parts: `measure` sees all micro-batches before `value` answers.

    The means of the micro-batches of this process are averaged, then those of all processes.
    """

    def __init__(self, process: Process):
        self.process = process
        self._sums: list[Tensor] = []
        self._parts = 0

    def measure(self) -> WholeMean:
        """For one micro-batch: adds its means."""
        self._parts += 1
        index = itertools.count()

        def add(mean: Tensor) -> Tensor:
            i = next(index)
            if i == len(self._sums):
                self._sums.append(torch.zeros_like(mean, requires_grad=False))
            self._sums[i] += mean.detach()
            return mean  # of no consequence: this pass has no gradient

        return add

    def finish(self) -> None:
        """After all micro-batches."""
        self._sums = [mean_tensor(total / self._parts, self.process) for total in self._sums]

    def value(self) -> WholeMean:
        """For one micro-batch: the mean of the whole batch, with the gradient of the micro-batch's own."""
        means = iter(self._sums)
        return lambda mean: with_value(mean, next(means))


def over_ranks(process: Process) -> WholeMean:
    """Means over the whole batch where every process has one micro-batch."""
    if process.world_size == 1:
        return all_at_hand
    return lambda mean: with_value(mean, mean_tensor(mean, process))


def with_value(mean: Tensor, value: Tensor) -> Tensor:
    """`value`, with the gradient of `mean`."""
    return mean + (value - mean).detach()


def gradients(objective: Objective, wrapped: nn.Module, batch: Batch, step: int, share: Share) -> dict[str, Tensor]:
    """Adds the gradients of the batch's loss to the parameters; returns the loss and its named parts.

    wrapped: `objective`, or its data-parallel form. Statistics of the whole batch take one more forward pass where
    there are several micro-batches, because the first one's gradient depends on the last one's clips.
    """
    loop, process, losses = share.loop, share.process, dict[str, Tensor]()
    parts = list(split_batch(batch, loop.accumulation))
    means = None
    if loop.accumulation > 1 and objective.has_batch_terms:
        means = SplitMeans(process)
        with torch.no_grad(), autocast(loop, process.device):
            for i, part in enumerate(parts):
                seed_global(loop.seed, step, share.clips(i).start)
                objective.statistics(part, share.draws(step, i), means.measure())
        means.finish()
    for i, part in enumerate(parts):
        seed_global(loop.seed, step, share.clips(i).start)
        whole = over_ranks(process) if means is None else means.value()
        with no_sync(wrapped, last=i + 1 == loop.accumulation):
            with autocast(loop, process.device):
                loss, named = wrapped(part, share.draws(step, i), whole)
            (loss / loop.accumulation).backward()
        add_losses(losses, {"loss": loss} | named, loop.accumulation)
    return losses
