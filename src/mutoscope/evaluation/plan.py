"""What a protocol hands to the engine: sides of clips, measured chunk by chunk, and the report that their rows give."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from mutoscope.errors import UserError
from mutoscope.evaluation.metrics.intervals import Figures
from mutoscope.evaluation.networks.extractors import WeightFiles
from mutoscope.evaluation.networks.shapes_classifier import ShapesClassifier
from mutoscope.evaluation.rows import Rows
from mutoscope.evaluation.sources.pairing import Pairs

MAX_SIDE = 256  # pixels of the longer side at which folders are compared: memory and time of a clip are bounded


@dataclass(frozen=True)
class StreamSettings:
    """Settings of the protocol "world": endless streams under recorded actions."""

    minutes: tuple[float, ...] = (1, 5, 10)
    """Minutes of playing time after which streams are examined; the largest is how long they are."""
    streams: int = 16
    """Streams, and clips that turn around and back."""
    there: str | None = None
    """An action, or a text of actions, that leads away; by default a button for the left or the right."""
    back: str | None = None
    """Its opposite."""
    network_steps: int = 1200
    """Training steps of the inverse-dynamics network."""
    sheet: Path | None = None
    """File for a contact sheet of the streams (.png)."""

    def flags(self) -> list[str]:
        """Flags of the settings that differ from their defaults."""
        plain = StreamSettings()
        return [
            f"--{name.replace('_', '-')}"
            for name in ("minutes", "streams", "there", "back", "network_steps")
            if getattr(self, name) != getattr(plain, name)
        ]


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
    features: str | None = None
    pairs: Pairs = "names"
    by_frame: bool = False
    max_side: int = MAX_SIDE
    streams: StreamSettings = StreamSettings()
    state: Path | None = None
    progress: bool = False

    def refuse_flags_of_folders(self, protocol: str) -> None:
        """Raises UserError for a setting that only a comparison of two folders has."""
        used = {
            "--features": self.features is not None,
            "--pairs": self.pairs != "names",
            "--by-frame": self.by_frame,
            "--max-side": self.max_side != MAX_SIDE,
        }
        if flags := [flag for flag, is_used in used.items() if is_used]:
            raise UserError(f"{flags[0]} belongs to the protocol 'folders', not to {protocol!r}: omit it.")

    def refuse_flags_of_streams(self, protocol: str) -> None:
        """Raises UserError for a setting that only the protocol "world" has."""
        if flags := self.streams.flags():
            raise UserError(f"{flags[0]} belongs to the protocol 'world', not to {protocol!r}: omit it.")


@dataclass(frozen=True)
class Side:
    """One set of clips. `measure` reads or generates the clips of one chunk and returns a row for each.

    at_least: clips that must be readable.
    """

    label: str
    chunks: Sequence[range]
    measure: Callable[[range], Rows]
    at_least: int = 2


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
