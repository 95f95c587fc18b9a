"""More of the built-in world at once: several speeds, clips with actions between those without, leaps, flaws."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from mutoscope.data.sources.shapes.world import (
    AGENT_CLASS_NAMES,
    CLASS_NAMES,
    COLORS,
    SHAPES,
    ObjectInfo,
    ShapesClip,
    ShapesWorld,
    render,
)

MIXED_CLASS_NAMES = (*CLASS_NAMES, *AGENT_CLASS_NAMES)
FLAWS = ("missing", "color", "shape", "size", "extra")


class VariedShapesSource:
    """An endless batch source: "video" uint8 (b, t, h, w, 3), "label", "caption", "interval", maybe "actions",
    "history_only" and "history".

    Frames of a clip lie `interval` steps of time apart, drawn evenly from 1 to `max_interval` for every clip. With
    `agents`, the controllable world, every second clip is one of it, with "actions" (b, t, 2) and labels behind those
    of the free world; the actions of free clips are NaN, and clips with actions have an interval of 1.

    With `max_jump`, two clips of every four leave out 1 to `max_jump` frames behind their first one: what a window
    shows that keeps the first frame of a long clip. "history_only" (b, t) marks the frame jumped to, which cannot be
    told from what comes before. With `flawed_history`, "history" (b, t, h, w, 3) shows the clips as they may look once
    generated: those that jump have frames in which the shapes are not what the first frame shows; the others are as in
    "video".

    All draws are a function of the world's seed and the clip's index.
    """

    num_clips = None

    def __init__(
        self,
        world: ShapesWorld,
        max_interval: int = 1,
        agents: ShapesWorld | None = None,
        max_jump: int = 0,
        flawed_history: bool = False,
    ) -> None:
        self.world, self.max_interval, self.agents = world, max_interval, agents
        self.max_jump, self.flawed_history = max_jump, flawed_history

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
            item["history_only"] = (np.arange(len(clip.frames)) == 1) & (jump > 0)
        if self.flawed_history:
            item["history"] = flawed(clip, np.random.default_rng([self.world.seed, index, 3])) if jump else clip.frames
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


def flawed(clip: ShapesClip, rng: np.random.Generator) -> UInt8[np.ndarray, "t h w 3"]:
    """The frames of a clip with wrong shapes in a stretch that the first one is no part of.

    Three of four stretches begin right behind the first frame, half of all last to the end: where every later frame is
    wrong, only the first one tells what is right. What is wrong is one of FLAWS: a shape is left out, or has another
    colour, kind or size, or there is one too many. A fourth of the clips of several shapes have two flaws.
    """
    frames, count = clip.frames.copy(), len(clip.frames)
    begin = 1 if rng.random() < 0.75 else int(rng.integers(1, count))
    end = count if rng.random() < 0.5 else int(rng.integers(begin + 1, count + 1))
    objects, tracks = _wrong(list(clip.objects), clip.tracks[:, begin:end].copy(), rng)
    if len(clip.objects) > 1 and rng.random() < 0.25:
        objects, tracks = _wrong(list(objects), tracks, rng)
    frames[begin:end] = render(clip.background, objects, tracks)
    return frames


def _wrong(
    objects: list[ObjectInfo], tracks: Float32[np.ndarray, "objects t 4"], rng: np.random.Generator
) -> tuple[tuple[ObjectInfo, ...], Float32[np.ndarray, "objects t 4"]]:
    """The shapes with a flaw; shapes behind the main one have one more often than it."""
    kind = FLAWS[rng.choice(len(FLAWS), p=[0.4, 0.25, 0.1, 0.1, 0.15])]
    which = 0 if len(objects) == 1 or rng.random() < 0.2 else int(rng.integers(1, len(objects)))
    wrong = objects[which]
    if kind == "missing":
        del objects[which]
        tracks = np.delete(tracks, which, axis=0)
    elif kind == "color":
        objects[which] = replace(wrong, color=(wrong.color + int(rng.integers(1, len(COLORS)))) % len(COLORS))
    elif kind == "shape":
        objects[which] = replace(wrong, shape=(wrong.shape + int(rng.integers(1, len(SHAPES)))) % len(SHAPES))
    elif kind == "size":
        tracks[which, :, 2] *= rng.choice([rng.uniform(0.7, 0.9), rng.uniform(1.15, 1.4)])
    else:
        objects.append(ObjectInfo(int(rng.integers(len(SHAPES))), int(rng.integers(len(COLORS))), wrong.motion))
        more = tracks[which].copy()
        more[:, :2] = np.clip(more[:, :2] + rng.uniform(-0.4, 0.4, size=2), 0.15, 0.85)
        tracks = np.concatenate([tracks, more[None]])
    return tuple(objects), tracks
