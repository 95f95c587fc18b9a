"""The classifier of the shapes dataset: clips to embeddings, which shapes-FVD compares, and predicted attributes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mutoscope.data.fit import fit_frames
from mutoscope.evaluation.networks.shapes_features import (
    CHOICE_HEADS,
    PRESENCE_HEADS,
    ShapesFeatures,
    choice_target,
    load_shapes_features,
    to_float,
)
from mutoscope.layers.precision import autocast_off

BATCH_SIZE = 32


@dataclass(frozen=True)
class Readings:
    """Outputs of the classifier for n clips, on the CPU: embeddings (n, d) float64 and the logits of every head."""

    features: Float[Tensor, "n d"]
    logits: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(self.features)

    def choice(self, head: str) -> Tensor:
        """Most likely index (n,) of a head that chooses one."""
        return self.logits[head].argmax(dim=-1)

    def correct(self, head: str, attributes: Mapping[str, Tensor]) -> Bool[Tensor, "n"]:
        """Whether the head's prediction equals the attribute; a presence head must be right in every entry."""
        if head in PRESENCE_HEADS:
            return ((self.logits[head] > 0) == attributes[head].bool()).all(dim=-1)
        return self.choice(head) == choice_target(attributes, head)


@dataclass(frozen=True)
class ShapesClassifier:
    """The frozen network `ShapesFeatures`, the hash of its weights, and the frame size it reads, in pixels."""

    network: ShapesFeatures
    sha256: str
    height: int = 32
    width: int = 32

    @classmethod
    def bundled(cls, device: torch.device | str = "cpu") -> "ShapesClassifier":
        """The network shipped in the package. Raises UserError if its weights are missing."""
        network, sha256 = load_shapes_features(device=device)
        return cls(network.eval(), sha256)

    @torch.inference_mode()
    def read(self, clips: Sequence[Tensor] | Tensor) -> Readings:
        """Embed and classify uint8 clips (t, h, w, 3) of one length; their frame sizes may differ.

        Clips are read in batches of 32, so the same clips in the same order give the same bits.
        """
        device = next(self.network.parameters()).device
        features, logits = [], {head: [] for head in (*CHOICE_HEADS, *PRESENCE_HEADS)}
        for start in range(0, len(clips), BATCH_SIZE):
            batch = [fit_frames(clip.numpy(), self.height, self.width) for clip in clips[start : start + BATCH_SIZE]]
            with autocast_off(device):  # the caller's may be on
                embedding = self.network(to_float(torch.from_numpy(np.stack(batch)).to(device)))  # (b, d)
            features.append(embedding.double().cpu())
            for head, values in self.network.predict(embedding).items():
                logits[head].append(values.cpu())
        return Readings(torch.cat(features), {head: torch.cat(values) for head, values in logits.items()})
