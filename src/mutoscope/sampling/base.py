"""The one shape of all samplers: a call with (model, condition, generator), and the events it yields."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Generic, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Latents = Int[Tensor, "b t h w"] | Float[Tensor, "b c t h w"]
"""Codes, or continuous latents."""


@dataclass(frozen=True, kw_only=True)
class SampleEvent:
    """State after one decoding step.

    The same events drive a whole generation (drain them), a stream (take `finished` as frames finish), the progress
    bar, the page and the benchmark's clock. An event holds what it needs to build its tensors, and builds them when
    they are read: a progress bar costs nothing, and an endless stream lays out its window for a preview only.
    """

    step: int
    """0-based index of the step just done."""
    num_steps: int
    """Steps planned, 0 for a stream without an end. A sampler may finish earlier."""
    decided: Bool[Tensor, "b t h w"]
    """Positions fixed for good in this step."""
    frames: slice | None
    """Latent frames finished by this step, or None."""
    seconds: float
    """Seconds since sampling began."""
    draft: Callable[[], Latents]
    """Builds `proposal`; gives the same tensor however late it is called."""
    cut: Callable[[], Latents] | None = None
    """Builds `finished` without the rest of the clip; None: `finished` is cut out of `proposal`."""
    confidence: Float[Tensor, "b t h w"] | None = None
    """Logarithm of the probability that ranked the positions in this step; None for samplers that do not rank."""
    again: Callable[[], Iterator["SampleEvent"]] | None = None
    """Of a stream that can be rewound, after a finished frame: goes on from here once more, as it did, or differently
    where the conditions have changed since; None for other steps and samplers."""
    ahead: Callable[[], None] | None = None
    """After a finished frame, the work for the next one that its conditions do not change. It is done with the next
    step, or before if this is called; None where there is no such work."""

    @cached_property
    def proposal(self) -> Latents:
        """The best complete guess so far, without any mask: what a preview decodes. In the last event the result.

        Codes, or latents, of which several may form one position.
        """
        return self.draft()

    @cached_property
    def finished(self) -> Latents:
        """Codes or latents of the frames finished by this step. Only for events whose `frames` is not None."""
        assert self.frames is not None
        return self.proposal[..., self.frames, :, :] if self.cut is None else self.cut()

    @property
    def is_last(self) -> bool:
        """Whether the clip ends with this step."""
        return self.frames is not None and self.frames.stop == self.decided.shape[1]


@dataclass(frozen=True, kw_only=True)
class TokenEvent(SampleEvent):
    """A step of a model of discrete tokens."""

    tokens: Int[Tensor, "b t h w"]
    """Input of the next step: codes, condition tokens where they are still shown, or MASK_TOKEN where undecided."""
    confidence: Float[Tensor, "b t h w"] = field(kw_only=True)  # pyright: ignore[reportGeneralTypeIssues]
    """+inf where decided before."""


Model = TypeVar("Model", contravariant=True)
Condition = TypeVar("Condition", contravariant=True)
Event = TypeVar("Event", bound=SampleEvent, covariant=True)


class Sampler(ABC, Generic[Model, Condition, Event]):
    """A decoding procedure that knows no architecture: a Protocol beside it lists the methods it needs of a network."""

    @abstractmethod
    def sample(self, model: Model, condition: Condition, generator: torch.Generator) -> Iterator[Event]:
        """Decode one batch, one event per step; every random draw comes from `generator`.

        `condition` says how many samples there are, what each is conditioned on, and how long they are. The network
        must be in evaluation mode. The caller's gradient mode is left alone between events.
        """


def ready(latents: Latents) -> Callable[[], Latents]:
    """A `draft` for a tensor that exists already."""
    return lambda: latents


def last_of(events: Iterable[SampleEvent]) -> SampleEvent:
    """The last event; the others are dropped at once, since each may hold a whole clip."""
    [last] = deque(events, maxlen=1)
    return last
