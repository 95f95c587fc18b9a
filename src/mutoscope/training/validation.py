"""The loss on held-back clips, and which of raw and averaged weights is exported."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from mutoscope.data.base import BatchT, ClipSource
from mutoscope.data.held_back import drawn_clips
from mutoscope.training.batches import Batch, autocast, to_device
from mutoscope.training.config import LoopConfig

BATCH = 8  # clips per forward pass; a batch trains one task, so small ones cover more tasks
SEED = 7_201  # of all draws of a validation; the same in every run, so that curves of two runs compare
WeightsKind = Literal["raw", "averaged"]
Figures = Mapping[str, float]
"""Named means over the held-back clips; "loss" is always there."""


@dataclass(frozen=True)
class ValidationRule:
    """What is measured on held-back clips, and what is better.

    measure: from a network, a batch and a generator to named scalars, each a mean over the clips of the batch; "loss"
    is the curve that is drawn. cost: the number that should be low; the weights with the lower one are exported.
    """

    measure: Callable[[nn.Module, Batch, torch.Generator], dict[str, Tensor]]
    cost: Callable[[Figures], float] = lambda figures: figures["loss"]


class Validation(Generic[BatchT]):
    """Measures networks on the same held-back clips, with the same noise and masks every time.

    The clips stay in memory as they were read. Nothing is drawn that training could notice: every update seeds its
    own draws.
    """

    def __init__(
        self,
        held_back: ClipSource[BatchT],
        rule: ValidationRule,
        loop: LoopConfig,
        device: torch.device,
        prepare_batch: Callable[[BatchT, int], Batch],
    ):
        self.held_back, self.rule, self.loop, self.device, self.prepare = held_back, rule, loop, device, prepare_batch
        self.clips = drawn_clips(held_back, loop.validation_clips)
        self._batches: list[BatchT] = []

    def measure(self, network: nn.Module) -> dict[str, float]:
        """The figures of one network, in evaluation mode, which is put back afterwards."""
        was_training, generator = network.training, torch.Generator(self.device)
        network.eval()
        total: dict[str, float] = {}
        with torch.no_grad(), autocast(self.loop, self.device):
            for number, batch in enumerate(self._read()):
                generator.manual_seed(int(np.random.SeedSequence([SEED, number]).generate_state(1, np.uint64)[0] >> 1))
                prepared = self.prepare(to_device(batch, self.device), number)
                share = len(self.clips[number * BATCH : (number + 1) * BATCH]) / len(self.clips)
                for name, value in self.rule.measure(network, prepared, generator).items():
                    total[name] = total.get(name, 0.0) + share * float(value)
        network.train(was_training)
        return total

    def _read(self) -> list[BatchT]:
        if not self._batches:
            parts = [self.clips[i : i + BATCH] for i in range(0, len(self.clips), BATCH)]
            self._batches = [self.held_back[part] for part in parts]
        return self._batches


class Candidates(Generic[BatchT]):
    """The weights that would be exported now.

    Without validation these are the averaged ones where there are any; with it, the better ones in the latest
    validation, and the averaged ones where both are equal.
    """

    def __init__(self, model: nn.Module, ema: AveragedModel | None, validation: Validation[BatchT] | None):
        self.networks: dict[WeightsKind, nn.Module] = {} if ema is None else {"averaged": ema.module}
        self.networks["raw"] = model
        self.kind: WeightsKind = next(iter(self.networks))
        self.validation = validation
        self.figures: dict[WeightsKind, Figures] = {}

    @property
    def network(self) -> nn.Module:
        return self.networks[self.kind]

    def validate(self) -> dict[str, float]:
        """Measures all candidates and chooses; returns the figures by their names in the log."""
        if self.validation is None:
            return {}
        measure, cost = self.validation.measure, self.validation.rule.cost
        self.figures = {kind: measure(network) for kind, network in self.networks.items()}
        self.kind = min(self.networks, key=lambda kind: cost(self.figures[kind]))
        chosen = {"exports_averaged_weights": float(self.kind == "averaged")} if len(self.networks) > 1 else {}
        return chosen | {
            f"validation_{name}" + ("_averaged" if kind == "averaged" else ""): value
            for kind, figures in self.figures.items()
            for name, value in figures.items()
        }

    @property
    def cost(self) -> float:
        """The cost of the weights that were chosen in the latest validation."""
        assert self.validation is not None
        return self.validation.rule.cost(self.figures[self.kind])

    def report(self) -> str:
        """One line that says which weights are exported, and by which figures."""
        described = [
            f"{kind} weights: " + ", ".join(f"validation {name} {value:.4g}" for name, value in figures.items())
            for kind, figures in self.figures.items()
        ]
        clips = len(self.validation.clips) if self.validation else 0
        return f"The {self.kind} weights are exported, by {clips} held-back clips; " + "; ".join(described)
