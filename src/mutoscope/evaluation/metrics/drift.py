"""How clips change while they go on: what extrapolation beyond the trained length costs, frame by frame.

Everything is told beside the same of real clips of the same length, since those change too.
"""

from typing import Any

from jaxtyping import UInt8
from torch import Tensor

from mutoscope.errors import UserError
from mutoscope.evaluation.protocols.protocol import Judge, RealClips

HEADS = ("color", "shape", "motion")


def frame_statistics(clips: UInt8[Tensor, "n t h w 3"]) -> dict[str, list[float]]:
    """Means over clips for every frame index, in grey levels (0 to 255) or their squares.

    mean_pixel; contrast: standard deviation of a frame's pixels; sharpness: mean squared difference of neighbouring
    pixels; movement: mean squared difference from the frame before, t − 1 entries.
    """
    video = clips.float()
    across, down = video.diff(dim=3).square().mean((0, 2, 3, 4)), video.diff(dim=2).square().mean((0, 2, 3, 4))
    return {
        "mean_pixel": video.mean((0, 2, 3, 4)).tolist(),
        "contrast": video.flatten(2).std(dim=2).mean(0).tolist(),
        "sharpness": ((across + down) / 2).tolist(),
        "movement": video.diff(dim=1).square().mean((0, 2, 3, 4)).tolist(),
    }


def accuracies_by_start(
    judge: Judge, clips: UInt8[Tensor, "n t h w 3"], real: RealClips, length: int, stride: int
) -> dict[str, list[float]]:
    """Share of clips that show what is true of `real`, in windows of `length` frames that start `stride` apart.

    Raises UserError for clips shorter than one window.
    """
    if length > clips.shape[1]:
        raise UserError(f"Windows of {length} frames do not fit into clips of {clips.shape[1]}.")
    starts = range(0, clips.shape[1] - length + 1, stride)
    readings = [judge.read(clips[:, start : start + length]) for start in starts]
    found = {head: [r.correct(head, real.attributes).double().mean().item() for r in readings] for head in HEADS}
    return {"start": [float(start) for start in starts], **{f"{head}_accuracy": found[head] for head in HEADS}}


def drift(
    judge: Judge, clips: UInt8[Tensor, "n t h w 3"], real: RealClips, length: int, stride: int
) -> dict[str, dict[str, Any]]:
    """`frame_statistics` and `accuracies_by_start` of clips made from the captions of `real`, and of `real`.

    Raises UserError unless both sides have one shape.
    """
    if clips.shape != real.video.shape:
        raise UserError(f"Drift compares clips of one shape, found {tuple(clips.shape)} and {tuple(real.video.shape)}.")
    return {
        name: {
            "frames": frame_statistics(video),
            "windows": accuracies_by_start(judge, video, real, length, stride),
        }
        for name, video in (("made", clips), ("real", real.video))
    }
