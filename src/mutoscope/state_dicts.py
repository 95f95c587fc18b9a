"""Named tensors of weight files: opened without executing anything, and freed of what wrappers put around them.

Training scripts store weights in containers ({"model": …}, {"state_dict": …}, {"ema": …}), and DistributedDataParallel,
torch.compile, FSDP and Lightning put prefixes before the names. Every reader of weights uses this module.
"""

import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file

from mutoscope.declared import check_safetensors, read_npz, too_large_for_memory
from mutoscope.errors import UserError, reason
from mutoscope.pickles import check_torch_file

T = TypeVar("T")

CONTAINERS = ("model", "module", "state_dict", "model_state_dict", "network", "net", "params", "weights")
AVERAGED = ("ema", "ema_state_dict", "ema_model", "model_ema", "params_ema", "state_dict_ema")
"""Containers of averaged weights."""
PREFIXES = ("module.", "_orig_mod.", "model.", "_forward_module.")
"""Before all names: DistributedDataParallel and averaging, torch.compile, Lightning, Lightning Fabric."""
INSIDE = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""Anywhere in a name: compiled, sharded and recomputed parts of a network. No network names a layer so."""
MAX_CONTAINERS = 16  # one inside another
AVERAGE_COUNTER = "n_averaged"  # of torch's AveragedModel, beside its "module."


def read_stored(path: Path, allowed: Sequence[type] = (), what: str = "") -> object:
    """The content of a .safetensors, .npz or PyTorch file. Nothing in it is executed.

    Only tensors, plain containers and the classes `allowed` are accepted. Raises UserError for anything else and for a
    damaged file; `what` names the network in its message.
    """
    try:
        too_large_for_memory(path, memory_bytes())
        if path.suffix == ".safetensors":
            check_safetensors(path)
            return load_file(path)
        if path.suffix == ".npz":
            return {name: torch.from_numpy(array) for name, array in read_npz(path).items()}
        return read_torch(path, allowed)
    except Exception as error:  # a damaged or malicious file fails in many ways, none of which is the program's fault
        subject = f"{path} is not a readable weights file" + (f" of {what}" if what else "")
        # Our own sentence begins with the path.
        own = f"it {str(error).removeprefix(f'{path} ')}" if isinstance(error, UserError) else f"{reason(error)}."
        raise UserError(f"{subject}: it is damaged, or holds more than tensors and was refused: {own}") from None


def read_torch(path: Path, allowed: Sequence[type] = (), device: torch.device | str = "cpu") -> object:
    """The content of a PyTorch file. Raises UserError unless it declares tensors and plain containers that fit it.

    Raises whatever torch raises for other damage.
    """
    check_torch_file(path, [f"{kind.__module__} {kind.__qualname__}" for kind in allowed])
    with torch.serialization.safe_globals(list(allowed)):
        return torch.load(path, map_location=device, weights_only=True)


def memory_bytes() -> int | None:
    """Bytes of memory of this machine; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def open_containers(stored: object, averaged: bool = False) -> Mapping[str, object]:
    """The innermost container of names, which may hold more than tensors; empty if there is none.

    `averaged` prefers averaged weights where a file has both.
    """
    names = (*AVERAGED, *CONTAINERS) if averaged else (*CONTAINERS, *AVERAGED)
    for _ in range(MAX_CONTAINERS):  # one that contains itself would have no end
        if not isinstance(stored, Mapping):
            return {}
        inner = next((stored[name] for name in names if isinstance(stored.get(name), Mapping)), None)
        if inner is None:
            return {str(name): value for name, value in stored.items()}
        stored = inner
    return {}


def has_averaged(stored: object) -> bool:
    """Whether a file has averaged weights beside, or in place of, those of training."""
    return isinstance(stored, Mapping) and any(isinstance(stored.get(name), Mapping) for name in AVERAGED)


def without_wrappers(weights: Mapping[str, T], known: Collection[str] = ()) -> dict[str, T]:
    """The same values under the names that they have in the bare network.

    A prefix of `PREFIXES` is dropped only where all names share it, one after another for nested wrappers, and never
    where it belongs to a name in `known`, the names of the network if the caller has them.
    """
    named = _without_inner(weights)
    while not any(name in known for name in named):
        counted = {name: value for name, value in named.items() if name != AVERAGE_COUNTER}
        prefix = next((p for p in PREFIXES if counted and all(name.startswith(p) for name in counted)), None)
        if prefix is None:
            break
        named = {name.removeprefix(prefix): value for name, value in counted.items()}
    return named


def _without_inner(weights: Mapping[str, T]) -> dict[str, T]:
    named = {INSIDE.sub("", name): value for name, value in weights.items()}
    return named if len(named) == len(weights) else dict(weights)
