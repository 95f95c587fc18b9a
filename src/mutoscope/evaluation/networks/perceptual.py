"""LPIPS of frames, from weights of local files (arXiv 1801.03924, version 0.1)."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from mutoscope.errors import UserError
from mutoscope.evaluation.networks.weights import sha256_of_file
from mutoscope.tokenizers.perceptual import LPIPS, VGG16, load_perceptual

SMALLEST_SIDE = {"vgg": 32, "alex": 64}  # below, the last maps have no cell left


@dataclass(frozen=True)
class LPIPSMetric:
    """LPIPS with its network, and the SHA-256 of its two weight files."""

    network: LPIPS
    sha256: str

    @property
    def trunk(self) -> str:
        """ "vgg" (MAGVIT) or "alex" (MCVD): their values do not compare."""
        return "vgg" if isinstance(self.network.network, VGG16) else "alex"

    @torch.inference_mode()
    def per_frame(self, real: UInt8[Tensor, "n t h w 3"], fake: UInt8[Tensor, "_n _t _h _w 3"]) -> Float[Tensor, "n t"]:
        """Distance of every pair of frames. Raises UserError for clips of two shapes or too small frames."""
        if real.shape != fake.shape:
            raise UserError(f"LPIPS needs clips of one shape, found {tuple(real.shape)} and {tuple(fake.shape)}.")
        side = min(real.shape[2:4])
        if side < (least := SMALLEST_SIDE[self.trunk]):
            raise UserError(f"LPIPS by {self.trunk} needs frames of at least {least} pixels, found {side}.")
        device = next(self.network.parameters()).device
        distances = []
        for pair in zip(real, fake, strict=True):  # a clip at a time
            x, y = (rearrange(clip.to(device), "t h w c -> t c h w").float() / 255 for clip in pair)
            distances.append(self.network.per_layer(x, y).sum(dim=1).double().cpu())
        return torch.stack(distances)


def load_lpips(trunk: Path | str, heads: Path | str, device: torch.device | str = "cpu") -> LPIPSMetric:
    """LPIPS from torchvision's VGG-16 or AlexNet and LPIPS' `vgg.pth` or `alex.pth`. Nothing is downloaded."""
    network = load_perceptual(trunk, heads=heads)
    assert isinstance(network, LPIPS)
    hashes = "".join(sha256_of_file(path) for path in (trunk, heads))
    return LPIPSMetric(network.to(device), hashlib.sha256(hashes.encode()).hexdigest())
