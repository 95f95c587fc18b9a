"""Operations that a computation needs, and the rates at which a machine can carry them out: bounds for its speed.

A multiply-add counts as two operations. Counted are matrix products, convolutions and attention, which are nearly all
of a network's arithmetic; everything else takes time as well, so a bound is never reached.
"""

import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

MATRIX_SIDE = {"cpu": 512, "cuda": 8192}  # large enough for the full rate; short enough to run undisturbed now and then
MEASURED_SECONDS = 0.5  # of repetitions; the fastest counts, since other programs only slow a product down
MIN_REPEATS = 4
SMALLEST_READ, LARGEST_READ = 2**20, 2**28  # bytes; larger sets are read at the rate of the memory
INSTRUCTIONS = ("amx_bf16", "amx_int8", "avx512_bf16", "avx512_vnni")  # for narrow numbers, as Linux names them
ROW = 4096  # columns of the matrix that is read


@dataclass
class Operations:
    """Operations by what is multiplied, and bytes of weights, keys and values that are read for them."""

    by_number: Counter[str] = field(default_factory=Counter[str])
    read_bytes: int = 0

    @property
    def total(self) -> int:
        return self.by_number.total()

    def seconds(self, rates: Mapping[str, float]) -> float:
        """Time of the arithmetic alone, at `rates` in operations per second."""
        return sum(count / rates[number] for number, count in self.by_number.items())


class CountOperations(TorchDispatchMode):
    """Counts the operations of a block of code into `self.found`; their results stay the same bit for bit."""

    def __init__(self) -> None:
        super().__init__()
        self.found = Operations()

    def __torch_dispatch__(
        self, func: "torch._ops.OpOverload", types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        kwargs = kwargs or {}
        formula = FORMULAS.get(str(func.overloadpacket))
        if formula is None:  # in inference mode, layers arrive here before they are taken apart
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        result = func(*args, **kwargs)
        if formula is not None:
            count, number, read = formula(args, result)
            self.found.by_number[number] += count
            self.found.read_bytes += sum(tensor.numel() * tensor.element_size() for tensor in read)
        return result


Count = tuple[int, str, Sequence[Tensor]]
"""Operations, what is multiplied, and the weights, keys and values that are read."""
Formula = Callable[[tuple, object], Count]


def _number(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _product(first: int) -> Formula:
    """Of matrices (…, m, k) and (…, k, n), arguments `first` and the next one."""

    def formula(args: tuple, result: object) -> Count:
        a, b = args[first : first + 2]
        return 2 * a.numel() * b.shape[-1], _number(a), [b]

    return formula


def _packed_linear(args: tuple, result: object) -> Count:
    x, weight = args[0], args[2]
    return 2 * x.numel() * weight.shape[0], _number(x), [weight]


def _linear(args: tuple, result: object) -> Count:
    x, weight = args[:2]
    return 2 * x.numel() * weight.shape[0], _number(x), [weight]


def _int8_linear(args: tuple, result: object) -> Count:
    x, weight = args[:2]
    return 2 * x.numel() * weight.shape[0], "int8", [weight]


def _convolution(args: tuple, result: object) -> Count:
    x, weight, is_transposed = args[0], args[1], bool(args[6])
    outputs = x if is_transposed else result
    assert isinstance(outputs, Tensor)
    per_output = weight.numel() // weight.shape[0]
    return 2 * outputs.numel() * per_output, _number(x), [weight]


def _convolution_backward(args: tuple, result: object) -> Count:
    """Gradients of inputs and weights cost a convolution each."""
    gradient, x, weight, is_transposed, wanted = args[0], args[1], args[2], bool(args[7]), args[10]
    per_output = weight.numel() // weight.shape[0]
    once = 2 * (x if is_transposed else gradient).numel() * per_output
    return once * (bool(wanted[0]) + bool(wanted[1])), _number(x), [weight]


def _attention(args: tuple, result: object) -> Count:
    q, k, v = args[:3]
    return _attention_operations(q, k, v), _number(q), [k, v]


def _attention_backward(args: tuple, result: object) -> Count:
    """Twice the forward pass; kernels that compute the weights anew do more."""
    q, k, v = args[1:4]
    return 2 * _attention_operations(q, k, v), _number(q), [k, v]


def _attention_operations(q: Tensor, k: Tensor, v: Tensor) -> int:
    """q (b, h, n, d), k (b, h, m, d), v (b, h, m, e)."""
    return 2 * prod(q.shape[:-1]) * k.shape[-2] * (q.shape[-1] + v.shape[-1])


ATTENTION = ("flash_attention", "efficient_attention", "cudnn_attention", "flash_attention_for_cpu")
FORMULAS: dict[str, Formula] = {
    "aten.mm": _product(0),
    "aten.bmm": _product(0),
    "aten.addmm": _product(1),
    "aten.baddbmm": _product(1),
    "aten._int_mm": _product(0),
    "aten._weight_int8pack_mm": _int8_linear,
    "mkl._mkl_linear": _packed_linear,
    "mkldnn._linear_pointwise": _linear,
    "aten.mkldnn_linear": _linear,
    "aten.convolution": _convolution,
    "aten.convolution_backward": _convolution_backward,
    **{f"aten._scaled_dot_product_{kind}": _attention for kind in ATTENTION},
    **{f"aten._scaled_dot_product_{kind}_backward": _attention_backward for kind in ATTENTION},
    "aten._scaled_dot_product_flash_attention_for_cpu_backward": _attention_backward,
    "aten._scaled_dot_product_fused_attention_overrideable": _attention,
    "aten._scaled_dot_product_fused_attention_overrideable_backward": _attention_backward,
}


# -------------------------------------------------------------------------------------------------- rates of a machine


def matrix_rate(device: torch.device, number: str = "float32") -> float:
    """Operations per second of large matrix products on this device, with torch's current number of threads."""
    side = MATRIX_SIDE.get(device.type, 2048)
    if number == "int8":
        a, b = (torch.ones(side, side, dtype=torch.int8, device=device) for _ in range(2))
        seconds = fastest(lambda: torch._int_mm(a, b), device)
    else:
        a, b = (torch.full((side, side), 0.5, dtype=getattr(torch, number), device=device) for _ in range(2))
        with torch.inference_mode():
            seconds = fastest(lambda: a @ b, device)
    return 2 * side**3 / seconds


def memory_rate(device: torch.device, num_bytes: int) -> float:
    """Bytes per second of reading the same `num_bytes` again and again: from a cache if they fit into one."""
    size = max(SMALLEST_READ, min(num_bytes, LARGEST_READ))
    matrix = torch.ones(max(1, size // (4 * ROW)), ROW, device=device)
    vector = torch.ones(ROW, device=device)
    with torch.inference_mode():
        product, total = (fastest(call, device) for call in (lambda: matrix @ vector, matrix.sum))
    return 4 * matrix.numel() / min(product, total)


def processor_name(device: torch.device) -> str:
    """The name of a device as its maker calls it, with the number of cores of a processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cores = f"{os.cpu_count()} cores"
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return f"{platform.processor() or platform.machine()}, {cores}"
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    flags = [flag for flag in INSTRUCTIONS if flag in text]
    return ", ".join([*(names[:1] or [platform.machine()]), cores, *flags])


def fastest(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of several calls, after one that does not count."""
    call()
    best, spent, repeats = float("inf"), 0.0, 0
    while spent < MEASURED_SECONDS or repeats < MIN_REPEATS:
        _synchronize(device)
        begin = time.perf_counter()
        call()
        _synchronize(device)
        seconds = time.perf_counter() - begin
        best, spent, repeats = min(best, seconds), spent + seconds, repeats + 1
    return max(best, 1e-9)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
