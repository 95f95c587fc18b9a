"""LoRA: fine-tuning through trained changes of low rank beside frozen matrices (arXiv 2106.09685).

A layer of our own instead of the library peft, which needs accelerate and transformers.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mutoscope.errors import UserError
from mutoscope.json_config import nearest


@dataclass(frozen=True)
class LoRAConfig:
    """Which matrices are changed, and by how much. Raises UserError for values outside their ranges."""

    r: int = 16
    """rank of the trained change of every matrix"""
    alpha: float = 16.0
    """the change is scaled by alpha / r, so that another rank needs no other learning rate"""
    target_modules: tuple[str, ...] = ()
    """linear layers that are changed, by the end of their names ("qkv", "attention.output"; * stands for any text);
    none named: the attention and MLP projections of the model's family"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "target_modules", tuple(self.target_modules))  # JSON has no tuples
        if self.r < 1:
            raise UserError(f"lora.r must be at least 1, found {self.r}.")
        if not 0 < self.alpha < math.inf:
            raise UserError(f"lora.alpha must be positive and finite, found {self.alpha}.")


class LoRALinear(nn.Module):
    """y = x (W + alpha/r · up · down)ᵀ + b with W and b frozen; `up` starts at zero, so that nothing changes at first.

    The layer is no `nn.Linear`, so that optimisers treat the factors as plain parameters: without weight decay and
    without Muon's orthogonal updates, which would move a factor of zeros at full speed.
    """

    def __init__(self, linear: nn.Linear, config: LoRAConfig) -> None:
        """Takes over the parameters of `linear` and freezes them."""
        super().__init__()
        rows, columns = linear.weight.shape
        self.base, self.bias = linear.weight.requires_grad_(False), linear.bias
        if self.bias is not None:
            self.bias.requires_grad_(False)
        self.scale = config.alpha / config.r
        like = {"device": linear.weight.device, "dtype": linear.weight.dtype}
        self.down = nn.Parameter(torch.empty(config.r, columns, **like))
        self.up = nn.Parameter(torch.zeros(rows, config.r, **like))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))  # released code of the paper

    @property
    def weight(self) -> Float[Tensor, "o c"]:
        """The changed matrix, for code that reads a layer's weights."""
        return self.base + self.scale * (self.up @ self.down)

    def forward(self, x: Float[Tensor, "*b c"]) -> Float[Tensor, "*b o"]:
        return F.linear(x, self.base, self.bias) + self.scale * F.linear(F.linear(x, self.down), self.up)

    def merged(self) -> nn.Linear:
        """A plain linear layer with the changed matrix."""
        linear = nn.Linear(self.base.shape[1], self.base.shape[0], self.bias is not None, device="meta")
        linear.weight, linear.bias = nn.Parameter(self.weight.detach()), self.bias
        return linear.requires_grad_(True)


def add_lora(network: nn.Module, config: LoRAConfig, targets: Sequence[str]) -> tuple[str, ...]:
    """Freezes a network and adds trained low-rank changes to its linear layers, in place; returns the layers' names.

    targets: the layers where `config` names none, by the ends of their names; a name without a layer is ignored here,
    since the layer may belong to a condition. Raises UserError for a name of `config` that no linear layer has.
    """
    found = list(linear_layers(network))
    for target in config.target_modules:
        if not any(is_target(name, target) for name, *_ in found):
            endings = {name.rpartition(".")[2] for name, *_ in found}
            raise UserError(
                f"lora.target_modules names {target!r}, which no linear layer is: {nearest(target, endings)}"
            )
    wanted = config.target_modules or targets
    network.requires_grad_(False)
    chosen = [entry for entry in found if any(is_target(entry[0], target) for target in wanted)]
    for _, parent, key, linear in chosen:
        setattr(parent, key, LoRALinear(linear, config))
    return tuple(name for name, *_ in chosen)


def merge_lora(network: nn.Module) -> nn.Module:
    """Adds the low-rank changes to their matrices, in place: the same outputs, under the names of the plain network."""
    for parent in list(network.modules()):
        for key, child in parent.named_children():
            if isinstance(child, LoRALinear):
                setattr(parent, key, child.merged())
    return network


def linear_layers(network: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Linear]]:
    """(name, parent, name within the parent, layer) of every linear layer."""
    for prefix, parent in network.named_modules():
        for key, child in parent.named_children():
            if isinstance(child, nn.Linear):
                yield (f"{prefix}.{key}" if prefix else key), parent, key, child


def is_target(name: str, target: str) -> bool:
    """Whether a layer's dotted name ends with `target`, counted in whole parts."""
    return fnmatchcase(f".{name}", f"*.{target}")
