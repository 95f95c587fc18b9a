"""MAGVIT (arXiv 2212.05199): configuration, network, model and loss; its baselines are in `baselines.py`."""

from mutoscope.models.magvit.config import PAPER_SIZES, TASK_TOKENS, MagvitConfig
from mutoscope.models.magvit.model import Magvit, MagvitBatch, MaskedTokens, mask_tokens, masked_cross_entropy
from mutoscope.models.magvit.network import Block

__all__ = [
    "PAPER_SIZES",
    "TASK_TOKENS",
    "Block",
    "Magvit",
    "MagvitBatch",
    "MagvitConfig",
    "MaskedTokens",
    "mask_tokens",
    "masked_cross_entropy",
]
