"""One process or many: started by torchrun, data parallel, rank 0 writes. No other file knows about ranks."""

import atexit
import contextlib
import gc
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mutoscope.training.watch import Watch

# A rank that works alone for longer lets the others wait in `barrier`, which has no limit while its heart beats.
LONGEST_EXCHANGE = timedelta(minutes=10)


@dataclass(frozen=True)
class Process:
    """This process among its peers. Alone: rank 0 of 1."""

    rank: int
    world_size: int
    device: torch.device
    watch: Watch | None = None
    """Heartbeats of all processes; None alone."""

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
    watch = _joined("nccl" if device.type == "cuda" else "gloo") if world_size > 1 else None
    return Process(rank, world_size, device, watch)


@cache
def _joined(backend: str) -> Watch:
    """The group of this process, which is one for as long as the process lives, and its heartbeats."""
    dist.init_process_group(backend, timeout=LONGEST_EXCHANGE)
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    # A connection of its own: a heartbeat must not wait for what the group's connection waits for.
    store = dist.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=30))
    watch = Watch(store, dist.get_rank(), dist.get_world_size()).start()
    atexit.register(_leave, watch)
    return watch


def _leave(watch: Watch) -> None:
    with contextlib.suppress(RuntimeError):  # the store may be gone already
        watch.leave()
    # A wrapped module in a reference cycle would keep the group, whose threads must end before the interpreter does.
    gc.collect()
    dist.destroy_process_group()


def wrap(module: nn.Module, process: Process) -> nn.Module:
    """Gradients of `module(...)` become means over ranks; alone, the module itself.

    Batch norms of the module normalise by the statistics of all ranks.
    """
    if process.world_size == 1:
        return module
    for part in module.modules():
        if type(part) is nn.BatchNorm2d:
            part.__class__ = RanksBatchNorm2d
    barrier(process)  # the main process may have worked alone until now
    with exchange(process):
        return DistributedDataParallel(module)


class RanksBatchNorm2d(nn.BatchNorm2d):
    """Normalises by the statistics of the batches of all ranks, which have one size (PyTorch's needs a GPU)."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        x = input.float()  # (n, c, h, w)
        mean = _mean_with_gradient(x.mean((0, 2, 3)))  # (c,)
        variance = _mean_with_gradient((x - mean[:, None, None]).square().mean((0, 2, 3)))
        self._track(mean.detach(), variance.detach(), x.numel() // x.shape[1] * dist.get_world_size())
        normed = (x - mean[:, None, None]) * torch.rsqrt(variance + self.eps)[:, None, None]
        return (normed * self.weight[:, None, None] + self.bias[:, None, None]).to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: int) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        self.running_mean.lerp_(mean, self.momentum or 0.0)
        self.running_var.lerp_(variance * count / (count - 1), self.momentum or 0.0)
        self.num_batches_tracked += 1


class _MeanWithGradient(torch.autograd.Function):
    """The mean over ranks, whose gradient is the mean over ranks too: it reaches the tensors of all ranks."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total / dist.get_world_size()

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        return _mean_with_gradient(gradients[0])


def _mean_with_gradient(x: Tensor) -> Tensor:
    return cast(Tensor, _MeanWithGradient.apply(x))


def no_sync(module: nn.Module, last: bool) -> AbstractContextManager:
    """Skips the gradient exchange for all but the last micro-batch of an update."""
    postpone = isinstance(module, DistributedDataParallel) and not last
    return module.no_sync() if postpone else contextlib.nullcontext()


def exchange(process: Process) -> AbstractContextManager:
    """Around work that ends with all ranks. Raises UserError that names a rank which died or was stopped."""
    return contextlib.nullcontext() if process.watch is None else process.watch.exchange()


def mean_tensor(x: Tensor, process: Process) -> Tensor:
    """Mean over ranks of a tensor without a gradient, inside an `exchange`; alone, the tensor itself."""
    if process.world_size == 1:
        return x
    total = x.detach().clone()
    dist.all_reduce(total)
    return total / process.world_size


def mean_over_ranks(values: dict[str, torch.Tensor], process: Process) -> dict[str, float]:
    """Named scalars averaged over ranks, as Python numbers. One synchronisation for all of them."""
    if not values:
        return {}
    stacked = torch.stack([value.detach().float().reshape(()).to(process.device) for value in values.values()])
    with exchange(process):
        means = mean_tensor(stacked, process).tolist()
    return dict(zip(values, means, strict=True))


def any_rank(flag: bool, process: Process) -> bool:
    """True when the flag is set on at least one rank, so that all ranks stop after the same step."""
    if process.world_size == 1:
        return flag
    with exchange(process):
        return bool(mean_tensor(torch.tensor(float(flag), device=process.device), process).item())


def largest_over_ranks(number: int, process: Process) -> int:
    """The largest number of all ranks, so that all ranks do the same after the same step."""
    if process.world_size == 1:
        return number
    found = torch.tensor(number, device=process.device)
    with exchange(process):
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found.item())


def barrier(process: Process) -> None:
    """Waits until every rank has arrived, however long one of them works alone; UserError names one that died."""
    if process.watch is not None:
        process.watch.meet()


@contextlib.contextmanager
def together(process: Process) -> Iterator[None]:
    """Around a short exchange that ranks may reach hours apart: they wait for as long as the others' hearts beat."""
    barrier(process)
    with exchange(process):
        yield
