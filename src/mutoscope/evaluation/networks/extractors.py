"""The feature networks of an evaluation, the hashes of their weights, and the rows they give per clip."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from mutoscope.errors import UserError
from mutoscope.evaluation.metrics.conventions import FVDConvention, i3d_input
from mutoscope.evaluation.networks.c3d import C3D, NUM_FRAMES, load_c3d
from mutoscope.evaluation.networks.i3d import I3D, load_i3d
from mutoscope.evaluation.networks.inception import InceptionV3, load_inception
from mutoscope.evaluation.networks.perceptual import LPIPSMetric, load_lpips
from mutoscope.evaluation.networks.shapes_classifier import ShapesClassifier
from mutoscope.layers.precision import autocast_off

Clips = UInt8[Tensor, "n t h w 3"]
MCVD_SIDE = 128  # pixels, MCVD's evaluation code


@dataclass(frozen=True)
class WeightFiles:
    """Local weight files; the figures of a network without a file are omitted. `lpips` and `lpips_heads` go together.

    i3d_sha256: hash that the I3D file must have.
    """

    i3d: str | None = None
    c3d: str | None = None
    inception: str | None = None
    lpips: str | None = None
    lpips_heads: str | None = None
    i3d_sha256: str | None = None


@dataclass(frozen=True)
class Extractors:
    """Feature networks on one device, None for those not used. `sha256`: hash of each weights file."""

    convention: FVDConvention
    i3d: I3D | None = None
    c3d: C3D | None = None
    inception: InceptionV3 | None = None
    lpips: LPIPSMetric | None = None
    shapes: ShapesClassifier | None = None
    sha256: dict[str, str] | None = None
    device: torch.device | str = "cpu"
    batch_size: int = 4

    @classmethod
    def load(
        cls, files: WeightFiles, convention: FVDConvention, device: torch.device | str = "cpu", batch_size: int = 4
    ) -> "Extractors":
        """Load the named files. Raises UserError for a file that does not fit its network."""
        if (files.lpips is None) != (files.lpips_heads is None):
            raise UserError("LPIPS needs two files: the network's weights and LPIPS' linear weights (heads).")
        networks, sha256 = {}, {}
        if files.i3d is not None:
            networks["i3d"], sha256["i3d"] = load_i3d(files.i3d, convention.eps, files.i3d_sha256)
        if files.c3d is not None:
            networks["c3d"], sha256["c3d"] = load_c3d(files.c3d)
        if files.inception is not None:
            networks["inception"], sha256["inception"] = load_inception(files.inception)
        networks = {name: network.to(device) for name, network in networks.items()}
        if files.lpips is not None and files.lpips_heads is not None:
            networks["lpips"] = load_lpips(Path(files.lpips), Path(files.lpips_heads), device)
            sha256["lpips"] = networks["lpips"].sha256
        return cls(convention, **networks, sha256=sha256, device=device, batch_size=batch_size)

    @classmethod
    def of_shapes(
        cls,
        convention: FVDConvention,
        device: torch.device | str = "cpu",
        batch_size: int = 4,
        classifier: ShapesClassifier | None = None,
    ) -> "Extractors":
        """The classifier of the shapes dataset alone; the bundled one by default."""
        shapes = classifier or ShapesClassifier.bundled(device)
        hashes = {"shapes-features": shapes.sha256}
        return cls(convention, shapes=shapes, sha256=hashes, device=device, batch_size=batch_size)

    @property
    def reads_clips(self) -> bool:
        """Whether `read` gives any rows; LPIPS reads pairs."""
        return any(network is not None for network in (self.i3d, self.c3d, self.inception, self.shapes))

    @torch.inference_mode()
    def read(self, clips: Clips, first_index: int = 0) -> dict[str, Tensor]:
        """One row per clip and loaded network: "i3d" (n, 400), "c3d" (n, 101), "inception" (n, 2048), "shapes" (n, d).

        Inception reads one frame of a clip, number index mod t. Raises UserError for rows that are not finite.
        """
        rows: dict[str, list[Tensor]] = {}
        with exact_float32(), autocast_off(torch.device(self.device)):
            for start in range(0, len(clips), self.batch_size):
                batch = clips[start : start + self.batch_size].to(self.device)
                for name, values in self._read(batch, first_index + start).items():
                    rows.setdefault(name, []).append(values.float().cpu())
        joined = {name: torch.cat(parts) for name, parts in rows.items()}
        for name, values in joined.items():
            if not values.isfinite().all():
                bad = int((~values.isfinite()).any(dim=1).sum())
                raise UserError(
                    f"{name} gives features that are not finite (NaN or infinite) for {bad} of {len(values)} clips: "
                    "check its weights file."
                )
        return joined

    def _read(self, batch: Clips, index: int) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        if self.i3d is not None:
            found["i3d"] = self.i3d(i3d_input(batch, self.convention))
        if self.c3d is not None:
            found["c3d"] = self.c3d(batch[:, :NUM_FRAMES])
        if self.inception is not None:
            frames = [(index + i) % batch.shape[1] for i in range(len(batch))]
            found["inception"] = self.inception(batch[torch.arange(len(batch)), frames])
        if self.shapes is not None:
            found["shapes"] = self.shapes.read(batch.cpu()).features
        return found


def lpips_of_clips(metric: LPIPSMetric, real: Clips, fake: Clips) -> Float[Tensor, "n"]:
    """Mean over frames. For AlexNet, frames are first resized to 128×128 by PIL's bilinear filter, as in MCVD."""
    if metric.trunk == "alex":
        real, fake = at_mcvd_size(real), at_mcvd_size(fake)
    return metric.per_frame(real, fake).mean(dim=1)


def at_mcvd_size(clips: Clips, side: int = MCVD_SIDE) -> UInt8[Tensor, "n t side side 3"]:
    """Frames at side × side pixels, rounded to 8 bits as PIL does."""
    n, t = clips.shape[:2]
    if clips.shape[2:4] == (side, side):
        return clips
    frames = [
        Image.fromarray(frame).resize((side, side), Image.Resampling.BILINEAR) for frame in clips.flatten(0, 1).numpy()
    ]
    return torch.from_numpy(np.stack([np.asarray(frame) for frame in frames])).unflatten(0, (n, t))


@contextmanager
def exact_float32() -> Iterator[None]:
    """Turns TF32 off on CUDA while features are read: it changes logits by about 1e-3."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
