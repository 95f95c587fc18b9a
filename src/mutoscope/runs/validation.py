"""Held-back clips as contact sheets show them: the split of the training loop, as pixels."""

from mutoscope.data.base import BatchT, ClipBatch, ClipSource, DataConfig
from mutoscope.data.held_back import Split, split_clips
from mutoscope.data.media import spread
from mutoscope.data.sources.tokens import TokenCache
from mutoscope.training.config import LoopConfig

NUM_EXAMPLES = 4  # clips of a contact sheet


def loop_split(source: ClipSource[BatchT], loop: LoopConfig) -> Split[BatchT] | None:
    """The split that the training loop makes of `source`."""
    return split_clips(source, loop.validation_share, loop.seed)


def example_clips(data: DataConfig, source: ClipSource[ClipBatch], loop: LoopConfig) -> ClipBatch:
    """The clips of a tokenizer's contact sheets: held-back ones where there are any."""
    split = loop_split(source, loop)
    if split is None or not data.needs_files:  # the examples of a synthetic dataset are held back already
        return data.examples(NUM_EXAMPLES)
    return split.held_back[spread(split.held_back.num_clips or NUM_EXAMPLES, NUM_EXAMPLES)]


def cached_examples(data: DataConfig, cache: TokenCache, loop: LoopConfig) -> ClipBatch:
    """The clips of a model's contact sheets: pixels of held-back rows of its token cache where there are any.

    data: what the cache was filled with; its row i is clip i of that source.
    """
    split = loop_split(cache, loop)
    if split is None or not data.needs_files:
        return data.examples(NUM_EXAMPLES)
    return data.open()[split.indices[spread(len(split.indices), NUM_EXAMPLES)].tolist()]
