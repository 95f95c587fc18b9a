"""Statistics of clips longer than in training: what extrapolation costs, by frame and by window.

Real clips of the same length change too, so every statistic is reported beside theirs.
"""

from typing import TypedDict

from jaxtyping import UInt8
from torch import Tensor

from mutoscope.errors import UserError
from mutoscope.evaluation.metrics.temporal import squared_statistics
from mutoscope.evaluation.networks.shapes_classifier import ShapesClassifier
from mutoscope.evaluation.sources.shapes_clips import RealClips

HEADS = ("color", "shape", "motion")


class RolloutStatistics(TypedDict):
    """`squared_statistics` by frame index, and `accuracies_by_start` by window."""

    frames: dict[str, list[float]]
    windows: dict[str, list[float]]


def accuracies_by_start(
    classifier: ShapesClassifier, clips: UInt8[Tensor, "n t h w 3"], real: RealClips, length: int, stride: int
) -> dict[str, list[float]]:
    """Share of clips classified as the attributes of `real`, in windows of `length` frames every `stride` frames.

    Raises UserError for clips shorter than one window.
    """
    if length > clips.shape[1]:
        raise UserError(f"Windows of {length} frames do not fit into clips of {clips.shape[1]}.")
    starts = range(0, clips.shape[1] - length + 1, stride)
    readings = [classifier.read(clips[:, start : start + length]) for start in starts]
    found = {head: [r.correct(head, real.attributes).double().mean().item() for r in readings] for head in HEADS}
    return {"start": [float(start) for start in starts], **{f"{head}_accuracy": found[head] for head in HEADS}}


def rollout_statistics(
    classifier: ShapesClassifier, clips: UInt8[Tensor, "n t h w 3"], real: RealClips, length: int, stride: int
) -> dict[str, RolloutStatistics]:
    """Statistics of clips generated from the captions of `real` ("made"), and of `real` itself ("real").

    Raises UserError unless both sides have one shape.
    """
    if clips.shape != real.video.shape:
        raise UserError(
            f"Rollouts are compared with real clips of the same shape, found {tuple(clips.shape)} and "
            f"{tuple(real.video.shape)}."
        )
    return {
        name: {
            "frames": squared_statistics(video),
            "windows": accuracies_by_start(classifier, video, real, length, stride),
        }
        for name, video in (("made", clips), ("real", real.video))
    }
