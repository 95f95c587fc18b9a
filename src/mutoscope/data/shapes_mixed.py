"""More of the built-in world at once: motion at several speeds, and clips with actions between those without."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mutoscope.data.shapes import AGENT_CLASS_NAMES, CLASS_NAMES, ShapesWorld

MIXED_CLASS_NAMES = (*CLASS_NAMES, *AGENT_CLASS_NAMES)


class VariedShapesSource:
    """An endless batch source: "video" uint8 (b, t, h, w, 3), "label", "caption", "interval" and maybe "actions".

    Frames of a clip lie `interval` steps of time apart, drawn evenly from 1 to `max_interval` for every clip. With
    `agents`, the controllable world, every second clip is one of it, with "actions" (b, t, 2) and labels behind those
    of the free world; the actions of free clips are NaN, and clips with actions have an interval of 1. All draws are a
    function of the world's seed and the clip's index.
    """

    num_clips = None

    def __init__(self, world: ShapesWorld, max_interval: int = 1, agents: ShapesWorld | None = None) -> None:
        self.world, self.max_interval, self.agents = world, max_interval, agents

    def __getitem__(self, indices: Sequence[int]) -> dict[str, Any]:
        items = [self._item(int(index)) for index in indices]
        stacked = {name: np.stack([item[name] for item in items]) for name in items[0] if name != "caption"}
        batch: dict[str, Any] = {name: torch.from_numpy(values) for name, values in stacked.items()}
        return batch | {"caption": [item["caption"] for item in items]}

    def _item(self, index: int) -> dict[str, Any]:
        if self.agents is not None and index % 2:
            clip, interval, first = self.agents.clip(index), 1, len(CLASS_NAMES)
        else:
            interval = 1 + int(np.random.default_rng([self.world.seed, index, 1]).integers(self.max_interval))
            clip, first = self.world.clip(index, interval=interval), 0
        item = {"video": clip.frames, "label": np.int64(first + clip.label), "caption": clip.caption}
        item["interval"] = np.int64(interval)
        if self.agents is not None:
            nothing = np.full((len(clip.frames), 2), np.nan, np.float32)
            item["actions"] = nothing if clip.actions is None else clip.actions
        return item
