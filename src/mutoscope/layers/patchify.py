"""Latent frames to token vectors and back: pure reshapes."""

from einops import rearrange
from jaxtyping import Float
from torch import Tensor


def patchify(latents: Float[Tensor, "b c t h w"], patch_size: int) -> Float[Tensor, "b t n d"]:
    """Tokens of every frame in raster order; a token holds (row in patch, column in patch, channel) in that order."""
    p = patch_size
    return rearrange(latents, "b c t (h p) (w q) -> b t (h w) (p q c)", p=p, q=p)


def unpatchify(tokens: Float[Tensor, "b t n d"], grid: tuple[int, int], patch_size: int) -> Float[Tensor, "b c t h w"]:
    """The inverse of `patchify`, for a grid of (rows, columns) of tokens."""
    p = patch_size
    return rearrange(tokens, "b t (h w) (p q c) -> b c t (h p) (w q)", h=grid[0], w=grid[1], p=p, q=p)
