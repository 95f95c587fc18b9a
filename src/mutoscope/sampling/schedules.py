"""Share of tokens still masked as a function of decoding progress (arXiv 2202.04200 §3.3, used by arXiv 2212.05199)."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mutoscope.errors import UserError
from mutoscope.json_config import nearest
from mutoscope.layers.token_masking import SMALLEST_RATIO, cosine_mask_ratio, num_masked_tokens

Schedule = Callable[[Tensor, Tensor], Tensor]
"""(progress r in [0, 1], number N of maskable tokens) -> share of masked tokens, before clipping."""

SCHEDULES: dict[str, Schedule] = {
    "uniform": lambda r, n: 1 - r,
    "cosine": lambda r, n: cosine_mask_ratio(r),
    "exp": lambda r, n: 1 - torch.exp2(-torch.log2(n) * (1 - r)),
    # One single token has no logarithm to divide by; 2 gives the right end points.
    "log": lambda r, n: -torch.log2(r) / torch.log2(n.clamp(min=2)),
}
PARAMETRIC = ("powP (such as pow2)", "poly:c0,...,ck (highest power first)")


def parse_schedule(name: str) -> Schedule:
    """The schedule called `name`: uniform, cosine, exp, log, powP (1 - r^P) or poly:c0,...,ck; UserError otherwise."""
    try:
        if name.startswith("pow"):
            power = float(name.removeprefix("pow"))
            return lambda r, n: 1 - r**power
        if name.startswith("poly:"):
            coefficients = [float(c) for c in name.removeprefix("poly:").split(",")]
            return lambda r, n: _polynomial(coefficients, r)
        return SCHEDULES[name]
    except (KeyError, ValueError):
        known = ", ".join((*SCHEDULES, *PARAMETRIC))
        raise UserError(f"There is no schedule {name!r}: {nearest(name, SCHEDULES)} Schedules: {known}.") from None


def mask_ratio(
    schedule: str, progress: Float[Tensor, "*s"], num_tokens: int | Int[Tensor, "*s"]
) -> Float[Tensor, "*s"]:
    """Share of tokens masked at `progress`, in float32 and clipped to [1e-6, 1]."""
    progress = progress.float()
    n = torch.as_tensor(num_tokens, dtype=torch.float32, device=progress.device)
    return parse_schedule(schedule)(progress, n).clamp(SMALLEST_RATIO, 1.0)


def num_masked_after(schedule: str, step: int, num_steps: int, num_tokens: Int[Tensor, " b"]) -> Int[Tensor, " b"]:
    """How many of `num_tokens` the schedule leaves masked after 0-based `step` of `num_steps` (at least 1)."""
    # Both operands float32: the quotient decides counts, and float64 would round some of them differently.
    progress = torch.tensor(step + 1, dtype=torch.float32) / torch.tensor(num_steps, dtype=torch.float32)
    progress = progress.to(num_tokens.device).expand(num_tokens.shape)
    return num_masked_tokens(mask_ratio(schedule, progress, num_tokens), num_tokens)


def check_num_steps(num_steps: int, num_tokens: int) -> None:
    """Refuse more steps than tokens (UserError): the sampler would run out of tokens and stop early."""
    if not 1 <= num_steps <= num_tokens:
        raise UserError(f"{num_steps} decoding steps for {num_tokens} tokens; choose a number from 1 to {num_tokens}.")


def _polynomial(coefficients: list[float], r: Tensor) -> Tensor:
    value = torch.zeros_like(r)
    for coefficient in coefficients:
        value = value * r + coefficient
    return value
