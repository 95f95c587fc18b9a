"""The synthetic dataset "shapes" as training data: its settings, and its clips as an endless source."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from mutoscope.actions import ActionSpec
from mutoscope.data.base import LABEL, ClipBatch, ClipSource, DataConfig, Field, check_interval
from mutoscope.data.media import spread
from mutoscope.data.sources.shapes.mixed import MIXED_CLASS_NAMES, VariedShapesSource
from mutoscope.data.sources.shapes.world import (
    HELD_BACK_SEED,
    ShapesConfig,
    ShapesWorld,
    action_spec,
    shapes_batch,
)
from mutoscope.data.sources.survey import DataSurvey
from mutoscope.errors import UserError

MIN_FRAMES_WITH_JUMP = 3  # a first frame, the frame after the gap, and one frame to learn


class ShapesSource(ClipSource[ClipBatch]):
    """The clips of one synthetic dataset, endless: "video", "label", "attributes", "caption", and "actions" where it
    is controllable.
    """

    def __init__(self, world: ShapesWorld):
        self.world, self.class_names = world, world.class_names
        self.fields: Mapping[str, Field] = {"label": LABEL} | action_field(world)
        self.actions = action_spec(world.config) if world.config.controllable else None

    def __getitem__(self, indices: Sequence[int]) -> ClipBatch:
        return shapes_batch(self.world, list(indices))


def action_field(world: ShapesWorld) -> dict[str, Field]:
    """The actions (dx, dy) of a controllable dataset; empty for a free one."""
    shape = (world.config.num_frames, 2)
    return {"actions": Field("float32", shape, per_frame=True)} if world.config.controllable else {}


@dataclass(frozen=True, kw_only=True)
class ShapesData(DataConfig):
    """Settings of the synthetic dataset "shapes"."""

    kind: Literal["shapes"] = "shapes"
    max_objects: int = 3
    """largest number of shapes in a clip"""
    controllable: bool = False
    """the largest shape is steered by actions"""
    max_interval: int = 1
    """frames of a clip are 1 to this many time steps apart, drawn for each clip"""
    mixed: bool = False
    """every second clip is controllable and has actions"""
    max_jump: int = 0
    """two clips of every four omit 1 to this many frames after their first one, as a window that keeps the first frame
    does (window_mode "anchored"); 0: no gaps"""
    flawed_history: bool = False
    """clips with a gap show wrong shapes in some frames where they are context, for complete teacher forcing"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_interval(self.max_interval)
        if (self.max_interval > 1 or self.mixed or self.max_jump) and self.controllable:
            raise UserError("max_interval, mixed and max_jump are for free shapes: omit controllable.")
        if self.max_jump < 0 or (self.max_jump and self.num_frames < MIN_FRAMES_WITH_JUMP):
            raise UserError(
                f"max_jump must not be negative and needs clips of at least {MIN_FRAMES_WITH_JUMP} frames; found "
                f"{self.max_jump} for {self.num_frames} frames."
            )
        if self.flawed_history and not self.max_jump:
            raise UserError("flawed_history corrupts clips with a temporal gap: set max_jump too.")

    @property
    def needs_files(self) -> bool:
        return False

    def world(self, seed: int) -> ShapesWorld:
        """The dataset of a seed at these sizes."""
        sizes = self.height, self.width, self.num_frames, self.fps, self.max_objects, self.controllable
        return ShapesWorld(ShapesConfig(*sizes), seed)

    def open(self) -> ClipSource[ClipBatch]:
        world = self.world(self.seed)
        if self.max_interval == 1 and not self.mixed and not self.max_jump:
            return ShapesSource(world)
        agents = ShapesWorld(replace(world.config, controllable=True), self.seed) if self.mixed else None
        return VariedShapesSource(world, self.max_interval, agents, self.max_jump, self.flawed_history)

    def examples(self, count: int = 4) -> ClipBatch:
        """Clips that training never sees, without temporal gaps and corrupted frames."""
        held_back = replace(self, max_jump=0, flawed_history=False, seed=HELD_BACK_SEED)
        return held_back.open()[spread(count, count)]

    def survey(self) -> DataSurvey:
        names = tuple(self.class_names())
        return DataSurvey(self.height, self.width, self.fps, None, None, names, True, self.actions())

    def actions(self) -> ActionSpec | None:
        """What the actions mean; None for clips without."""
        return action_spec(self.world(self.seed).config) if self.controllable or self.mixed else None

    def class_names(self) -> Sequence[str]:
        return MIXED_CLASS_NAMES if self.mixed else self.world(self.seed).class_names

    def describe(self) -> dict[str, object]:
        always = ("kind", "height", "width", "num_frames", "fps", "max_objects", "controllable")
        described: dict[str, object] = {name: getattr(self, name) for name in always}
        if self.max_interval != 1:
            described["max_interval"] = self.max_interval
        varied = {"mixed": self.mixed, "max_jump": self.max_jump, "flawed_history": self.flawed_history}
        described |= {name: value for name, value in varied.items() if value}
        spec = self.actions()
        return described if spec is None else described | {"actions": spec.to_json()}
