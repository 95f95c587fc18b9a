"""NOVA (arXiv 2412.14169): configuration, networks, model and loss."""

from mutoscope.models.nova.config import IMAGE_SIZES, NOVAConfig
from mutoscope.models.nova.model import DEFAULT_FPS, DEFAULT_MOTION, NOVA, Canvas, NOVABatch, NOVAState, TrainingDraws
from mutoscope.models.nova.network import ScalingAndShift, modulate

__all__ = [
    "DEFAULT_FPS",
    "DEFAULT_MOTION",
    "IMAGE_SIZES",
    "NOVA",
    "Canvas",
    "NOVABatch",
    "NOVAConfig",
    "NOVAState",
    "ScalingAndShift",
    "TrainingDraws",
    "modulate",
]
