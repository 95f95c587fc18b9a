"""The conditioning region in a generated clip without a seam: its difference is interpolated into the other pixels.

Shepard's interpolation (1968) of the difference, as membranes do it in image editing (Pérez et al. 2003): the tone and
the light of the generated part follow those of the conditioning region, its edges and its texture stay.
"""

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from mutoscope.tokenizers.base import VideoTokenizer

POWER = 6.0


@torch.no_grad()
def blended_and_coded(
    tokenizer: VideoTokenizer,
    generated: UInt8[Tensor, "b t h w 3"],
    given: UInt8[Tensor, "#b t h w 3"],
    mask: Bool[Tensor, "t h w"],
) -> UInt8[Tensor, "b t h w 3"]:
    """`blend`, and once more through the tokenizer: the conditioning region becomes as soft as its neighbours.

    Only frames that show anything given are changed. In the others, given shapes would leave ghosts where they were,
    and coding twice costs sharpness.
    """
    device = next(tokenizer.parameters()).device
    clips, shown = (tokenizer.from_uint8(pixels.to(device)) for pixels in (generated, given))
    mask = mask.to(device)
    blended = blend(clips, shown, mask)
    coded = tokenizer.decode(tokenizer.encode(blended))
    shows_given = mask.any(dim=(1, 2))[:, None, None]  # (t, 1, 1)
    return tokenizer.to_uint8(torch.where(shows_given, coded, clips)).cpu()


def blend(
    generated: Float[Tensor, "b 3 t h w"], given: Float[Tensor, "#b 3 t h w"], mask: Bool[Tensor, "t h w"]
) -> Float[Tensor, "b 3 t h w"]:
    """The conditioning region where `mask` is True, elsewhere the generated ones plus the interpolated difference.

    Values in [-1, 1]. `mask` must be True somewhere.
    """
    difference = (given - generated).masked_fill(~mask, 0.0)
    blended = (generated + spread(difference, mask)).clamp(-1.0, 1.0)
    return torch.where(mask, given, blended)


def spread(values: Float[Tensor, "b c t h w"], mask: Bool[Tensor, "t h w"]) -> Float[Tensor, "b c t h w"]:
    """At every pixel the average of the values at the masked ones, by weights that fall with the distance.

    `values` must be 0 outside of the mask. The weight is a sum of Gaussians of doubling widths, Σ s^-p exp(-d²/2s²),
    close to d^-p: every width is three products with small matrices, one along each axis.
    """
    weights = mask.to(values.dtype)
    total, norm = torch.zeros_like(values), torch.zeros_like(weights)
    width = 0.5
    while width < 2 * max(mask.shape):
        total += width**-POWER * _gaussian(values, width)
        norm += width**-POWER * _gaussian(weights, width)
        width *= 2
    return total / norm


def _gaussian(x: Float[Tensor, "*b t h w"], width: float) -> Float[Tensor, "*b t h w"]:
    for axis in (-3, -2, -1):
        places = torch.arange(x.shape[axis], device=x.device, dtype=x.dtype)
        kernel = torch.exp(-(places[:, None] - places).square() / (2 * width * width))  # symmetric
        x = (x.movedim(axis, -1) @ kernel).movedim(-1, axis)
    return x
