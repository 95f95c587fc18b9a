"""Refusal of numbers that are not finite, before they become black frames or draws that mean nothing."""

import torch
from torch import Tensor

from mutoscope.errors import UserError

FLOAT16_MAX = 65504


def require_finite(values: Tensor, stage: str, dtype: torch.dtype | None = None, option: str = "dtype") -> None:
    """Raises UserError if a number is NaN or infinite.

    `stage` names the numbers and begins the message ("The model's logits"). `dtype`: that of the computation, which the
    message names (default: that of `values`); `option`: the one that changes it. Costs one reduction, and on a GPU one
    wait for it: call it once per decoding step, outside of CUDA graphs.
    """
    # The sum of finite numbers may overflow, so only a finite sum proves anything.
    if not values.sum(dtype=torch.float32).isfinite() and not values.isfinite().all():
        raise UserError(not_finite(stage, dtype or values.dtype, option))


def not_finite(stage: str, dtype: torch.dtype, option: str = "dtype") -> str:
    """What is wrong and what to do about numbers that are not finite."""
    name, flag = str(dtype).removeprefix("torch."), "--" + option.replace("_", "-")
    found = f"{stage} hold numbers that are not finite (NaN or infinity), computed in {name}"
    if dtype == torch.float16:
        return (
            f"{found}, which ends at {FLOAT16_MAX}: use {flag} float32 or bfloat16. If that does not help, the weights "
            "are damaged."
        )
    if dtype == torch.bfloat16:
        return f"{found}: use {flag} float32. If that does not help, the weights are damaged."
    return f"{found}: the weights are damaged, or their training diverged. Copy or train the model again."
