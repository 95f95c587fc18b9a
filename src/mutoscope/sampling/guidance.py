"""Classifier-free guidance."""

from jaxtyping import Float
from torch import Tensor


def guide(
    conditional: Float[Tensor, "*s"], unconditional: Float[Tensor, "*s"], guidance_scale: float | Float[Tensor, ""]
) -> Float[Tensor, "*s"]:
    """u + s (c - u). Scale 1 is off; MAGVIT's own g, in c + g (c - u), is s - 1."""
    return unconditional + guidance_scale * (conditional - unconditional)
