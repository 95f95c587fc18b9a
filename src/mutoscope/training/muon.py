"""Muon for weight matrices, AdamW for everything else, as one optimiser (Keller Jordan, 2024; arXiv 2502.16982)."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

# Keller Jordan's quintic iteration, whose slope at zero is steep: five iterations bring singular values near 1 (0.7 to
# 1.2).
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_SMALLEST_NORM = 1e-7  # keeps a zero matrix from dividing by zero; Keller Jordan's value
_UPDATE_SCALE = 0.2  # root mean square of a typical Adam update (arXiv 2502.16982 §2.2)


def orthogonalize(matrices: Float[Tensor, "*b m n"]) -> Float[Tensor, "*b m n"]:
    """The nearest (semi-)orthogonal matrices, approximately: U Vᵀ of the singular value decomposition U S Vᵀ.

    Newton–Schulz iteration X ← (a + b XXᵀ + c (XXᵀ)²) X in the matrix's own precision; a zero matrix stays zero.
    """
    a, b, c = _COEFFICIENTS
    x = matrices / (torch.linalg.matrix_norm(matrices, keepdim=True) + _SMALLEST_NORM)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    # Every factor is a polynomial of the first XXᵀ, so all of them commute: iterating on the small square matrices
    # alone spares all but two of the products with the long side.
    gram = x @ x.mT
    identity = torch.eye(gram.shape[-1], dtype=x.dtype, device=x.device)
    product = identity
    for _ in range(_ITERATIONS):
        factor = a * identity + b * gram + c * gram @ gram
        product = factor @ product
        gram = factor @ gram @ factor
    x = product @ x
    return x.mT if tall else x


class Muon(torch.optim.AdamW):
    """AdamW that updates the groups marked `orthogonal=True` with orthogonalised momentum instead.

    W ← W − lr · (λ W + 0.2 √max(m, n) · orthogonalize(M)), with M the Nesterov momentum of the gradient and W a matrix
    of m rows and n columns: a convolution kernel counts as (channels out) × (channels in · kernel volume). The factor
    gives an update the root mean square of a typical Adam update, so learning rates are of the same order.
    """

    def __init__(self, groups: list[dict], momentum: float = 0.95, **adamw) -> None:
        for group in groups:
            group.setdefault("orthogonal", False)
            group.setdefault("momentum", momentum)
        super().__init__(groups, **adamw)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["orthogonal"]:
                for parameters in _alike([p for p in group["params"] if p.grad is not None]):
                    self._orthogonal_update(parameters, group)
        super().step()
        return loss

    def _orthogonal_update(self, parameters: list[Tensor], group: dict) -> None:
        """One update of matrices of one shape together: a GPU would wait for the start of each product otherwise."""
        gradients = [p.grad for p in parameters if p.grad is not None]  # `step` passes no others
        buffers = [self._momentum_buffer(p) for p in parameters]
        torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
        torch._foreach_lerp_(gradients, buffers, group["momentum"])
        update = orthogonalize(torch.stack([gradient.flatten(1) for gradient in gradients]))  # (k, m, n)
        scale = _UPDATE_SCALE * max(update.shape[1:]) ** 0.5
        updates = [part.view(p.shape) for part, p in zip(update.contiguous(), parameters, strict=True)]
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, updates, alpha=-group["lr"] * scale)
        for parameter in parameters:
            parameter.grad = None  # AdamW skips parameters without a gradient

    def _momentum_buffer(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            # AdamW expects a step count in every state that it restores.
            state.update(step=torch.tensor(0.0), momentum_buffer=torch.zeros_like(parameter))
        state["step"] += 1
        return state["momentum_buffer"]


def _alike(parameters: list[Tensor]) -> list[list[Tensor]]:
    """Parameters grouped by their shape as matrices."""
    groups: dict[tuple[int, int], list[Tensor]] = {}
    for parameter in parameters:
        groups.setdefault((len(parameter), parameter[0].numel()), []).append(parameter)
    return list(groups.values())
