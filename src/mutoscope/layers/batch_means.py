"""Means over a whole batch, for the losses that are no mean of a loss of each clip."""

from collections.abc import Callable

from torch import Tensor

WholeMean = Callable[[Tensor], Tensor]
"""From the mean over the clips at hand to the mean over all clips of the batch, which may be split.

The value is that of the whole batch, the gradient that of the clips at hand: the gradients of all parts, which training
averages, then add up to that of the whole batch. Every part calls it for the same statistics, in the same order.
"""


def all_at_hand(mean: Tensor) -> Tensor:
    """The `WholeMean` of a batch that is not split."""
    return mean
