"""What every sampler yields."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class SampleEvent:
    """State after one decoding step.

    The same events drive a whole generation (drain them), a stream (take `frames` as they finish), the progress bar,
    the page and the benchmark's clock.
    """

    step: int
    """0-based index of the step just done."""
    num_steps: int
    """Steps planned; a sampler may finish earlier."""
    decided: Bool[Tensor, "b t h w"]
    """Positions fixed for good in this step."""
    proposal: Int[Tensor, "b t h w"] | Float[Tensor, "b c t h2 w2"]
    """The best complete guess so far, without any mask: what a preview decodes. In the last event the result.

    Codes, or latents, of which several may make one position.
    """
    frames: slice | None
    """Latent frames finished by this step, or None."""
    seconds: float
    """Seconds since sampling began."""

    @property
    def finished(self) -> Int[Tensor, "b k h w"] | Float[Tensor, "b c k h2 w2"]:
        """Codes or latents of the frames finished by this step."""
        assert self.frames is not None
        return self.proposal[..., self.frames, :, :]

    @property
    def is_last(self) -> bool:
        return self.frames is not None and self.frames.stop == self.decided.shape[1]


def last_of(events: Iterable[SampleEvent]) -> SampleEvent:
    """The last event, with none of the others kept: each may hold a whole clip."""
    [last] = deque(events, maxlen=1)
    return last


@dataclass(frozen=True)
class TokenEvent(SampleEvent):
    """A step of a model of discrete tokens."""

    tokens: Int[Tensor, "b t h w"]
    """Input of the next step: codes, condition tokens where they are still shown, or MASK_TOKEN where undecided."""
    confidence: Float[Tensor, "b t h w"]
    """Confidence that ranked the positions in this step; +inf where decided before."""
