"""Linear layers with 8-bit weights, for sampling on the CPU: a quarter of the weights' memory, and faster products."""

import torch
from jaxtyping import BFloat16, Float, Int8
from torch import Tensor, nn

from mutoscope.errors import UserError

MAX_WEIGHT_ONLY_ROWS = 4  # with more, torch's product of 8-bit inputs is faster than that of 16-bit inputs (measured)
ALIGNMENT = 64  # torch's product of 16-bit inputs reads past the end of a matrix of other widths
SMALLEST = 64  # rows and columns from which 8 bits save noticeable time
MAX_INT8 = 127  # symmetric around 0, so -128 stays unused
SMALLEST_SCALE = 1e-12  # keeps the scale of a row of zeros positive


class Int8Linear(nn.Module):
    """y = x Wᵀ + b with W in 8-bit integers and one scale per output channel, symmetric around 0.

    Up to four rows of x are read in bfloat16 and only the weights are rounded; more rows are rounded to 8 bits too,
    with one scale per row. So the result depends slightly on the number of rows. Gradients do not pass.
    """

    weight: Int8[Tensor, "o c"]
    scale: BFloat16[Tensor, " o"]
    bias: Float[Tensor, " o"] | None

    def __init__(self, weight: Float[Tensor, "o c"], bias: Float[Tensor, " o"] | None = None) -> None:
        super().__init__()
        weight = weight.detach().float().contiguous()
        # torch's product needs a bfloat16 scale. Rounding it before dividing by it adds no error of its own.
        scale = (weight.abs().amax(dim=1).clamp(min=SMALLEST_SCALE) / MAX_INT8).bfloat16()  # (o,)
        self.register_buffer("weight", (weight / scale[:, None]).round().clamp(-MAX_INT8, MAX_INT8).to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def forward(self, x: Float[Tensor, "*b c"]) -> Float[Tensor, "*b o"]:
        rows = x.reshape(-1, x.shape[-1])  # (n, c)
        weight_only = len(rows) <= MAX_WEIGHT_ONLY_ROWS and rows.shape[1] % ALIGNMENT == 0
        product = self._weight_only(rows) if weight_only else self._both_rounded(rows)
        y = product.to(x.dtype).view(*x.shape[:-1], len(self.weight))
        return y if self.bias is None else y + self.bias.to(x.dtype)

    def _weight_only(self, x: Float[Tensor, "n c"]) -> Float[Tensor, "n o"]:
        return torch.ops.aten._weight_int8pack_mm(x.bfloat16().contiguous(), self.weight, self.scale)

    def _both_rounded(self, x: Float[Tensor, "n c"]) -> Float[Tensor, "n o"]:
        x = x.float()
        step = x.abs().amax(dim=1, keepdim=True).clamp(min=SMALLEST_SCALE) / MAX_INT8  # (n, 1)
        return torch._int_mm((x / step).round().to(torch.int8), self.weight.T).float() * step * self.scale


def quantize_linears(network: nn.Module) -> None:
    """Replaces every linear layer of at least 64×64 by its 8-bit form, in place.

    Raises UserError unless the network is on the CPU, the only device with these products for any number of rows.
    """
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear) and min(child.weight.shape) >= SMALLEST:
                if child.weight.device.type != "cpu":
                    raise UserError("8-bit weights are for the CPU. On a GPU use bfloat16.")
                setattr(module, name, Int8Linear(child.weight, child.bias).eval())
