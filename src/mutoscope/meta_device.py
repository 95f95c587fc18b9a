"""Networks without memory, for counting parameters and comparing shapes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class _SkipDraws(TorchFunctionMode):
    """On "meta" there is nothing to draw, yet PyTorch imports its whole compiler to learn the shapes of these."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensor = args[0] if args else kwargs.get("tensor")  # torch.nn.init passes it by name
        if getattr(func, "__name__", "") in ("normal_", "trunc_normal_", "erfinv_") and tensor.is_meta:
            return tensor
        return func(*args, **kwargs)


@contextmanager
def without_memory() -> Iterator[None]:
    """Networks built in this block have shapes but no numbers: for counting parameters and comparing shapes."""
    with torch.device("meta"), _SkipDraws():
        yield
