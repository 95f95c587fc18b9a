"""Networks that have shapes and no storage, on PyTorch's "meta" device."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mutoscope.errors import UserError

DRAWS = ("normal_", "trunc_normal_", "erfinv_")
FACTORIES = frozenset("empty zeros ones full arange linspace eye rand randn tensor".split())
MAX_TENSORS = 6_000  # created while a network is built, in two seconds; the largest published ones have 1,500
MAX_NUMBERS = 2**40  # in all of them together: a thousand times the largest published video model


class _BoundedWithoutDraws(TorchFunctionMode):
    """Skips random initialisation of meta tensors, and ends the construction of networks that no machine can hold.

    There are no numbers to draw on "meta", yet PyTorch would import its compiler (seconds) to infer the shapes of
    these operations. Tensors without storage cost no memory, but layers cost time, however many a configuration names.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tensors, self.numbers = 0, 0

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
        made = func(*args, **kwargs)
        if isinstance(made, Tensor) and getattr(func, "__name__", "") in FACTORIES:
            self.tensors, self.numbers = self.tensors + 1, self.numbers + made.numel()
            if self.tensors > MAX_TENSORS:
                raise UserError(f"The network has more than {MAX_TENSORS:,} tensors: choose fewer layers or parts.")
            if self.numbers > MAX_NUMBERS:
                raise UserError(f"The network has more than {MAX_NUMBERS:,} parameters: choose smaller sizes.")
        return made


@contextmanager
def on_meta_device() -> Iterator[None]:
    """Builds every network of the block on the "meta" device: shapes without numbers.

    For counting parameters, and for comparing shapes before weights are loaded. Raises UserError as soon as a network
    has more tensors or parameters than any machine can hold, so that nothing is built for longer than seconds.
    """
    with torch.device("meta"), _BoundedWithoutDraws():
        yield
