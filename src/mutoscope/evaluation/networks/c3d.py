"""C3D (arXiv 1412.0767) fine-tuned on UCF-101, the classifier of the inception score of videos.

    clips of 16 frames -> 112×112, B G R in 0 ... 255, minus the mean cube
      -> eight 3×3×3 convolutions with ReLU, a max-pool after five of the groups
      -> fc6, fc7 (4096, ReLU) -> logits of 101 classes

TGAN2's conversion of the Caffe weights is what papers use; MAGVIT's copy is the same network.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from mutoscope.errors import UserError
from mutoscope.evaluation.networks.resize import bilinear
from mutoscope.evaluation.networks.weights import fit_weights, read_weights
from mutoscope.meta_device import on_meta_device

NUM_FRAMES, SIDE = 16, 112
WHAT = "C3D with UCF-101 classes"
# name, channels, and the max-pool after it
CONVOLUTIONS = (
    ("conv1a", 64, (1, 2, 2)),
    ("conv2a", 128, (2, 2, 2)),
    ("conv3a", 256, None),
    ("conv3b", 256, (2, 2, 2)),
    ("conv4a", 512, None),
    ("conv4b", 512, (2, 2, 2)),
    ("conv5a", 512, None),
    ("conv5b", 512, None),  # pooled after padding
)


class C3D(nn.Module):
    """Clips to logits, in evaluation mode always.

    `mean`: what is subtracted, B G R in 0 ... 255, (16, 112, 112, 3) or broadcastable to it.
    """

    mean: Tensor

    def __init__(self, num_classes: int = 101, hidden: int = 4096) -> None:
        super().__init__()
        channels = 3
        for name, width, _ in CONVOLUTIONS:
            self.add_module(name, nn.Conv3d(channels, width, 3, padding=1))
            channels = width
        self.fc6 = nn.Linear(channels * 4 * 4, hidden)
        self.fc7 = nn.Linear(hidden, hidden)
        self.fc8 = nn.Linear(hidden, num_classes)
        self.register_buffer("mean", torch.zeros(NUM_FRAMES, SIDE, SIDE, 3))
        self.eval().requires_grad_(False)

    def preprocess(self, video: UInt8[Tensor, "b t h w 3"]) -> Float[Tensor, "b 3 16 112 112"]:
        """Bilinear with corners aligned, then the mean. Raises UserError for another number of frames."""
        if video.shape[1] != NUM_FRAMES:
            raise UserError(
                f"C3D reads clips of {NUM_FRAMES} frames, found {video.shape[1]}: cut clips to that length."
            )
        frames = rearrange(video.flip(-1), "b t h w c -> (b t) c h w").float()  # R G B to B G R
        frames = bilinear(frames, SIDE, SIDE, "aligned")
        frames = rearrange(frames, "(b t) c h w -> b c t h w", t=NUM_FRAMES)
        return frames - rearrange(self.mean, "t h w c -> c t h w")

    def features(self, x: Float[Tensor, "b 3 16 112 112"]) -> Float[Tensor, "b d"]:
        """Outputs of fc7 on preprocessed clips."""
        for name, _, pool in CONVOLUTIONS:
            x = F.relu_(self.get_submodule(name)(x))
            x = F.max_pool3d(x, pool) if pool else x
        # 7×7 cells become 4×4: one row and one column of zeros at the end.
        x = F.max_pool3d(F.pad(x, (0, 1, 0, 1)), 2).flatten(1)  # (b, 512·1·4·4)
        return F.relu_(self.fc7(F.relu_(self.fc6(x))))

    def forward(self, video: UInt8[Tensor, "b t h w 3"]) -> Float[Tensor, "b classes"]:
        return self.fc8(self.features(self.preprocess(video)))

    def train(self, mode: bool = True) -> "C3D":
        """Stays in evaluation mode: no dropout."""
        return super().train(False)


def load_c3d(path: Path | str, sha256: str | None = None) -> tuple[C3D, str]:
    """C3D with the weights of a local file, and the file's SHA-256.

    The file holds conv1a.weight ... fc8.bias (or Chainer's conv1a/W, conv1a/b) and the mean cube, `mean`
    (16, 112, 112, 3) in B G R. Raises UserError for a TorchScript file, another architecture, a file without mean or,
    with `sha256`, another file.
    """
    weights, found = read_weights(path, WHAT, sha256)
    weights = {name.replace("/W", ".weight").replace("/b", ".bias"): value for name, value in weights.items()}
    if "mean" not in weights:
        raise UserError(
            f"{path} lacks the mean cube that is subtracted from clips: store it as `mean`, (16, 112, 112, 3), B G R."
        )
    with on_meta_device():
        network = C3D()
    try:
        weights["mean"] = weights["mean"].float().broadcast_to(network.mean.shape).clone()
    except RuntimeError:
        shapes = f"{tuple(weights['mean'].shape)} instead of {tuple(network.mean.shape)}"
        raise UserError(f"{path}: the mean cube `mean` has shape {shapes}.") from None
    fit_weights(network, weights, path, WHAT)
    return network, found
