"""Small steps on a GPU, recorded once and replayed: Python no longer stands between their kernels."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

WARM_UPS = 3


class Record(Protocol):
    """How a step is recorded; a test may supply something that needs no GPU."""

    def __call__(self, function: Callable[..., Any], *examples: Tensor) -> Callable[..., Any]:
        """`function` for arguments of the shapes of `examples`."""
        ...


class CUDAGraphCall:
    """A function of tensors as a CUDA graph, for arguments of one shape.

    What the function reads beside its arguments, such as weights and caches, must stay where it is. What it returns is
    overwritten by the next call. Building one runs the function a few times; it must not wait for the GPU.
    """

    def __init__(self, function: Callable[..., Any], *examples: Tensor) -> None:
        self.arguments = [example.clone() for example in examples]
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # kernels are chosen and memory is reserved before the recording
            for _ in range(WARM_UPS):
                function(*self.arguments)
        torch.cuda.current_stream().wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.result = function(*self.arguments)

    def __call__(self, *values: Tensor) -> Any:
        for argument, value in zip(self.arguments, values, strict=True):
            argument.copy_(value)
        self.graph.replay()
        return self.result
