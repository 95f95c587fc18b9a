"""Networks that have shapes and no storage, on PyTorch's "meta" device."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

DRAWS = ("normal_", "trunc_normal_", "erfinv_")


class _SkipDraws(TorchFunctionMode):
    """Skips random initialisation of meta tensors.

    There are no numbers to draw on "meta", yet PyTorch would import its compiler (seconds) to infer the shapes of
    these operations.
    """

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        tensor = args[0] if args else kwargs.get("tensor")  # torch.nn.init passes it by name
        if getattr(func, "__name__", "") in DRAWS and isinstance(tensor, Tensor) and tensor.is_meta:
            return tensor
        return func(*args, **kwargs)


@contextmanager
def on_meta_device() -> Iterator[None]:
    """Builds every network of the block on the "meta" device: shapes without numbers.

    For counting parameters, and for comparing shapes before weights are loaded, of models of any size.
    """
    with torch.device("meta"), _SkipDraws():
        yield
