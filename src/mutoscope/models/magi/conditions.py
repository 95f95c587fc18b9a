"""Conditions of MAGI's frames, and captions in the form that the blocks read.

Shapes: b clips, f frames, a numbers of an action, w words of t features, d the width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

SHARED = ("interval", "label", "caption", "caption_mask")  # conditions that hold for all frames of a value


@dataclass(frozen=True)
class FrameConditions:
    """Conditions of some frames of each clip: class, text, action and frame interval.

    A missing condition is encoded as: `None`, label −1, NaN actions, or an all-false caption mask.
    """

    interval: Int[Tensor, " b"]
    """Source frames from one frame to the next, 1…25."""
    label: Int[Tensor, " b"] | None = None
    """Class in [0, num_classes)."""
    actions: Float[Tensor, "b f a"] | None = None
    """Action that leads to each frame."""
    caption: Float[Tensor, "b w t"] | None = None
    """Text features of the caption."""
    caption_mask: Bool[Tensor, "b w"] | None = None
    """True on rows of `caption` that belong to a word."""

    @classmethod
    def grouped(cls, frames: Sequence["FrameConditions"]) -> list[tuple[int, "FrameConditions"]]:
        """Joins neighbouring frames whose conditions are equal except for actions: (number of frames, conditions).

        The network can read each group in a single pass.
        """
        groups: list[list[FrameConditions]] = []
        for frame in frames:
            if groups and groups[-1][-1].equals_except_actions(frame):
                groups[-1].append(frame)
            else:
                groups.append([frame])
        return [(len(group), group[0].with_actions_of(group[1:])) for group in groups]

    def __len__(self) -> int:
        """Number of clips."""
        return len(self.interval)

    def first(self, count: int) -> "FrameConditions":
        """Conditions of the first `count` clips."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: value[:count] for name, value in values.items() if value is not None})

    def equals_except_actions(self, other: "FrameConditions") -> bool:
        """Whether both hold the same tensors, actions aside; equal numbers in other tensors do not count as equal."""
        same = all(getattr(self, name) is getattr(other, name) for name in SHARED)
        return same and (self.actions is None) == (other.actions is None)

    def with_actions_of(self, later: Sequence["FrameConditions"]) -> "FrameConditions":
        """The same conditions for these and `later` frames, each with its own action."""
        if self.actions is None:
            return self
        actions = [self.actions, *(frame.actions for frame in later if frame.actions is not None)]
        return replace(self, actions=torch.cat(actions, dim=1))  # (b, all frames, a)


@dataclass(frozen=True)
class Words:
    """A caption as the blocks read it. At least one position is present: the null word."""

    vectors: Float[Tensor, "b w d"]
    present: Bool[Tensor, "b w"]
