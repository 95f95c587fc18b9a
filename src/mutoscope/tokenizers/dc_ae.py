"""DC-AE (arXiv 2410.10733): an autoencoder of single images with deep compression, run by diffusers.

FAR's own autoencoders and the published ones have the class `AutoencoderDC` of diffusers, with the same names of
tensors. Latents have no distribution: the encoder is deterministic.
"""

import json
from dataclasses import dataclass, field
from typing import Protocol

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from mutoscope.errors import UserError, reason
from mutoscope.tokenizers.base import TokenizerSpec, VideoTokenizer

CLASS_NAME = "AutoencoderDC"
MAX_IMAGES = 16  # encoded or decoded together: bounds memory, and does not change the result


@dataclass(frozen=True)
class DCAEConfig:
    """Arguments of the constructor of diffusers' `AutoencoderDC`, from its config.json."""

    arguments: dict[str, object] = field(default_factory=dict)


class EncodedImages(Protocol):
    @property
    def latent(self) -> Tensor: ...


class DecodedImages(Protocol):
    @property
    def sample(self) -> Tensor: ...


class DCNetwork(Protocol):
    """The parts of diffusers' autoencoder that we call; it is also an `nn.Module`."""

    @property
    def config(self) -> object: ...

    @property
    def spatial_compression_ratio(self) -> int: ...

    def encode(self, x: Tensor) -> EncodedImages: ...

    def decode(self, z: Tensor) -> DecodedImages: ...


class DCAE(VideoTokenizer):
    """Pixels in [-1, 1]; latents are those of the encoder times `scaling_factor` of the configuration."""

    def __init__(self, config: DCAEConfig) -> None:
        super().__init__()
        self.config = config
        self.vae = _build(config)

    @property
    def spec(self) -> TokenizerSpec:
        return TokenizerSpec(
            temporal_stride=1,
            spatial_stride=self.vae.spatial_compression_ratio,
            latent_channels=int(self._number("latent_channels")),
            per_frame=True,
        )

    @property
    def scaling_factor(self) -> float:
        return self._number("scaling_factor")

    def encode(self, video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b d t lh lw"]:
        stride = self.spec.spatial_stride
        if video.shape[-2] % stride or video.shape[-1] % stride:
            raise UserError(f"This autoencoder takes sizes in multiples of {stride}, found {tuple(video.shape[-2:])}.")
        images = rearrange(video, "b c t h w -> (b t) c h w")
        latents = torch.cat([self.vae.encode(part).latent for part in images.split(MAX_IMAGES)])
        return rearrange(latents, "(b t) d h w -> b d t h w", b=len(video)) * self.scaling_factor

    def decode(self, tokens: Float[Tensor, "b d t lh lw"]) -> Float[Tensor, "b 3 t h w"]:
        latents = rearrange(tokens / self.scaling_factor, "b d t h w -> (b t) d h w")
        images = torch.cat([self.vae.decode(part).sample for part in latents.split(MAX_IMAGES)])
        return rearrange(images, "(b t) c h w -> b c t h w", b=len(tokens))

    def _number(self, name: str) -> float:
        """A setting of the network."""
        return float(getattr(self.vae.config, name))


def _build(config: DCAEConfig) -> DCNetwork:
    """The network with fresh weights; nothing is downloaded."""
    try:
        import diffusers
    except ImportError:
        raise UserError(
            f"{CLASS_NAME} is run by diffusers, which is not installed: pip install 'mutoscope[vae]'."
        ) from None
    arguments = json.loads(json.dumps(config.arguments))  # a copy: the constructor may keep its arguments
    try:
        return getattr(diffusers, CLASS_NAME)(**arguments)
    except (TypeError, ValueError, AttributeError, LookupError, RuntimeError) as error:
        raise UserError(f"diffusers {diffusers.__version__} cannot build {CLASS_NAME}: {reason(error)}.") from None
