"""A played stream: frames one by one under the keys of now, and a way back to each of them.

Everything here is synchronous and knows no network; `play.py` gives it turns.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from mutoscope.errors import UserError
from mutoscope.families.actions import spec_of
from mutoscope.pipeline import Bookmark, VideoPipeline, VideoStream
from mutoscope.playground.images import encoded


@dataclass(frozen=True)
class WorldStart:
    """How a played stream begins."""

    class_label: str | int | None = None
    first_frame: str | None = None
    """one of the model's own by name, or "none": it is generated"""
    picture: UInt8[np.ndarray, "h w 3"] | None = None
    """a first frame from outside"""
    seed: int = 0
    sampling: Mapping[str, object] | None = None
    """options of the sampler that differ from the model's"""


@dataclass(frozen=True)
class Card:
    """A frame that was shown, and the place in the stream after it."""

    index: int
    png: bytes
    action: tuple[float, ...]
    """that led to it"""
    bookmark: Bookmark | None
    """None: the stream has not begun"""
    seconds_sampling: float
    seconds_decoding: float

    def pixels(self) -> UInt8[np.ndarray, "h w 3"]:
        with Image.open(io.BytesIO(self.png)) as image:
            return np.asarray(image.convert("RGB"))


class World:
    """A stream without an end of one model. Frame 0 is the first frame; an action leads to each further one."""

    def __init__(self, pipeline: VideoPipeline, start: WorldStart, remembered: int) -> None:
        """`remembered`: frames that can be rewound to. Raises UserError for a model without such streams."""
        capabilities = pipeline.family.capabilities
        if not (capabilities.endless and capabilities.steerable):
            raise UserError(f"Models of {pipeline.family.title} do not generate streams that can be steered.")
        self.pipeline, self.start, self.remembered = pipeline, start, remembered
        size = None if pipeline.model is None else pipeline.model.config.action_size
        self.actions = spec_of(pipeline.index.actions, size)
        self.names = () if self.actions is None else self.actions.names
        self.options = self._options()
        self._cards: dict[int, Card] = {}
        self.stream = self._opened()
        self.first = self._first_card()
        self._cards[0] = self.first

    def _options(self) -> dict[str, object]:
        start = self.start
        chosen = {"class_label": start.class_label, "first_frame": start.first_frame, "context": start.picture}
        given = {name: value for name, value in chosen.items() if value is not None}
        return {**(start.sampling or {}), **given, "seed": start.seed, "num_frames": None}

    def _opened(self) -> VideoStream:
        return self.pipeline.stream(**self.options)

    def _first_card(self) -> Card:
        """The first frame at once: a given one as the tokenizer sees it, before anything is generated."""
        opening = self.pipeline.prepare(**{**self.options, "endless": True}).opening()
        if opening is None:
            frame = next(self.stream)
            return self._card(0, frame, (0.0,) * len(self.names), (0.0, 0.0))
        frame = self.pipeline.reconstruct(opening[0]).frames[0]
        self._skipped = 1  # the stream delivers it once more
        return Card(0, encoded(frame, "png"), (0.0,) * len(self.names), None, 0.0, 0.0)

    _skipped = 0

    def _card(
        self,
        index: int,
        frame: UInt8[np.ndarray, "h w 3"],
        action: tuple[float, ...],
        before: tuple[float, float],
    ) -> Card:
        stream = self.stream
        spent = stream.seconds_sampling - before[0], stream.seconds_decoding - before[1]
        return Card(index, encoded(frame, "png"), action, stream.bookmark(), *spent)

    # ---------------------------------------------------------------------------------------------------- playing

    @property
    def last(self) -> Card:
        return self._cards[max(self._cards)]

    @property
    def indices(self) -> range:
        """The last frames without a gap, all of which can be rewound to; the first one always can."""
        later = [index for index in self._cards if index > 0]
        return range(min(later) if later and 1 not in self._cards else 0, self.last.index + 1)

    def advance(self, action: tuple[float, ...]) -> tuple[Card, UInt8[np.ndarray, "h w 3"]]:
        """The next frame under an action."""
        stream, index = self.stream, self.last.index + 1
        before = stream.seconds_sampling, stream.seconds_decoding
        if self.names:
            stream.change(action=action)
        for _ in range(self._skipped):
            next(stream)
        self._skipped = 0
        frame = next(stream)
        card = self._cards[index] = self._card(index, frame, action, before)
        if len(self._cards) > self.remembered + 1:
            del self._cards[min(i for i in self._cards if i > 0)]
        return card, frame

    def work_ahead(self) -> None:
        """Do what the next frame needs and no key changes."""
        if not self._skipped:
            self.stream.work_ahead()

    def rewind(self, index: int) -> Card:
        """Back to a frame, which is then the last one. Raises UserError for one that is not remembered."""
        if index not in self._cards:
            known = self.indices
            raise UserError(f"Frame {index} is not remembered: frames 0 and {known.start} to {known.stop - 1} are.")
        card = self._cards[index]
        for later in [i for i in self._cards if i > index]:
            del self._cards[later]
        if card.bookmark is None:
            self.stream, self._skipped = self._opened(), 1
        else:
            self.stream.rewind(card.bookmark)
            self._skipped = 0
        return card

    # ----------------------------------------------------------------------------------------------------- saving

    def cards(self) -> list[Card]:
        """The remembered frames that follow each other without a gap, up to the last one."""
        return [self._cards[i] for i in self.indices]
