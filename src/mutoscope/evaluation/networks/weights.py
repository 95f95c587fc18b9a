"""Weights of the feature networks: opened as data, checked against the network, named by their SHA-256.

A figure depends on these files, and files of one architecture with other training load without complaint: the hash
belongs beside every figure.
"""

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from mutoscope.errors import UserError
from mutoscope.state_dicts import open_containers, read_stored, without_wrappers


def sha256_of_file(path: Path | str) -> str:
    """SHA-256 of a file as hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_weights(path: Path | str, what: str, sha256: str | None = None) -> tuple[dict[str, Tensor], str]:
    """Named tensors of a .safetensors, .npz or PyTorch file, and the file's SHA-256. Nothing in it is executed.

    Containers and the prefixes of wrappers are removed (see `state_dicts`). `what` names the network in messages; with
    `sha256`, a file of another hash is refused. Raises UserError for whatever holds no named tensors.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"There is no file {str(path)!r} with the weights of {what}.")
    found = sha256_of_file(path)
    if sha256 is not None and found != sha256.lower():
        raise UserError(f"{path} has SHA-256 {found}, but {sha256.lower()} was requested: it is another file.")
    if is_torchscript(path):
        raise UserError(
            f"{path} is a TorchScript archive: it holds a program, and programs in weight files are never run here. "
            f"Give {what} as a plain state dict (.pt, .pth or .safetensors)."
        )
    values = without_wrappers(open_containers(read_stored(path, what=what)))
    weights = {name: _single_precision(value) for name, value in values.items() if isinstance(value, Tensor)}
    if not weights or len(weights) < len(values):
        raise UserError(f"{path} is not a weights file of {what}: it holds something other than named tensors.")
    return weights, found


def is_torchscript(path: Path) -> bool:
    """Whether a file is an archive written by `torch.jit.save`, which carries code beside tensors."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return any(name.endswith("/constants.pkl") or "/code/" in name for name in names)


def fit_weights(network: nn.Module, weights: Mapping[str, Tensor], path: Path | str, what: str) -> None:
    """Load tensors into a network that must have exactly these names and shapes; batch counters may be missing.

    Raises UserError naming the first tensor that is missing, unknown, of another shape or not finite.
    """
    expected = {name: value for name, value in network.state_dict().items() if not _is_counter(name)}
    weights = {name: value for name, value in weights.items() if not _is_counter(name)}
    for name, value in expected.items():
        if name not in weights:
            raise UserError(f"{path} does not hold {what}: tensor {name!r} is missing.")
        if weights[name].shape != value.shape:
            shapes = f"{tuple(weights[name].shape)} instead of {tuple(value.shape)}"
            raise UserError(f"{path} does not hold {what}: tensor {name!r} is {shapes}.")
        if not weights[name].isfinite().all():
            raise UserError(f"{path}: tensor {name!r} holds NaN or infinity; the file is damaged.")
    if unknown := sorted(set(weights) - set(expected)):
        raise UserError(f"{path} does not hold {what}: tensor {unknown[0]!r} is no part of that network.")
    counters = {n: torch.zeros_like(v, device="cpu") for n, v in network.state_dict().items() if _is_counter(n)}
    network.load_state_dict(weights | counters, assign=True)


def _single_precision(value: Tensor) -> Tensor:
    return value.detach().float() if value.is_floating_point() else value.detach()


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")
