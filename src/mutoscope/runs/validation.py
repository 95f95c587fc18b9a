"""Held-back clips as contact sheets show them: the split of the training loop, as pixels."""

import numpy as np

from mutoscope.data.base import BatchT, ClipBatch, ClipSource, DataConfig
from mutoscope.data.held_back import Split, split_clips
from mutoscope.data.media import spread
from mutoscope.data.sources.tokens import TokenCache
from mutoscope.training.config import LoopConfig

NUM_EXAMPLES = 4  # clips of a tokenizer's contact sheet
NUM_GENERATED = 2  # clips of a model's contact sheet, which are drawn for every task, step by step


def loop_split(source: ClipSource[BatchT], loop: LoopConfig) -> Split[BatchT] | None:
    """The split that the training loop makes of `source`."""
    return split_clips(source, loop.validation_share, loop.seed)


def plainly_held_back(source: ClipSource[ClipBatch], loop: LoopConfig, count: int) -> ClipSource[ClipBatch]:
    """The first `count` clips of `source` as a token cache of the loop stores them: those that it holds back have the
    frame interval 1 and no temporal gap. The source itself where no clip is otherwise.
    """
    if source.num_clips is None or source.plain() is source:
        return source
    split = loop_split(source.among(np.arange(min(count, source.num_clips))), loop)
    return source if split is None else source.plain(split.indices)


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
        return data.examples(NUM_GENERATED)
    return data.open().plain()[split.indices[spread(len(split.indices), NUM_GENERATED)].tolist()]
