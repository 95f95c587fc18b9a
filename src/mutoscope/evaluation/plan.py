"""What a protocol hands to the engine: sides of clips, measured chunk by chunk, and the report that their rows give."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from mutoscope.evaluation.metrics.intervals import Figures
from mutoscope.evaluation.networks.extractors import WeightFiles
from mutoscope.evaluation.networks.shapes_classifier import ShapesClassifier
from mutoscope.evaluation.rows import Rows


@dataclass(frozen=True)
class Settings:
    """What a call of `evaluate` chooses beside source and protocol; see there."""

    num_clips: int | None = None
    seed: int = 0
    batch_size: int = 16
    device: torch.device | str = "cpu"
    options: Mapping[str, object] = field(default_factory=dict)
    reference: str | None = None
    split: str | None = None
    task: str | None = None
    paste_given: bool = False
    convention: str | None = None
    files: WeightFiles = WeightFiles()  # noqa: RUF009
    classifier: ShapesClassifier | None = None


@dataclass(frozen=True)
class Side:
    """One set of clips. `measure` reads or generates the clips of one chunk and returns a row for each."""

    label: str
    chunks: Sequence[range]
    measure: Callable[[range], Rows]


@dataclass(frozen=True)
class Outcome:
    """Figures of an evaluation, the number of clips on the generated side, and further entries of the report."""

    metrics: Figures
    num_clips: int
    details: dict[str, object]


class Plan(ABC):
    """An evaluation of one source under one protocol, checked and ready to be measured."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of the protocol."""

    @property
    @abstractmethod
    def sides(self) -> tuple[Side, ...]:
        """The sets of clips to measure."""

    @abstractmethod
    def settings(self) -> dict[str, object]:
        """Everything the rows depend on, as JSON: rows of other settings are never joined with these."""

    @abstractmethod
    def outcome(self, rows: Mapping[str, Rows]) -> Outcome:
        """Figures of the rows of all sides, by label."""
