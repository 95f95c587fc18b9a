"""Float32 arithmetic inside torch.autocast.

`x.float()` does not keep autocast from multiplying in bfloat16: autocast casts the inputs of every matrix product and
convolution again. What must be exact runs under `full_precision`.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

P = ParamSpec("P")
R = TypeVar("R")


def autocast_off(device: torch.device) -> AbstractContextManager[object]:
    """A context without autocast on a device. Tensors that autocast narrowed before stay in half precision."""
    return torch.autocast(device.type, enabled=False) if _autocasts(device) else nullcontext()


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """`function` with autocast turned off, and with tensors of half precision among its arguments in float32.

    Outside of autocast on the device of its tensors nothing changes, so that a network in bfloat16 stays in bfloat16.
    """

    @wraps(function)
    def exact(*args: P.args, **kwargs: P.kwargs) -> R:
        device = next((x.device for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)
        if device is None or not _autocasts(device):
            return function(*args, **kwargs)
        with autocast_off(device):
            return function(*map(_widened, args), **{name: _widened(value) for name, value in kwargs.items()})

    return exact


@full_precision
def project_exactly(layer: nn.Module, x: Tensor) -> Tensor:
    """`layer(x)`, never in half precision because of autocast: for the last layer of a network, whose result is a loss
    or a draw away."""
    return layer(x)


def _autocasts(device: torch.device) -> bool:
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def _widened(value: object) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16) else value
