"""The conventions of published FVDs: preprocessing of clips before I3D, and the covariance.

A convention is a closed choice of resizing, the network's eps and the covariance's divisor. Logits of two conventions
differ by about a percent; both sides of one figure must go through the same one.
"""

from dataclasses import asdict, dataclass
from typing import Literal

from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from mutoscope.errors import UserError
from mutoscope.evaluation.networks.i3d import SIDE, check_clip
from mutoscope.evaluation.networks.resize import bilinear, cover_and_crop
from mutoscope.json_config import nearest

Resize = Literal["half_pixel", "tf1", "crop"]


@dataclass(frozen=True)
class FVDConvention:
    """How clips reach I3D, and how its features become a distance.

    resize: "half_pixel" squashes the frame to 224×224; "tf1" does so by TensorFlow 1's bilinear rule; "crop" brings the
    shorter side to 224 and cuts out the middle. through: side of a square the frames are brought to first, likewise.
    eps: of I3D's batch norms. biased: covariance over n instead of n - 1.
    """

    name: str
    resize: Resize
    eps: float
    biased: bool = False
    through: int | None = None
    used_by: str = ""

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


CONVENTIONS = {
    convention.name: convention
    for convention in (
        FVDConvention("tats", "half_pixel", 1e-5, used_by="TATS"),
        FVDConvention("cd-fvd", "half_pixel", 1e-5, biased=True, used_by="content-debiased FVD"),
        FVDConvention("videogpt", "crop", 1e-5, used_by="VideoGPT"),
        FVDConvention("tf", "tf1", 1e-3, used_by="TF-Hub's original, MAGVIT"),
        FVDConvention("tf-64", "tf1", 1e-3, through=64, used_by="MAGVIT's script for Kinetics-600"),
        # Their TorchScript file is a program that is never run here: its eps and resizing are assumed.
        FVDConvention("stylegan-v", "half_pixel", 1e-3, biased=True, used_by="StyleGAN-V"),
        FVDConvention("mcvd", "crop", 1e-3, used_by="MCVD, common_metrics"),
    )
}
DEFAULT_CONVENTION = "tats"


def convention_named(name: str) -> FVDConvention:
    """Raises UserError for a name that is not in CONVENTIONS."""
    if name not in CONVENTIONS:
        raise UserError(f"Unknown FVD convention {name!r}: {nearest(name, CONVENTIONS)}")
    return CONVENTIONS[name]


def i3d_input(
    video: UInt8[Tensor, "b t h w 3"], convention: FVDConvention, side: int = SIDE
) -> Float[Tensor, "b 3 t side side"]:
    """Input of I3D under a convention, in [-1, 1]. Raises UserError below 9 frames."""
    check_clip(video.shape[1])
    frames = rearrange(video, "b t h w c -> (b t) c h w").float()
    frames = resized(frames, convention.resize, convention.through) if convention.through else frames
    frames = resized(frames, convention.resize, side) / 127.5 - 1
    return rearrange(frames, "(b t) c h w -> b c t h w", b=len(video))


def resized(frames: Float[Tensor, "n c h w"], rule: Resize, side: int) -> Float[Tensor, "n c side side"]:
    """Frames of any range at side × side pixels."""
    if rule == "crop":
        return cover_and_crop(frames, side)
    return bilinear(frames, side, side, "legacy" if rule == "tf1" else "half_pixel")
