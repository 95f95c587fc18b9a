"""Linear layers whose weights are kept in the order the CPU's product reads them, for decoding in small steps.

A product of few rows spends more time on rearranging the weights than on multiplying. Decoding repeats products of one
size, so the rearranging is done once.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

SMALLEST_ROWS = 4  # with fewer, the product is one pass over the weights whatever their order
NUM_FORMS = 2  # decoding one by one, then group by group
SMALLEST = 64  # rows and columns of a matrix worth keeping more than once
MAX_BYTES = 2**29  # of a network's matrices, beyond which memory is dearer than time


class PackedLinear(nn.Linear):
    """nn.Linear, with the same parameters; without gradients, products of a number of rows that comes again are faster.

    Forms for two numbers of rows are kept, so the weights take up to three times their memory. Weights that changed
    are rearranged anew. Results differ from those of nn.Linear by rounding, always in the same way: no product depends
    on what was multiplied before.
    """

    def __init__(self, linear: nn.Linear) -> None:
        """Shares the parameters of `linear`."""
        with torch.device("meta"):
            super().__init__(linear.in_features, linear.out_features, linear.bias is not None)
        self.weight, self.bias, self.forms = linear.weight, linear.bias, _Forms()

    def forward(self, input: Float[Tensor, "*b c"]) -> Float[Tensor, "*b o"]:
        weight, rows = self.weight, input.numel() // self.in_features
        plain = rows < SMALLEST_ROWS or torch.is_grad_enabled() or not _is_plain(input, weight)
        if plain:
            return F.linear(input, weight, self.bias)
        x = input.reshape(rows, self.in_features)
        y = torch.ops.mkl._mkl_linear(x, self.forms.of(weight, rows), weight, self.bias, rows)
        return y.view(*input.shape[:-1], self.out_features)


class _Forms:
    """One weight as products with several numbers of rows read it."""

    def __init__(self) -> None:
        self.kept: dict[int, Tensor] = {}
        self._made_of = 0, 0

    def of(self, weight: Tensor, rows: int) -> Tensor:
        # Tensors made in inference mode count no changes.
        state = 0 if weight.is_inference() else weight._version, weight.data_ptr()
        if state != self._made_of:
            self._made_of, self.kept = state, {}
        if rows not in self.kept:
            for oldest in list(self.kept)[: 1 - NUM_FORMS]:
                del self.kept[oldest]
            self.kept[rows] = torch.ops.mkl._mkl_reorder_linear_weight(weight.detach(), rows)
        return self.kept[rows]

    def __deepcopy__(self, memo: dict[int, object]) -> "_Forms":
        return _Forms()  # a copied layer has weights of its own


def pack_linears(network: nn.Module) -> None:
    """Replaces linear layers of at least 64×64 by `PackedLinear` with the same parameters, in place.

    Leaves a network as it is unless it is worth it: float32 on a CPU whose torch has these products, and at most
    512 MiB of matrices.
    """
    found = [
        (parent, name, child)
        for parent in network.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear and min(child.weight.shape) >= SMALLEST
    ]
    weights = [child.weight for _, _, child in found]
    size = sum(weight.numel() * weight.element_size() for weight in weights)
    if size <= MAX_BYTES and torch.backends.mkl.is_available() and _is_plain(*weights):
        for parent, name, child in found:
            setattr(parent, name, PackedLinear(child))


def _is_plain(*tensors: Tensor) -> bool:
    return all(x.dtype == torch.float32 and x.is_cpu for x in tensors)
