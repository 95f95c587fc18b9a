"""What happens to a batch on its way to a loss: device, micro-batches, dtype."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import cast

import torch
from torch import Tensor

from mutoscope.data.base import BatchT
from mutoscope.training.config import LoopConfig

Batch = Mapping[str, object]
"""A batch of any source by field: tensors, nested dicts of tensors, and values of the whole batch such as the task."""


def autocast(loop: LoopConfig, device: torch.device) -> AbstractContextManager:
    """bfloat16 matrix products and convolutions if the recipe says so."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=loop.autocast == "bf16")


def to_device(batch: BatchT, device: torch.device) -> BatchT:
    """Every tensor of a (nested) batch on `device`."""
    return cast(BatchT, _map_tensors(batch, lambda tensor: tensor.to(device, non_blocking=True)))


def split_batch(batch: Batch, parts: int) -> Iterator[Batch]:
    """Consecutive equal slices of every tensor; values that are no tensors (the task) go into each slice."""
    for i in range(parts):
        yield _map_tensors(batch, lambda tensor, i=i: tensor.chunk(parts)[i])


def _map_tensors(batch: Batch, function: Callable[[Tensor], Tensor]) -> Batch:
    def convert(value: object) -> object:
        if isinstance(value, Tensor):
            return function(value)
        return _map_tensors(value, function) if isinstance(value, Mapping) else value

    return {name: convert(value) for name, value in batch.items()}


def add_losses(total: dict[str, Tensor], named: dict[str, Tensor], parts: int) -> None:
    """Adds this micro-batch's share to the named losses of the update, without waiting for the device."""
    for name, value in named.items():
        share = value.detach() / parts
        total[name] = total[name] + share if name in total else share
