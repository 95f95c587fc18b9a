"""Muon for weight matrices, AdamW for everything else, as one optimiser (Keller Jordan, 2024; arXiv 2502.16982)."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

# Quintic iteration whose slope at zero is steep: singular values land near 1 (0.7 to 1.2) after five rounds.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ROUNDS = 5


def orthogonalize(matrix: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
    """The nearest (semi-)orthogonal matrix, approximately: U Vᵀ of the singular value decomposition U S Vᵀ.

    Newton–Schulz iteration X ← (a + b XXᵀ + c (XXᵀ)²) X in the matrix's own precision; a zero matrix stays zero.
    """
    a, b, c = _COEFFICIENTS
    x = matrix / (matrix.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    # Every factor is a polynomial of the first XXᵀ, so all of them commute: iterating on the small square matrices
    # alone spares all but two of the products with the long side.
    gram = x @ x.T
    identity = torch.eye(len(gram), dtype=x.dtype, device=x.device)
    product = identity
    for _ in range(_ROUNDS):
        factor = a * identity + b * gram + c * gram @ gram
        product = factor @ product
        gram = factor @ gram @ factor
    x = product @ x
    return x.T if tall else x


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
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._orthogonal_update(parameter, group)
        super().step()
        return loss

    def _orthogonal_update(self, parameter: Tensor, group: dict) -> None:
        gradient, state = parameter.grad, self.state[parameter]
        if "momentum_buffer" not in state:
            # AdamW expects a step count in every state that it restores.
            state.update(step=torch.tensor(0.0), momentum_buffer=torch.zeros_like(parameter))
        state["step"] += 1
        buffer = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        update = gradient.lerp(buffer, group["momentum"]).flatten(1)  # (m, n)
        scale = 0.2 * max(update.shape) ** 0.5
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(orthogonalize(update).view(parameter.shape), alpha=-group["lr"] * scale)
        parameter.grad = None  # AdamW skips what has no gradient
