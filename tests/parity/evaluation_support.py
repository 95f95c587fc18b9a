"""Weights by a closed formula: every tensor follows from an integer seed and its shape."""

import hashlib
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

BLOCK = 2**16


def uniform(seed: int, count: int) -> np.ndarray:
    """u(seed, 0 ... count - 1) in [-1, 1), exact in float32."""
    values = np.empty(count)
    for start in range(0, count, BLOCK):  # blocks that stay in the processor's cache
        h = np.arange(start, min(start + BLOCK, count), dtype=np.uint32) + np.uint32(0x9E3779B9 * seed % 2**32)
        h ^= h >> np.uint32(16)
        h *= np.uint32(0x85EBCA6B)
        h ^= h >> np.uint32(13)
        h *= np.uint32(0xC2B2AE35)
        h ^= h >> np.uint32(16)
        values[start : start + BLOCK] = (h >> np.uint32(8)) * 2.0**-23 - 1
    return values


def fill(name: str, shape: Sequence[int], seed: int) -> Tensor:
    """One tensor by the rule for its kind, computed in float64 and rounded once."""
    values = uniform(seed, math.prod(shape))
    if name.endswith("bn.weight"):
        values = 1 + 0.1 * values
    elif name.endswith("bn.running_var"):
        values = 1 + 0.5 * values
    elif name.endswith("weight"):
        values *= math.sqrt(6 / math.prod(shape[1:]))
    else:
        values = 0.1 * values
    return torch.from_numpy(values.astype(np.float32).reshape(tuple(shape)))


def closed_form(shapes: Mapping[str, Sequence[int]], base: int) -> dict[str, Tensor]:
    """Tensors whose seeds are `base` plus their rank by name."""
    return {name: fill(name, shapes[name], base + rank) for rank, name in enumerate(sorted(shapes))}


def sha256_16(tensor: Tensor) -> str:
    """First 16 hexadecimal digits of the SHA-256 of a tensor's float32 bytes."""
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()[:16]


def check_sums(weights: Mapping[str, Tensor], expected: Mapping[str, str]) -> None:
    for name, digits in expected.items():
        assert sha256_16(weights[name]) == digits, f"{name} is not the tensor the vectors were made with"


def relative(found: Tensor, expected: Tensor) -> float:
    """Relative L2 distance."""
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


def samples(tensor: Tensor, count: int) -> Tensor:
    """`count` values of a flattened tensor, evenly spaced from the first to the last."""
    flat = tensor.flatten()
    places = [k * (len(flat) - 1) // max(count - 1, 1) for k in range(count)]
    return flat[places]
