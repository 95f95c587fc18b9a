"""Linear layers with weights pre-packed for the CPU's matrix product, for decoding in small steps.

A product of few rows spends more time on rearranging the weights than on multiplying. Decoding repeats products of one
size, so the weights are rearranged once and kept.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

SMALLEST_ROWS = 4  # with fewer rows, the product is one pass over the weights whatever their order
MAX_FORMS = 2  # one for decoding token by token, one for decoding group by group
SMALLEST = 64  # rows and columns from which packing saves noticeable time
MAX_BYTES = 2**29  # of a network's matrices; beyond it, a second and third copy cost too much memory


class PackedLinear(nn.Linear):
    """`nn.Linear` with the same parameters; without gradients, products whose row count repeats run faster.

    Packed weights are kept for two row counts, so the weights take up to three times their memory. Changed weights are
    packed again. Results differ from those of `nn.Linear` by rounding, and never depend on earlier products.
    """

    def __init__(self, linear: nn.Linear) -> None:
        """Shares the parameters of `linear`."""
        with torch.device("meta"):  # allocates and draws nothing
            super().__init__(linear.in_features, linear.out_features, linear.bias is not None)
        self.weight, self.bias, self.packed = linear.weight, linear.bias, _PackedWeights()

    def forward(self, input: Float[Tensor, "*b c"]) -> Float[Tensor, "*b o"]:
        weight, rows = self.weight, input.numel() // self.in_features
        # Inductor takes packed weights only as constants of the code, which then fits no other weights.
        compiling = torch.compiler.is_compiling()
        plain = rows < SMALLEST_ROWS or torch.is_grad_enabled() or compiling or not _is_plain(input, weight)
        if plain:
            return F.linear(input, weight, self.bias)
        x = input.reshape(rows, self.in_features)
        y = torch.ops.mkl._mkl_linear(x, self.packed.of(weight, rows), weight, self.bias, rows)  # (rows, o)
        return y.view(*input.shape[:-1], self.out_features)


class _PackedWeights:
    """One weight, packed for the products of several row counts."""

    def __init__(self) -> None:
        self.by_rows: dict[int, Tensor] = {}
        self._source = 0, 0  # version and address of the weight that was packed

    def of(self, weight: Tensor, rows: int) -> Tensor:
        # Tensors created in inference mode count no changes.
        source = 0 if weight.is_inference() else weight._version, weight.data_ptr()
        if source != self._source:
            self._source, self.by_rows = source, {}
        if rows not in self.by_rows:
            for oldest in list(self.by_rows)[: 1 - MAX_FORMS]:
                del self.by_rows[oldest]
            self.by_rows[rows] = torch.ops.mkl._mkl_reorder_linear_weight(weight.detach(), rows)
        return self.by_rows[rows]

    def __deepcopy__(self, memo: dict[int, object]) -> "_PackedWeights":
        return _PackedWeights()  # a copied layer has weights of its own


def pack_linears(network: nn.Module) -> None:
    """Replaces linear layers of at least 64×64 by `PackedLinear` with the same parameters, in place.

    Does nothing unless the network is float32 on a CPU whose torch has these products, with at most 512 MiB of
    matrices.
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
