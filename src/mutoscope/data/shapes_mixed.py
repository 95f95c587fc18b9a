"""More of the built-in world at once: several speeds, clips with actions between those without, leaps in time."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from mutoscope.data.shapes import AGENT_CLASS_NAMES, CLASS_NAMES, ShapesClip, ShapesWorld

MIXED_CLASS_NAMES = (*CLASS_NAMES, *AGENT_CLASS_NAMES)


class VariedShapesSource:
    """An endless batch source: "video" uint8 (b, t, h, w, 3), "label", "caption", "interval", maybe "actions", "jump".

    Frames of a clip lie `interval` steps of time apart, drawn evenly from 1 to `max_interval` for every clip. With
    `agents`, the controllable world, every second clip is one of it, with "actions" (b, t, 2) and labels behind those
    of the free world; the actions of free clips are NaN, and clips with actions have an interval of 1. With
    `max_jump`, two clips of every four leave out 1 to `max_jump` frames behind their first one, as "jump" tells (0:
    none): what a window shows that keeps the first frame of a long clip. All draws are a function of the world's seed
    and the clip's index.
    """

    num_clips = None

    def __init__(
        self, world: ShapesWorld, max_interval: int = 1, agents: ShapesWorld | None = None, max_jump: int = 0
    ) -> None:
        self.world, self.max_interval, self.agents, self.max_jump = world, max_interval, agents, max_jump

    def __getitem__(self, indices: Sequence[int]) -> dict[str, Any]:
        items = [self._item(int(index)) for index in indices]
        stacked = {name: np.stack([item[name] for item in items]) for name in items[0] if name != "caption"}
        batch: dict[str, Any] = {name: torch.from_numpy(values) for name, values in stacked.items()}
        return batch | {"caption": [item["caption"] for item in items]}

    def _item(self, index: int) -> dict[str, Any]:
        jump = self._jump(index)
        if self.agents is not None and index % 2:
            clip, interval, first = _leaping(self.agents, index, 1, jump, self.max_jump), 1, len(CLASS_NAMES)
        else:
            interval = 1 + int(np.random.default_rng([self.world.seed, index, 1]).integers(self.max_interval))
            clip, first = _leaping(self.world, index, interval, jump, self.max_jump), 0
        item = {"video": clip.frames, "label": np.int64(first + clip.label), "caption": clip.caption}
        item["interval"] = np.int64(interval)
        if self.max_jump:
            item["jump"] = np.int64(jump)
        if self.agents is not None:
            nothing = np.full((len(clip.frames), 2), np.nan, np.float32)
            item["actions"] = nothing if clip.actions is None else clip.actions
        return item

    def _jump(self, index: int) -> int:
        if not self.max_jump or index // 2 % 2 == 0:
            return 0
        return int(np.random.default_rng([self.world.seed, index, 2]).integers(1, self.max_jump + 1))


def _leaping(world: ShapesWorld, index: int, interval: int, jump: int, max_jump: int) -> ShapesClip:
    """The clip without `jump` frames behind its first one. It is the same clip for every `jump` above 0."""
    if not jump:
        return world.clip(index, interval=interval)
    count = world.config.num_frames
    longer = ShapesWorld(replace(world.config, num_frames=count + max_jump), world.seed)
    return longer.clip(index, interval=interval, shown=[0, *range(jump + 1, jump + count)])
