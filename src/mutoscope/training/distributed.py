"""One process or many: started by torchrun, data parallel, rank 0 writes. No other file knows about ranks."""

import atexit
import contextlib
import gc
import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Process:
    """This process among its peers. Alone: rank 0 of 1."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """True on the one process that writes files and shows progress."""
        return self.rank == 0


def join(device: str | torch.device | None = None) -> Process:
    """Joins the group that torchrun describes in the environment: gloo on CPU, nccl on CUDA.

    Without torchrun this is a single process on `device`, by default CUDA where there is one. Calling it again returns
    the same process. The group is left when the process exits, because torchrun's store lets nobody join it twice.
    """
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if device is None:
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    if world_size > 1 and not dist.is_initialized():
        # Rank 0 alone may encode a whole dataset before the first exchange.
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(hours=12))
        atexit.register(_leave)
    return Process(rank, world_size, device)


def _leave() -> None:
    # A wrapped module in a reference cycle would keep the group, whose threads must end before the interpreter does.
    gc.collect()
    dist.destroy_process_group()


def wrap(module: nn.Module, process: Process) -> nn.Module:
    """Gradients of `module(...)` become means over ranks; alone, the module itself."""
    return DistributedDataParallel(module) if process.world_size > 1 else module


def no_sync(module: nn.Module, last: bool) -> AbstractContextManager:
    """Skips the gradient exchange for all but the last micro-batch of an update."""
    postpone = isinstance(module, DistributedDataParallel) and not last
    return module.no_sync() if postpone else contextlib.nullcontext()


def mean_over_ranks(values: dict[str, torch.Tensor], process: Process) -> dict[str, float]:
    """Named scalars averaged over ranks, as Python numbers. One synchronisation for all of them."""
    if not values:
        return {}
    stacked = torch.stack([value.detach().float().reshape(()).to(process.device) for value in values.values()])
    if process.world_size > 1:
        dist.all_reduce(stacked)
        stacked /= process.world_size
    return dict(zip(values, stacked.tolist(), strict=True))


def any_rank(flag: bool, process: Process) -> bool:
    """True when the flag is set on at least one rank, so that all ranks stop after the same step."""
    if process.world_size == 1:
        return flag
    count = torch.tensor(float(flag), device=process.device)
    dist.all_reduce(count)
    return bool(count.item())


def largest_over_ranks(number: int, process: Process) -> int:
    """The largest number of all ranks, so that all ranks do the same after the same step."""
    if process.world_size == 1:
        return number
    found = torch.tensor(number, device=process.device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found.item())


def barrier(process: Process) -> None:
    """Waits until every rank has arrived."""
    if process.world_size > 1:
        dist.barrier()
