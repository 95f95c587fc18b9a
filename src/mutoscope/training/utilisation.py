"""What training makes of a device: clips and tokens per second, and the share of the arithmetic that it could do."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod

import torch

from mutoscope.arithmetic import CountOperations, matrix_rate
from mutoscope.training.config import LoopConfig, ModelRecipe, Recipe

FIRST_SECONDS = 20.0  # of a run; shorter ones are not worth the second that counting and measuring take
GIGA = 1e9


def tokens_per_clip(recipe: Recipe) -> int | None:
    """Tokens that a video model learns to predict per clip; None for other networks."""
    if not isinstance(recipe, ModelRecipe):
        return None
    return recipe.model.latent_shape[0] * prod(recipe.model.token_grid)


class Utilisation:
    """Speed of updates in the terms of their work.

    After `FIRST_SECONDS` it counts the operations of one update, and measures the rate of matrix products: both once,
    and both of this process and its device. The count is that of the network as written: operations that a compiled
    network does not need, or a checkpointed one repeats, do not change its use.
    """

    def __init__(
        self,
        loop: LoopConfig,
        device: torch.device,
        tokens_per_clip: int | None,
        clock: Callable[[], float] = time.perf_counter,
        rate: Callable[[torch.device, str], float] = matrix_rate,
    ) -> None:
        """rate: operations per second of matrix products of a dtype on a device."""
        self.loop, self.device, self.tokens_per_clip = loop, device, tokens_per_clip
        self.number = "bfloat16" if loop.autocast == "bf16" else "float32"
        self._clock, self._rate, self._started = clock, rate, clock()
        self._operations, self._full_rate = 0, 0.0
        self._latest = dict[str, float]()

    @contextmanager
    def counting(self) -> Iterator[bool]:
        """Around the gradients of an update; whether this is the one that is counted. Counting changes no result."""
        if self._operations or self._clock() - self._started < FIRST_SECONDS:
            yield False
            return
        with CountOperations() as counter:
            yield True
        self._operations = max(counter.found.total, 1)
        self._full_rate = self._rate(self.device, self.number)

    def values(self, updates: int, seconds: float, waiting: float) -> dict[str, float]:
        """Numbers of a line of the log for that many updates in `seconds`, of which `waiting` was for data."""
        seconds = max(seconds, 1e-9)
        clips = updates * self.loop.batch_size / seconds
        values = {"clips_per_second": round(clips, 2), "data_share": round(waiting / seconds, 4)}
        if self.tokens_per_clip is not None:
            values["tokens_per_second"] = round(clips * self.tokens_per_clip, 1)
        if self._operations:
            values["model_flops_use"] = round(updates * self._operations / seconds / self._full_rate, 4)
        self._latest = values
        return values

    def sentence(self) -> str:
        """The latest of these values, for the run's log; empty before the first."""
        values = self._latest
        if not values:
            return ""
        parts = [f"{values['clips_per_second']:,.4g} clips/s"]
        if "tokens_per_second" in values:
            parts.append(f"{values['tokens_per_second']:,.4g} tokens/s")
        parts.append(f"{values['data_share']:.1%} of the time waiting for data")
        if "model_flops_use" in values:
            parts.append(
                f"{values['model_flops_use']:.1%} of the {self._full_rate / GIGA:,.0f} GFLOP/s of matrix products of "
                f"{self.number} here, {self._operations / GIGA:,.2f} GFLOP per update"
            )
        return f"Lately {', '.join(parts)}."
