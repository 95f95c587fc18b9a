"""FAR (arXiv 2503.19325): configuration, networks, model and loss."""

from mutoscope.models.far.config import PAPER_SIZES, FARConfig
from mutoscope.models.far.model import FAR, FARBatch, FrameConditions, TrainingDraws
from mutoscope.models.far.network import FARCache

__all__ = ["FAR", "PAPER_SIZES", "FARBatch", "FARCache", "FARConfig", "FrameConditions", "TrainingDraws"]
