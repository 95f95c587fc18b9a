"""The frames that a stream remembers: a window that is read anew when it moves, or a cache that rolls.

With absolute positions in time, a network has to read all frames of a window again when the window moves on, since each
of them is at another position then. With relative ones, what is cached of a frame stays valid.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Generic

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor

from mutoscope.layers.kv_cache import KVCache
from mutoscope.sampling.frame_history import Conditions, HistoryModel


@dataclass(frozen=True)
class Frame(Generic[Conditions]):
    """A finished frame and its conditions."""

    tokens: Num[Tensor, "b n k"]
    conditions: Conditions
    number: int = 0
    """0-based, in the stream."""
    read: tuple[Float[Tensor, "layers bs heads d"], Float[Tensor, "layers bs heads d"]] | None = None
    """Keys and values that the network has read, where a rolling cache can take them back."""


class History(Generic[Conditions]):
    """Finished frames, and what the network has cached of them, with numbers that count from the window's first frame.

    A full window drops its first frame, half its length or the second frame (see `FrameStreamSamplerConfig`), and is
    then read anew; a window that grows never does.
    """

    frames: list[Frame[Conditions]]
    cache: KVCache

    def __init__(
        self,
        model: HistoryModel[Conditions],
        cache: KVCache,
        keep: int | None,
        is_anchored: bool,
        level: int,
        blind: Bool[Tensor, " rows"] | None,
        use_cache: bool = True,
    ) -> None:
        """`keep`: frames that stay of a full window, its anchor aside; None: all. `blind`: rows that see no history."""
        self.model, self.cache, self.keep, self.is_anchored = model, cache, keep, is_anchored
        self.level, self.blind, self.use_cache, self.frames = level, blind, use_cache, []
        self.capacity = cache.keys.shape[3]
        if blind is not None:
            # The blind half of the cache is never written, and NaN in uninitialised memory would pass through masks.
            for memory in (cache.keys, cache.values):
                memory[:, memory.shape[1] // 2 :].zero_()

    @property
    def time(self) -> int:
        """The time of the frame in progress, as the network counts it."""
        return len(self.frames)

    def add(self, tokens: Num[Tensor, "b n k"], conditions: Conditions) -> None:
        """Append a finished frame, which is not read yet."""
        self.frames.append(Frame(tokens, conditions))

    def catch_up(self) -> None:
        """Move a full window on, and read the frames that are not in the cache."""
        if self.keep is not None and len(self.frames) >= self.capacity:
            anchor = self.frames[:1] if self.is_anchored else []
            self.frames = anchor + self.frames[len(self.frames) - self.keep :]
            self.cache.length = 0
        if self.use_cache:
            self._read()

    def look(self) -> None:
        """Before a step: without a cache, read everything anew."""
        if not self.use_cache:
            self.cache.length = 0
            self._read()

    def recall(self, frames: Sequence[Frame[Conditions]]) -> None:
        """Take over the frames that another history remembered."""
        self.frames = list(frames)
        self.catch_up()

    def _read(self) -> None:
        first = self.cache.length
        conditions = [frame.conditions for frame in self.frames[first:]]
        if not conditions:
            return
        for count, shared in type(conditions[0]).grouped(conditions):
            self._observe([frame.tokens for frame in self.frames[first : first + count]], shared, first)
            first += count

    def _observe(self, frames: list[Tensor], conditions: Conditions, first: int) -> None:
        tokens = torch.stack(frames, dim=1)  # (b, f, n, k)
        rows = self.cache.keys.shape[1]
        if self.blind is None:
            passes = len(conditions) // len(tokens)
            self.model.observe(self.cache, tokens.repeat(passes, 1, 1, 1), conditions, first, self.level)
            return
        # The blind half never attends to history, so only the seeing half reads it.
        seeing = self.cache.first(rows // 2)
        self.model.observe(seeing, tokens, conditions.first(len(tokens)), first, self.level)
        self.cache.length = seeing.length


class RollingHistory(History[Conditions]):
    """The frames of a rolling cache. Each is read once, however long the stream; its number never changes."""

    def __init__(
        self, model: HistoryModel[Conditions], batch_size: int, level: int, blind: Bool[Tensor, " rows"] | None
    ) -> None:
        self.rolling = model.reserve_rolling(batch_size)
        super().__init__(model, self.rolling, None, False, level, blind)
        self.count = 0

    @property
    def time(self) -> int:
        return self.count

    def add(self, tokens: Num[Tensor, "b n k"], conditions: Conditions) -> None:
        self.frames.append(Frame(tokens, conditions, self.count))
        self.count += 1

    def catch_up(self) -> None:
        """Read the new frames one by one, and forget those that the cache no longer holds."""
        for i, frame in enumerate(self.frames):
            if frame.read is None:
                self._observe([frame.tokens], frame.conditions, frame.number)
                self.frames[i] = replace(frame, read=self.rolling.copy_of(frame.number))
        oldest = self.count - self.rolling.window + 1  # the frame in progress takes a slot too
        kept = self.rolling.keeps_first
        self.frames = [frame for frame in self.frames if frame.number >= oldest or (kept and frame.number == 0)]

    def recall(self, frames: Sequence[Frame[Conditions]]) -> None:
        self.frames, self.count = list(frames), frames[-1].number + 1
        for frame in frames:
            if frame.read is not None:
                self.rolling.put(frame.number, *frame.read)
        self.catch_up()
