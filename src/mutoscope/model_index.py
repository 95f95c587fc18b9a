"""`model_index.json`: what a model folder holds and how it is used."""

from dataclasses import dataclass, field

from mutoscope.actions import ActionSpec
from mutoscope.checks import SIDE, Range, check_fields
from mutoscope.errors import UserError

FORMAT = "mutoscope-1"
RANGES = {"num_frames": SIDE, "height": SIDE, "width": SIDE, "fps": Range(above=0, high=1000)}
Json = str | int | float | bool | None | list["Json"] | dict[str, "Json"]
"""A value of a JSON file."""


@dataclass(frozen=True)
class ModelIndex:
    """The content of `model_index.json`. Raises UserError for another format or sizes that are not positive."""

    family: str
    """A name in `mutoscope.families.FAMILIES`, or "tokenizer" for a tokenizer alone."""
    num_frames: int
    """Frames of the clips the model was trained on."""
    height: int
    """Pixels."""
    width: int
    """Pixels."""
    fps: float = 8
    """Frames per second of these clips."""
    tokenizer: str = "./tokenizer"
    """A bundled name, or a path relative to the folder ("./tokenizer", "../other")."""
    model: str | None = "./model"
    """Path of the network relative to the folder; None for a tokenizer alone."""
    text_encoder: str | None = None
    """Folder of the text encoder, absolute or relative to this one."""
    class_names: tuple[str, ...] | None = None
    """Names of the classes, by index."""
    tasks: tuple[str, ...] = ()
    """Tasks the model was trained for."""
    sampling: dict[str, object] = field(default_factory=dict[str, object])
    """Default options of the sampler."""
    task_sampling: dict[str, dict[str, object]] = field(default_factory=dict[str, dict[str, object]])
    """Defaults that differ for some tasks, by task."""
    blend_given: bool = False
    """Blend the conditioning region into the result without a seam, unless a call says otherwise (MAGVIT)."""
    data: dict[str, object] = field(default_factory=dict[str, object])
    """Description of the training data."""
    actions: ActionSpec | None = None
    """What the numbers of an action mean, and how they are scaled; None for a model without actions."""
    first_frames: dict[str, int] = field(default_factory=dict[str, int])
    """Images in the folder that clips can start with, and the class of each (−1: none)."""
    format: str = FORMAT

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise UserError(f"the format is {self.format!r}, this version reads {FORMAT!r}.")
        check_fields(self, RANGES)

    @property
    def frame_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.height, self.width

    def sampling_for(self, task: str | None) -> dict[str, object]:
        """Default options of the sampler for a task."""
        return self.sampling | self.task_sampling.get(task or "", {})
