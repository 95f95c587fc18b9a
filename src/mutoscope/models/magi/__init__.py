"""MAGI (arXiv 2501.12389): configuration, networks, model and loss."""

from mutoscope.models.magi.config import MAX_INTERVAL, PAPER_SIZES, MAGIConfig
from mutoscope.models.magi.model import MAGI, FrameConditions, MAGIBatch, TrainingDraws
from mutoscope.models.magi.network import DiffusionHead

__all__ = [
    "MAGI",
    "MAX_INTERVAL",
    "PAPER_SIZES",
    "DiffusionHead",
    "FrameConditions",
    "MAGIBatch",
    "MAGIConfig",
    "TrainingDraws",
]
