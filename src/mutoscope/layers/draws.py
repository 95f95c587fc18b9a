"""Random draws of training, from one generator for a whole batch or from one for each of its clips.

With a generator per clip, the numbers that a clip draws do not depend on the clips beside it. A batch then has the same
loss in a single pass, in micro-batches and on several processes.

Shapes: b clips. The first axis of every draw counts the clips, or several rows for each clip that follow each other.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor


@dataclass(frozen=True)
class ClipGenerators:
    """Generators of the draws of one part of a batch, all on one device."""

    clips: Sequence[torch.Generator]
    """One for each clip of the part."""
    batch: torch.Generator
    """For draws that hold for the whole batch: every part of a batch has one in the same state."""

    @property
    def device(self) -> torch.device:
        """Device of the generators, and of what they draw."""
        return self.batch.device


Draws = torch.Generator | ClipGenerators


def of_batch(draws: Draws) -> torch.Generator:
    """The generator of draws that hold for the whole batch."""
    return draws.batch if isinstance(draws, ClipGenerators) else draws


def state_of(draws: Draws) -> UInt8[Tensor, " n"]:
    """The state of all generators, which changes with every draw."""
    generators = (draws.batch, *draws.clips) if isinstance(draws, ClipGenerators) else (draws,)
    return torch.cat([generator.get_state() for generator in generators])


def _filled(out: Tensor, draws: Draws, fill: Callable[[Tensor, torch.Generator], object]) -> Tensor:
    """Fills the rows of every clip from its generator. Raises ValueError unless the rows divide among the clips."""
    if isinstance(draws, ClipGenerators):
        for rows, generator in zip(out.chunk(len(draws.clips)), draws.clips, strict=True):
            fill(rows, generator)
    else:
        fill(out, draws)
    return out


def copied(draws: Draws) -> Draws:
    """Generators in the same state, which move on by themselves."""
    if isinstance(draws, ClipGenerators):
        return ClipGenerators([generator.clone_state() for generator in draws.clips], draws.batch.clone_state())
    return draws.clone_state()


def rand(draws: Draws, *shape: int) -> Float[Tensor, "*s"]:
    """Uniform numbers in [0, 1)."""
    return _filled(torch.empty(shape, device=draws.device), draws, lambda x, g: x.uniform_(generator=g))


def randn(draws: Draws, *shape: int) -> Float[Tensor, "*s"]:
    """Standard normal numbers."""
    return _filled(torch.empty(shape, device=draws.device), draws, lambda x, g: x.normal_(generator=g))


def randint(draws: Draws, high: int, *shape: int) -> Int[Tensor, "*s"]:
    """Whole numbers from 0 to `high` − 1, all equally likely."""
    out = torch.empty(shape, device=draws.device, dtype=torch.int64)
    return _filled(out, draws, lambda x, g: x.random_(high, generator=g))


def dropout(x: Float[Tensor, "b *s"], share: float, draws: Draws | None) -> Float[Tensor, "b *s"]:
    """Sets a share of the numbers, in [0, 1], to zero and scales the others up. Without `draws`, `x` itself."""
    if draws is None or share == 0:
        return x
    kept = torch.empty(x.shape, device=draws.device, dtype=x.dtype)
    kept = _filled(kept, draws, lambda y, g: y.bernoulli_(1 - share, generator=g)).div_(1 - share or 1.0)
    return x * kept.to(x.device)


def for_each_clip(
    function: Callable[..., Tensor], tensors: Sequence[Tensor], shared: Sequence[Tensor | None], draws: Draws
) -> Tensor:
    """Calls an operation of PyTorch that draws from the global generator only, once for each clip.

    The operation receives the clip's rows of `tensors`, and of those of `shared` that have a row for each of them.
    During a call the global generator continues the clip's generator; afterwards it is what it was before.
    """
    if not isinstance(draws, ClipGenerators):
        with _lent(draws):
            return function(*tensors, *shared)
    count, results = len(draws.clips), list[Tensor]()
    size = len(tensors[0]) // count
    for i, generator in enumerate(draws.clips):
        rows = slice(i * size, (i + 1) * size)
        parts = [x[rows] if x is not None and x.ndim == tensors[0].ndim and len(x) > 1 else x for x in shared]
        with _lent(generator):
            results.append(function(*(x[rows] for x in tensors), *parts))
    return torch.cat(results)


@contextmanager
def _lent(generator: torch.Generator) -> Iterator[None]:
    """The global generator of the device has the state of `generator`, which moves on with it."""
    device = generator.device
    everyone = torch.cuda.default_generators[device.index or 0] if device.type == "cuda" else torch.default_generator
    before = everyone.get_state()
    everyone.set_state(generator.get_state())
    try:
        yield
        generator.set_state(everyone.get_state())
    finally:
        everyone.set_state(before)
