"""Colours of the shapes in a frame of the shapes dataset, from its palette: no network that clips could fool.

The shapes of a clip all have different colours, so the colours in sight also count them.
"""

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from mutoscope.data.sources.shapes.world import BACKGROUND_TONES, PALETTE

LARGEST_DISTANCE = 0.2  # in RGB from 0 to 1: less than what separates most colours of the palette
NEAR_DISTANCE = 0.1  # in RGB from 0 to 1: four times the contrast of the textures
SMALLEST_SHARE = 0.01  # of the frame: a quarter of the smallest shape


def colors_in_sight(frames: UInt8[Tensor, "*s h w 3"]) -> Bool[Tensor, "*s colors"]:
    """Whether each colour of the palette covers enough of the frame to be a shape."""
    palette = torch.from_numpy(PALETTE)
    pixels = frames.float().flatten(-3, -2) / 255  # (*s, hw, 3)
    distance, nearest = torch.cdist(pixels, palette.expand(*pixels.shape[:-2], -1, -1)).min(-1)
    nearest = torch.where(distance < LARGEST_DISTANCE, nearest, len(palette))
    share = torch.nn.functional.one_hot(nearest, len(palette) + 1).float().mean(-2)[..., :-1]
    return share > SMALLEST_SHARE


def shapes_agree(frames: UInt8[Tensor, "n h w 3"], present: Bool[Tensor, "n colors"]) -> Bool[Tensor, " n"]:
    """Whether number and colours of the shapes in sight are those that are `present`."""
    return (colors_in_sight(frames) == present).all(-1)


def share_in_palette(frames: UInt8[Tensor, "*s h w 3"]) -> Float[Tensor, "*s"]:
    """Share of the pixels of each frame that are near a colour or a background of the dataset.

    A clip of the dataset has few others: the edges of its shapes.
    """
    tones = torch.from_numpy(BACKGROUND_TONES)
    palette = torch.cat([torch.from_numpy(PALETTE), tones])
    pixels = frames.float().flatten(-3, -2) / 255  # (*s, hw, 3)
    distance = torch.cdist(pixels, palette.expand(*pixels.shape[:-2], -1, -1)).amin(-1)  # (*s, hw)
    return (distance < NEAR_DISTANCE).float().mean(-1)
