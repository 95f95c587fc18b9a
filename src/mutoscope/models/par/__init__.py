"""PAR (arXiv 2412.15119) and LlamaGen (arXiv 2406.06525): configuration, network, model and loss."""

from mutoscope.models.par.config import CAPTION_LENGTH, PAPER_SIZES, PARConfig, swiglu_size
from mutoscope.models.par.model import PAR, PARBatch, PARState
from mutoscope.models.par.network import Block

__all__ = ["CAPTION_LENGTH", "PAPER_SIZES", "PAR", "Block", "PARBatch", "PARConfig", "PARState", "swiglu_size"]
