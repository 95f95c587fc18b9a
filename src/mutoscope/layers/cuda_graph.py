"""Small decoding steps on a GPU, recorded as CUDA graphs, so that replaying them costs no Python between kernels."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mutoscope.layers.recorded import Step

WARM_UPS = 3  # runs before the recording; PyTorch's notes on CUDA graphs advise a few


class CUDAGraphCall:
    """A function of tensors as a CUDA graph, for arguments of one shape.

    All tensors that the function reads beside its arguments, such as weights and caches, must keep their memory. The
    next call overwrites the result. Building one runs the function a few times; it must not wait for the GPU.
    """

    def __init__(self, function: Step, *examples: Tensor) -> None:
        self.arguments = [example.clone() for example in examples]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # libraries choose kernels and allocate memory, which must precede recording
            for _ in range(WARM_UPS):
                function(*self.arguments)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.result = function(*self.arguments)

    def __call__(self, *values: Tensor, memory: Sequence[Tensor] = ()) -> Tensor:
        for argument, value in zip(self.arguments, values, strict=True):
            argument.copy_(value)
        self.graph.replay()
        return self.result


class CUDAGraphs:
    """Records steps as CUDA graphs; see `layers.recorded.Record`."""

    holds_memory = True

    def __call__(self, function: Step, *examples: Tensor, memory: Sequence[Tensor]) -> CUDAGraphCall:
        return CUDAGraphCall(function, *examples)
