"""Steps of fixed shapes that run many times: recorded at their first call, replayed from then on.

A step may be recorded as a CUDA graph (`layers.cuda_graph`) or compiled (`layers.compiled`), or simply be called.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

Step = Callable[..., Tensor]
"""Tensors in, one tensor out. It may also write to memory that is no argument of it, such as a cache. Everything else
that it depends on is the same in all of its calls. Repeating a call changes nothing."""


class RecordedStep(Protocol):
    """A step that was recorded for arguments of one shape. The next call may overwrite the result."""

    def __call__(self, *arguments: Tensor, memory: Sequence[Tensor]) -> Tensor: ...


class Record(Protocol):
    """A way to record steps; tests supply one that needs neither a GPU nor a compiler."""

    @property
    def holds_memory(self) -> bool:
        """Whether a recorded step goes on to read and write the memory that it was recorded with."""
        ...

    def __call__(self, function: Step, *examples: Tensor, memory: Sequence[Tensor]) -> RecordedStep | None:
        """The step for arguments of the shapes of `examples`, with which `function` may be called a few times.

        None where steps cannot be recorded, and are to be called as they are.
        """
        ...


@dataclass
class Steps:
    """Recorded steps, by key."""

    record: Record | None = None
    """None: steps are called as they are."""
    recorded: dict[Hashable, RecordedStep | None] = field(default_factory=dict[Hashable, "RecordedStep | None"])

    @property
    def are_recorded(self) -> bool:
        """Whether the arguments of a step need the same shapes in every call."""
        return self.record is not None

    @property
    def hold_memory(self) -> bool:
        """Whether steps must find their caches where they were at the first call."""
        return self.record is not None and self.record.holds_memory

    def replay(self, key: Hashable, step: Step, *arguments: Tensor, memory: Sequence[Tensor] = ()) -> Tensor:
        """The result of a step, which is recorded if `key` is new.

        `memory`: the tensors beside its arguments that differ from call to call, such as the cache of a clip. Weights
        are none: they may change in place, but not move.
        """
        if self.record is None:
            return step(*arguments)
        if self.record.holds_memory:
            key = key, *(tensor.data_ptr() for tensor in memory)
        if key not in self.recorded:
            self.recorded[key] = self.record(step, *arguments, memory=memory)
        recorded = self.recorded[key]
        return step(*arguments) if recorded is None else recorded(*arguments, memory=memory)
