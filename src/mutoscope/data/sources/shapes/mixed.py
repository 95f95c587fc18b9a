"""Variations of the synthetic dataset "shapes": several speeds, actions, temporal gaps, corrupted context."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from mutoscope.data.base import INTERVAL, LABEL, ClipBatch, ClipSource, Field
from mutoscope.data.sources.shapes.world import (
    AGENT_CLASS_NAMES,
    CLASS_NAMES,
    COLORS,
    SHAPES,
    ObjectInfo,
    ShapesClip,
    ShapesConfig,
    ShapesWorld,
    action_spec,
    render,
)

MIXED_CLASS_NAMES = (*CLASS_NAMES, *AGENT_CLASS_NAMES)
CORRUPTIONS = ("missing", "color", "shape", "size", "extra")


class VariedShapesSource(ClipSource[ClipBatch]):
    """Free shapes at several speeds, controllable ones between them, temporal gaps and corrupted context; endless.

    Frames of a clip are `interval` time steps apart, drawn from 1 to `max_interval` for every clip with equal
    probability. With `agents`, the controllable dataset, every second clip is one of it, with "actions" (b, t, 2) and
    labels that follow those of the free shapes; the actions of free clips are NaN, and clips with actions have an
    interval of 1.

    With `max_jump`, two clips of every four omit 1 to `max_jump` frames after their first one: what a window shows that
    keeps the first frame of a long clip. "history_only" (b, t) marks the frame after the gap, which cannot be predicted
    from earlier frames. With `flawed_history`, "history" (b, t, h, w, 3) shows the clips as they may look once
    generated: clips with a gap have frames in which the shapes differ from those of the first frame; the others equal
    "video".

    All draws are a function of the dataset's seed and the clip's index.
    """

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
        self.class_names = world.class_names if agents is None else MIXED_CLASS_NAMES
        self.fields: Mapping[str, Field] = self._fields(world.config)
        self.actions = None if agents is None else action_spec(world.config)

    def _fields(self, config: ShapesConfig) -> dict[str, Field]:
        fields, frames = {"label": LABEL}, config.num_frames
        if self.max_interval > 1:
            fields["interval"] = INTERVAL
        if self.max_jump:
            fields["history_only"] = Field("bool", (frames,), per_frame=True)
        if self.flawed_history:
            fields["history"] = Field("uint8", (frames, config.height, config.width, 3), encoded=True)
        if self.agents is not None:
            fields["actions"] = Field("float32", (frames, 2), per_frame=True)
        return fields

    def __getitem__(self, indices: Sequence[int]) -> ClipBatch:
        items, captions = zip(*(self._item(int(index)) for index in indices), strict=True)
        batch = {name: torch.from_numpy(np.stack([item[name] for item in items])) for name in items[0]}
        return cast(ClipBatch, batch | {"caption": list(captions)})

    def _item(self, index: int) -> tuple[dict[str, np.ndarray], str]:
        """The fields of one clip, and its caption."""
        jump = self._jump(index)
        if self.agents is not None and index % 2:
            clip, interval, first = _with_gap(self.agents, index, 1, jump, self.max_jump), 1, len(CLASS_NAMES)
        else:
            interval = 1 + int(np.random.default_rng([self.world.seed, index, 1]).integers(self.max_interval))
            clip, first = _with_gap(self.world, index, interval, jump, self.max_jump), 0
        item = {"video": clip.frames, "label": np.array(first + clip.label), "interval": np.array(interval)}
        if self.max_jump:
            item["history_only"] = (np.arange(len(clip.frames)) == 1) & (jump > 0)
        if self.flawed_history:
            item["history"] = (
                corrupted(clip, np.random.default_rng([self.world.seed, index, 3])) if jump else clip.frames
            )
        if self.agents is not None:
            unknown = np.full((len(clip.frames), 2), np.nan, np.float32)
            item["actions"] = unknown if clip.actions is None else clip.actions
        return item, clip.caption

    def _jump(self, index: int) -> int:
        if not self.max_jump or index // 2 % 2 == 0:
            return 0
        return int(np.random.default_rng([self.world.seed, index, 2]).integers(1, self.max_jump + 1))


def _with_gap(world: ShapesWorld, index: int, interval: int, jump: int, max_jump: int) -> ShapesClip:
    """The clip without `jump` frames after its first one. It is the same clip for every `jump` above 0."""
    if not jump:
        return world.clip(index, interval=interval)
    count = world.config.num_frames
    longer = ShapesWorld(replace(world.config, num_frames=count + max_jump), world.seed)
    return longer.clip(index, interval=interval, shown=[0, *range(jump + 1, jump + count)])


def corrupted(clip: ShapesClip, rng: np.random.Generator) -> UInt8[np.ndarray, "t h w 3"]:
    """The frames of a clip with wrong shapes in a stretch of time that does not contain the first frame.

    Three of four stretches begin right after the first frame, and half of all last to the end: where every later frame
    is wrong, only the first frame shows which shapes are right. One of CORRUPTIONS is applied: a shape is missing, has
    another colour, kind or size, or there is one too many. A fourth of the clips of several shapes have two of them.
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
    """The shapes with one corruption; it hits the main shape less often than the others."""
    kind = CORRUPTIONS[rng.choice(len(CORRUPTIONS), p=[0.4, 0.25, 0.1, 0.1, 0.15])]
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
